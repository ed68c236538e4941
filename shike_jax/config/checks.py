"""The check of a whole configuration: each field by its declaration, then what fields must satisfy together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from shike_jax.config.fields import GONE, fields_of, flat
from shike_jax.errors import UserError
from shike_jax.methods import LOSSES, OPTIMIZERS, SAMPLERS, SCHEDULES, StageLength
from shike_jax.methods.feature_hooks import FEATURE_HOOKS
from shike_jax.methods.loss_registry import active_losses
from shike_jax.methods.mixing import MIXINGS
from shike_jax.methods.optimizers import is_optimizer


def validate(config: ConfigDict, stages: bool = True) -> None:
    """Raises UserError for the first field that is wrong, alone or with others: its value, and what is expected.

    Without `stages` these are not checked, and unknown fields are let be: evaluating a checkpoint needs neither the
    losses and samplers that trained it nor the version that wrote it.
    """
    names = tuple(config.run) if stages and isinstance(config.run, tuple | list) else ()
    declared, found = fields_of(name for name in names if name in config.stages), flat(config.to_dict())
    if stages:
        _require_known(found, declared, names)
    for path, field in declared.items():
        if path not in found:
            raise UserError(f"config.{path} is missing: expected {field.expected()}")
        field.check(path, found[path])
    for name in config.run:
        known = f"names of config.stages: {', '.join(config.stages)}"
        _require(name in config.stages, "run", tuple(config.run), known)
    data, scale, seeds = config.data, tuple(config.augment.scale), tuple(config.seeds)
    _require(len(set(seeds)) == len(seeds), "seeds", seeds, "different whole numbers")
    whole = f"0 (8/7 of data.image_size) or at least data.image_size={data.image_size}"
    _require(data.resize == 0 or data.resize >= data.image_size, "data.resize", data.resize, whole)
    shares = "the smallest and the largest share of the area, such as (0.08, 1.0)"
    _require(scale[0] <= scale[1], "augment.scale", scale, shares)
    for name in names:
        _validate_stage(f"stages.{name}", config.stages[name], config)


def _require_known(found: Mapping[str, Any], declared: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for path in found:
        if path in declared or path in GONE or (path.startswith("stages.") and path.split(".")[1] not in names):
            continue
        near = difflib.get_close_matches(path, declared, 1)
        hint = f"; did you mean config.{near[0]}?" if near else ""
        what = "the name of a loss or of a parameter of one" if ".loss." in path else "a field of a configuration"
        raise UserError(f"config.{path}={found[path]!r}: expected {what}{hint}")


def _require(ok: bool, path: str, value: Any, expected: str) -> None:
    if not ok:
        raise UserError(f"config.{path}={value!r}: expected {expected}")


def _validate_stage(prefix: str, one: ConfigDict, config: ConfigDict) -> None:
    optimizers = f"one of {', '.join(OPTIMIZERS)}, or an optimiser of optax such as adamw"
    _require(is_optimizer(one.optimizer), f"{prefix}.optimizer", one.optimizer, optimizers)
    _validate_warmup(prefix, one)
    known, expected = one.base_batch_size, f"the batch that lr is meant for, with lr_scaling={one.lr_scaling!r}"
    _require(one.lr_scaling == "none" or known > 0, f"{prefix}.base_batch_size", known, expected)
    pairs = [name for name in SAMPLERS if SAMPLERS[name].options["partner"]]
    for hook, _ in FEATURE_HOOKS.active(one):
        expected = f"a sampler of pairs ({', '.join(pairs)}) with {hook.name} > 0"
        _require(not hook.options["pairs"] or one.sampler in pairs, f"{prefix}.sampler", one.sampler, expected)
        frozen = all(pattern.startswith("heads/") for pattern in one.train)
        expected = f"parameters under heads/ with {hook.name} > 0"
        _require(not hook.options["frozen"] or frozen, f"{prefix}.train", tuple(one.train), expected)
    for mixing, strength in MIXINGS.active(one):
        if mixing.options["pairs"]:
            expected = f"a sampler of pairs ({', '.join(pairs)}) with {mixing.name} > 0"
            _require(one.sampler in pairs, f"{prefix}.sampler", one.sampler, expected)
        else:
            expected = f"0 with sampler {one.sampler!r}"
            _require(one.sampler not in pairs, f"{prefix}.{mixing.name}", strength, expected)
    weights = {name: one.loss[name] for name in LOSSES}
    _require(any(weights.values()), f"{prefix}.loss", weights, "weights, not all of them 0")
    _validate_cosine(f"{prefix}.loss", one.loss, config.model)


def _validate_warmup(prefix: str, one: ConfigDict) -> None:
    lowest_start = SCHEDULES[one.schedule].options["lowest_start"]
    if lowest_start is None or one.warmup_steps:
        return
    lowest = lowest_start(StageLength(one.lr, one.epochs, 1, one.warmup_lr, one.warmup_epochs))
    expected = (
        f"at least {lowest:.6g} with lr={one.lr:g} and warmup_epochs={one.warmup_epochs}, as the first learning rate "
        f"would be negative (warmup_epochs=0: no warm-up)"
    )
    _require(one.warmup_lr >= lowest, f"{prefix}.warmup_lr", one.warmup_lr, expected)


def _validate_cosine(prefix: str, loss: ConfigDict, model: ConfigDict) -> None:
    """Losses of cosines need classifiers of cosines, with the scale that they take off again."""
    for entry, _, parameters in active_losses(loss):
        if scale := entry.options["cosine"]:
            _require(model.head == "cosine", "model.head", model.head, f"'cosine' with the loss {entry.name}")
            value, expected = parameters[scale], f"model.head_scale={model.head_scale:g}"
            _require(value == model.head_scale, f"{prefix}.{scale}", value, expected)
