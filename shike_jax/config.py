"""The configuration: every field with its unit and default, the two presets, and one-line validation.

A run is a list of stages (`config.run` names them in order, `config.stages` holds them). Each stage names its sampler,
its losses and weights, which parameters train, how batch normalisation behaves, its schedule and its length; a method
is nothing but such a list. Files under `configs/` start from `base()` and change fields; the command line changes
fields once more (`--config.stages.classifier.epochs=4`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from shike_jax.errors import UserError

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CHOICES = {
    "dtype": ("float32", "bfloat16", "float64"),
    "log": ("quiet", "info", "debug"),
    "data.source": ("digits", "tfds", "arrays", "folder", "lists"),
    "data.profile": ("exponential", "step", "natural"),
    "data.subset": ("first", "random", "h2t"),
    "data.divisions": ("shots", "h2t"),
    "data.bad_image": ("skip", "stop"),
    "data.bad_line": ("skip", "stop"),
    "augment.crop": ("pad", "random_resized", "none"),
    "augment.policy": ("none", "autoaugment_cifar", "randaugment"),
    "model.head": ("cosine", "linear"),
    "model.shortcut": ("A", "B"),
    "stage.sampler": ("shuffle", "balanced", "sqrt", "paired"),
    "stage.heads": ("representation", "classifier"),
    "stage.loss.form": ("official", "paper"),
    "stage.schedule": ("warmup_cosine", "cosine", "cosine_per_step", "constant"),
    "stage.bn_trunk": ("batch", "running"),
    "stage.bn_experts": ("batch", "running"),
}


def base() -> ConfigDict:
    """Returns a configuration that holds every field at its default; no stage is listed yet."""
    config = ConfigDict()
    config.name = "run"
    config.seed = 0  # of the weights, the order of examples and the augmentation
    config.dtype = "float32"  # of the computation; weights, BN statistics and losses stay float32 (float64: all of it)
    config.init_from = ""  # warm start: a checkpoint or converted weights (path or URL); fresh heads if C differs
    config.log = "info"

    config.data = ConfigDict()
    config.data.source = "digits"
    config.data.name = ""  # tfds name (cifar100, ...), or the name reports use for lists and folders
    config.data.data_dir = ""  # tfds folder; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.data.root = ""  # image folder ({train,test}/CLASS/* or the base of list files), or the exported file
    config.data.train_list = ""  # list files `path label`
    config.data.val_list = ""
    config.data.test_list = ""
    config.data.test_part = "test"  # the part that is evaluated during and after training
    config.data.profile = "exponential"
    config.data.imbalance_factor = 1.0  # largest class count over smallest; ignored by profile `natural`
    config.data.subset = "first"  # which images of a class are kept
    config.data.subset_seed = 0
    config.data.divisions = "shots"  # many > 100, medium 20..100, few < 20; or H2T's head/medium/tail ranges
    config.data.test_per_class = 30  # digits only: balanced test images per class
    config.data.image_size = 32  # side in pixels of what the network sees
    config.data.resize = 0  # file pipeline, evaluation: short side before the centre crop; 0: image_size * 8 / 7
    config.data.mean, config.data.std = CIFAR_MEAN, CIFAR_STD
    config.data.bad_image = "skip"  # unreadable images: skip (count, report) or stop
    config.data.bad_line = "stop"  # bad lines of list files, missing files included: skip (count, report) or stop
    config.data.bad_image_limit = 0.01  # share of unreadable images, or bad lines, beyond which even `skip` stops

    config.augment = ConfigDict()
    config.augment.crop = "pad"
    config.augment.pad = 4  # pixels
    config.augment.scale = (0.08, 1.0)  # of the area, random_resized only
    config.augment.flip = True
    config.augment.policy = "none"
    config.augment.randaugment = ConfigDict({"layers": 2, "magnitude": 10.0, "magnitude_std": 0.5, "prob": 0.5})
    config.augment.cutout = 0  # side of the erased square in pixels; 0: off

    config.model = ConfigDict()
    config.model.backbone = "resnet32"
    config.model.depths = (1, 2, 1)  # one expert each: the shared stage whose features it fuses (sec. 3.2)
    config.model.fusion = True  # depth-wise knowledge fusion; False: experts classify their deep features alone
    config.model.shortcut = "B"  # CIFAR networks: A (zero padding) or B (1x1 convolution)
    config.model.width = 0  # channels of the stem; 0: the backbone's own (16 or 64)
    config.model.blocks = ()  # blocks per stage; empty: the backbone's own
    config.model.head = "cosine"
    config.model.head_scale = 30.0  # of the cosine
    config.model.align_last_relu = False  # ReLU after the last alignment convolution too

    config.run = ()
    config.stages = ConfigDict()

    config.train = ConfigDict()
    config.train.steps_per_call = 0  # training steps per compiled call; 0: an epoch on accelerators, 1 on the CPU
    config.train.sync_bn = True  # BN statistics over the global batch; False: per device
    config.train.eval_every_epochs = 1  # 0: only at the end of a stage
    config.train.checkpoint_every_epochs = 1  # 0: only at the end of a stage
    config.train.checkpoint_every_steps = 0  # in addition; 0: off
    config.train.keep_checkpoints = 2  # newest ones; the end of each stage is always kept
    config.train.log_every_steps = 50
    config.train.peer_timeout = 60  # seconds without a sign of life after which a multi-process run stops

    config.eval = ConfigDict()
    config.eval.batch_size = 500
    return config


def stage(**changes: Any) -> ConfigDict:
    """Returns one stage at its defaults (representation learning with cross-entropy), with `changes` applied."""
    one = ConfigDict()
    one.epochs = 180
    one.max_steps = 0  # ends the stage after that many steps; 0: off
    one.batch_size = 128  # global
    one.keep_last = True  # keep the last partial batch of an epoch, as the authors do
    one.sampler = "shuffle"
    one.heads = "representation"  # the set of classifiers that the losses and predictions use
    one.loss = ConfigDict()
    one.loss.form = "official"  # of the two distillation terms: the authors' code or the printed equations
    one.loss.ce = 1.0  # weight of the cross-entropy
    one.loss.nt = 0.0  # alpha, eq. 10: non-target distillation from the grand teacher
    one.loss.mu = 0.0  # beta, eq. 10: mutual distillation
    one.loss.balanced = 0.0  # weight of the balanced softmax, eq. 11
    one.mixup = 0.0  # alpha of the Beta distribution; 0: off
    one.exchange = 0.0  # share of feature-map channels taken from the partner image (sampler `paired`); 0: off
    one.train = (".*",)  # regular expressions over parameter paths: what trains
    one.bn_trunk = "batch"  # statistics used and updated (batch) or inference mode (running)
    one.bn_experts = "batch"
    one.schedule = "warmup_cosine"
    one.lr = 0.15  # peak
    one.warmup_lr = 0.05
    one.warmup_epochs = 5
    one.momentum = 0.9
    one.weight_decay = 5e-4
    one.decay_frozen = False  # let frozen weights decay too, as the authors' pinned PyTorch does in its second stage
    one.update(changes)
    return one


def shike_stages(config: ConfigDict, preset: str, epochs: tuple[int, int] = (180, 20)) -> None:
    """Sets the two stages of SHIKE (sec. 3.4) in place.

    Args:
      preset: `official` (what the authors ran) or `paper` (printed equations, lr 0.05, cosine to 0).
      epochs: of the representation and of the classifier stage.
    """
    config.run = ("representation", "classifier")
    config.stages.representation = stage(epochs=epochs[0])
    config.stages.representation.loss.update({"form": preset, "ce": 1.0, "nt": 10.0, "mu": 1.0, "balanced": 0.0})
    config.stages.classifier = stage(epochs=epochs[1], heads="classifier", train=("heads/classifier/.*",), lr=0.1)
    config.stages.classifier.loss.update({"form": preset, "ce": 0.0, "nt": 0.0, "mu": 0.0, "balanced": 1.0})
    if preset == "paper":
        config.stages.representation.loss.update({"nt": 1.0, "mu": 1.0})
        for name in config.run:
            config.stages[name].update({"schedule": "cosine", "lr": 0.05})


def photograph_recipe(config: ConfigDict, preset: str, backbone: str, epochs: tuple[int, int], lr: float) -> None:
    """Sets the paper's recipe for large photographs (sec. 4.1) in place: 224 px, RandAugment, three experts A, B, C.

    Args:
      preset: form of the losses, `paper` or `official`; the schedule is the paper's cosine to 0 in both.
      lr: peak of both stages, for batches of 256 (the size of comparable public recipes; the paper names none).
    """
    config.dtype = "bfloat16"
    config.data.update({"image_size": 224, "resize": 256, "profile": "natural", "mean": IMAGENET_MEAN})
    config.data.std = IMAGENET_STD
    config.augment.update({"crop": "random_resized", "scale": (0.08, 1.0), "flip": True, "policy": "randaugment"})
    config.model.update({"backbone": backbone, "depths": (1, 2, 3)})
    shike_stages(config, preset, epochs)
    for name in config.run:
        config.stages[name].update({"batch_size": 256, "schedule": "cosine", "lr": lr})
    config.eval.batch_size = 256


def parse_arguments(text: str | None, presets: Sequence[str] = (), **defaults: Any) -> dict[str, Any]:
    """Reads the argument behind a config file's colon: `official,imbalance_factor=100`.

    Args:
      text: comma-separated; a bare word is the preset, the rest `name=value`.
      presets: allowed presets, the first being the default.
      defaults: argument names with defaults; values take the defaults' types.

    Raises:
      UserError: unknown preset or argument, or a value of another type.
    """
    values = dict(defaults)
    if presets:
        values["preset"] = presets[0]
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, value = item.partition("=")
        if not equals:
            if item not in presets:
                raise UserError(f"config argument {item!r}: expected name=value or one of {', '.join(presets) or '-'}")
            values["preset"] = item
        elif name not in defaults:
            raise UserError(f"config argument {name!r} is unknown; expected one of {', '.join(sorted(defaults))}")
        else:
            values[name] = _convert(name, value, defaults[name])
    return values


def _convert(name: str, value: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise UserError(f"config argument {name}={value}: expected true or false")
        return value.lower() in ("true", "1")
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"config argument {name}={value}: expected {kind.__name__}") from None


def validate(config: ConfigDict) -> None:
    """Checks what types alone cannot.

    Raises:
      UserError: the first field that is out of range, with its value and what is expected.
    """

    def choice(path: str, value: Any, key: str | None = None) -> None:
        allowed = CHOICES[key or path]
        if value not in allowed:
            raise UserError(f"config.{path}={value!r}: expected one of {', '.join(allowed)}")

    def require(ok: bool, path: str, value: Any, expected: str) -> None:
        if not ok:
            raise UserError(f"config.{path}={value!r}: expected {expected}")

    for path in (p for p in CHOICES if not p.startswith("stage.")):
        node: Any = config
        for part in path.split("."):
            node = node[part]
        choice(path, node)
    data, model = config.data, config.model
    require(data.imbalance_factor >= 1, "data.imbalance_factor", data.imbalance_factor, "a number of at least 1")
    require(data.image_size >= 8, "data.image_size", data.image_size, "at least 8 pixels")
    require(len(model.depths) >= 1, "model.depths", tuple(model.depths), "at least one expert, such as (1, 2, 1)")
    require(config.eval.batch_size >= 1, "eval.batch_size", config.eval.batch_size, "at least 1")
    require(0 <= data.bad_image_limit <= 1, "data.bad_image_limit", data.bad_image_limit, "a share between 0 and 1")
    require(config.train.keep_checkpoints >= 1, "train.keep_checkpoints", config.train.keep_checkpoints, "at least 1")
    require(len(config.run) >= 1, "run", tuple(config.run), "at least one stage")
    for name in config.run:
        require(name in config.stages, "run", tuple(config.run), f"names of config.stages: {', '.join(config.stages)}")
        _validate_stage(name, config.stages[name], choice, require)


def _validate_stage(name: str, one: ConfigDict, choice: Any, require: Any) -> None:
    for path in (p for p in CHOICES if p.startswith("stage.")):
        node: Any = one
        for part in path.split(".")[1:]:
            node = node[part]
        choice(f"stages.{name}.{path.removeprefix('stage.')}", node, path)
    prefix = f"stages.{name}"
    for field in ("epochs", "batch_size"):
        require(one[field] >= 1, f"{prefix}.{field}", one[field], "at least 1")
    for field in ("lr", "weight_decay", "mixup", "momentum", "warmup_lr", "max_steps", "warmup_epochs"):
        require(one[field] >= 0, f"{prefix}.{field}", one[field], "a number of at least 0")
    require(0 <= one.exchange <= 1, f"{prefix}.exchange", one.exchange, "a share between 0 and 1")
    require(not one.exchange or one.sampler == "paired", f"{prefix}.sampler", one.sampler, "'paired' with exchange > 0")
    frozen = all(pattern.startswith("heads/") for pattern in one.train)
    expected = "parameters under heads/ with exchange > 0"
    require(not one.exchange or frozen, f"{prefix}.train", tuple(one.train), expected)
    require(not (one.mixup and one.sampler == "paired"), f"{prefix}.mixup", one.mixup, "0 with sampler 'paired'")
    weights = [one.loss[term] for term in ("ce", "nt", "mu", "balanced")]
    require(any(weights) and min(weights) >= 0, f"{prefix}.loss", one.loss.to_dict(), "weights >= 0, not all 0")
    for pattern in one.train:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.{prefix}.train={pattern!r}: not a regular expression ({error})") from None


def to_plain(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Returns the configuration as nested dicts, tuples as lists: what JSON holds and what runs are compared by."""
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    return {k: _plain_value(v) for k, v in sorted(config.items())}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return to_plain(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    return value
