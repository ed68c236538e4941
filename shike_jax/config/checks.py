"""What a configuration must satisfy beyond the types of its fields, and one clear line for what does not."""

from __future__ import annotations

import math
import re
from typing import Any

from ml_collections import ConfigDict

from shike_jax.common.errors import UserError
from shike_jax.methods import AVERAGES, LOSSES, OPTIMIZERS, SAMPLERS, SCHEDULES, Choice, Number, StageLength
from shike_jax.methods.optimizers import is_optimizer

CHOICES = {
    "dtype": ("float32", "bfloat16", "float64"),
    "log": ("quiet", "info", "debug"),
    "data.source": ("digits", "tfds", "arrays", "folder", "lists", "table"),
    "data.profile": ("exponential", "step", "natural"),
    "data.subset": ("first", "random", "h2t"),
    "data.divisions": ("shots", "h2t"),
    "data.bad_image": ("skip", "stop"),
    "data.bad_line": ("skip", "stop"),
    "augment.crop": ("pad", "random_resized", "none"),
    "augment.policy": ("none", "autoaugment_cifar", "randaugment"),
    "augment.place": ("auto", "device", "host"),
    "model.head": ("cosine", "linear"),
    "model.second_head": ("fresh", "scaled"),
    "model.shortcut": ("A", "B"),
    "train.backend": ("pmap", "shard_map"),
}
SEEDS = 2**32  # JAX's keys and NumPy's seeds tell so many apart
STAGE_CHOICES = {
    "heads": ("representation", "classifier"),
    "bn_trunk": ("batch", "running"),
    "bn_experts": ("batch", "running"),
}


def validate(config: ConfigDict, stages: bool = True) -> None:
    """Checks what types alone cannot.

    Args:
      stages: check the stages too. Evaluating a checkpoint does not need the losses and samplers that trained it.

    Raises:
      UserError: the first field that is out of range, with its value and what is expected.
    """
    for path, allowed in CHOICES.items():
        node: Any = config
        for part in path.split("."):
            node = node[part]
        _require(node in allowed, path, node, f"one of {', '.join(allowed)}")
    seeds = tuple(config.seeds)
    distinct = all(isinstance(seed, int) and 0 <= seed < SEEDS for seed in seeds) and len(set(seeds)) == len(seeds)
    _require(distinct, "seeds", seeds, "different whole numbers from 0 to 4294967295")
    data, model, train = config.data, config.model, config.train
    for path, seed in (("seed", config.seed), ("data.subset_seed", data.subset_seed)):
        _require(0 <= seed < SEEDS, path, seed, "a whole number from 0 to 4294967295")
    _require(data.imbalance_factor >= 1, "data.imbalance_factor", data.imbalance_factor, "a number of at least 1")
    _require(data.image_size >= 8, "data.image_size", data.image_size, "at least 8 pixels")
    _require(len(model.depths) >= 1, "model.depths", tuple(model.depths), "at least one expert, such as (1, 2, 1)")
    _require(config.eval.batch_size >= 1, "eval.batch_size", config.eval.batch_size, "at least 1")
    _require(data.threads >= 0, "data.threads", data.threads, "at least 0")
    whole = f"0 (8/7 of data.image_size) or at least data.image_size={data.image_size}"
    _require(data.resize == 0 or data.resize >= data.image_size, "data.resize", data.resize, whole)
    for name in ("validation", "test_share"):
        amount = data[name]
        whole = "0, a share below 1, or a whole number of images for each class"
        _require(0 <= amount < 1 or (float(amount).is_integer() and amount >= 1), f"data.{name}", amount, whole)
    _require(0 <= data.bad_image_limit <= 1, "data.bad_image_limit", data.bad_image_limit, "a share between 0 and 1")
    _require(train.keep_checkpoints >= 1, "train.keep_checkpoints", train.keep_checkpoints, "at least 1")
    _validate_augmentation(config)
    for name in (
        "pictures",
        "cpu_devices",
        "steps_per_call",
        "eval_every_epochs",
        "checkpoint_every_epochs",
        "checkpoint_every_steps",
        "log_every_steps",
    ):
        _require(train[name] >= 0, f"train.{name}", train[name], "at least 0")
    _require(train.peer_timeout > 0, "train.peer_timeout", train.peer_timeout, "a number of seconds above 0")
    _require(len(config.run) >= 1, "run", tuple(config.run), "at least one stage")
    for name in config.run:
        known = f"names of config.stages: {', '.join(config.stages)}"
        _require(name in config.stages, "run", tuple(config.run), known)
        if stages:
            _validate_stage(f"stages.{name}", config.stages[name])
            _validate_ldam(f"stages.{name}.loss.ldam_scale", config.stages[name].loss, model)


def _require(ok: bool, path: str, value: Any, expected: str) -> None:
    if not ok:
        raise UserError(f"config.{path}={value!r}: expected {expected}")


def _validate_augmentation(config: ConfigDict) -> None:
    augment, data = config.augment, config.data
    for name in ("pad", "cutout"):
        _require(augment[name] >= 0, f"augment.{name}", augment[name], "at least 0 pixels")
    scale = tuple(augment.scale)
    shares = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
    _require(shares, "augment.scale", scale, "the smallest and the largest share of the area, such as (0.08, 1.0)")
    random = augment.randaugment
    for name, highest in (("layers", math.inf), ("magnitude", 10), ("magnitude_std", math.inf), ("prob", 1)):
        allowed = "at least 0" if math.isinf(highest) else f"a number from 0 to {highest:g}"
        _require(0 <= random[name] <= highest, f"augment.randaugment.{name}", random[name], allowed)
    for name, fine in (("mean", lambda value: 0 <= value <= 1), ("std", lambda value: value > 0)):
        values = tuple(data[name])
        allowed = "three numbers from 0 to 1" if name == "mean" else "three numbers above 0"
        _require(len(values) == 3 and all(map(fine, values)), f"data.{name}", values, allowed)


def _validate_stage(prefix: str, one: ConfigDict) -> None:
    choices = {**STAGE_CHOICES, "sampler": tuple(SAMPLERS), "schedule": tuple(SCHEDULES)}
    choices["average"] = ("none", *AVERAGES)
    for field, allowed in choices.items():
        _require(one[field] in allowed, f"{prefix}.{field}", one[field], f"one of {', '.join(allowed)}")
    optimizers = f"one of {', '.join(OPTIMIZERS)}, or an optimiser of optax such as adamw"
    _require(is_optimizer(one.optimizer), f"{prefix}.optimizer", one.optimizer, optimizers)
    _require(0 < one.average_decay < 1, f"{prefix}.average_decay", one.average_decay, "a number between 0 and 1")
    for field in ("epochs", "batch_size", "average_epochs"):
        _require(one[field] >= 1, f"{prefix}.{field}", one[field], "at least 1")
    for field in (
        "lr",
        "weight_decay",
        "mixup",
        "cutmix",
        "momentum",
        "warmup_lr",
        "max_steps",
        "warmup_epochs",
        "sam_rho",
    ):
        _require(one[field] >= 0, f"{prefix}.{field}", one[field], "a number of at least 0")
    _validate_warmup(prefix, one)
    _require(0 <= one.exchange <= 1, f"{prefix}.exchange", one.exchange, "a share between 0 and 1")
    pairs = [name for name in SAMPLERS if SAMPLERS[name].options["partner"]]
    _require(not one.exchange or one.sampler in pairs, f"{prefix}.sampler", one.sampler, "'paired' with exchange > 0")
    frozen = all(pattern.startswith("heads/") for pattern in one.train)
    expected = "parameters under heads/ with exchange > 0"
    _require(not one.exchange or frozen, f"{prefix}.train", tuple(one.train), expected)
    for field in ("mixup", "cutmix"):
        _require(not (one[field] and one.sampler in pairs), f"{prefix}.{field}", one[field], "0 with sampler 'paired'")
    _validate_loss(f"{prefix}.loss", one.loss)
    for pattern in one.train:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.{prefix}.train={pattern!r}: not a regular expression ({error})") from None


def _validate_warmup(prefix: str, one: ConfigDict) -> None:
    lowest_start = SCHEDULES[one.schedule].options["lowest_start"]
    if lowest_start is None:
        return
    lowest = lowest_start(StageLength(one.lr, one.epochs, 1, one.warmup_lr, one.warmup_epochs))
    expected = (
        f"at least {lowest:.6g} with lr={one.lr:g} and warmup_epochs={one.warmup_epochs}, as the first learning rate "
        f"would be negative (warmup_epochs=0: no warm-up)"
    )
    _require(one.warmup_lr >= lowest, f"{prefix}.warmup_lr", one.warmup_lr, expected)


def _validate_ldam(path: str, loss: ConfigDict, model: ConfigDict) -> None:
    if loss.get("ldam"):
        _require(model.head == "cosine", "model.head", model.head, "'cosine' with the loss ldam")
        _require(loss.ldam_scale == model.head_scale, path, loss.ldam_scale, f"model.head_scale={model.head_scale:g}")


def _validate_loss(prefix: str, loss: ConfigDict) -> None:
    parameters = LOSSES.parameters()
    for name in loss:
        known = f"one of {', '.join((*LOSSES, *parameters))}"
        _require(name in LOSSES or name in parameters, f"{prefix}.{name}", loss[name], f"the name of a loss: {known}")
    weights = {name: loss[name] for name in LOSSES if name in loss}
    positive = any(weights.values()) and min(weights.values()) >= 0
    _require(positive, prefix, {k: v for k, v in weights.items() if v}, "weights of at least 0, not all of them 0")
    for name, declared in parameters.items():
        if isinstance(declared, Number) and name in loss:
            allowed = f"a number of at least {declared.low:g} and below {declared.below:g}"
            _require(declared.low <= loss[name] < declared.below, f"{prefix}.{name}", loss[name], allowed)
        if isinstance(declared, Choice) and name in loss:
            allowed = f"one of {', '.join(declared.values)}"
            _require(loss[name] in declared.values, f"{prefix}.{name}", loss[name], allowed)
