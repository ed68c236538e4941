"""Stages and settings that several configuration files share, and the arguments after a file's colon."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from shike_jax.common.colours import IMAGENET_MEAN, IMAGENET_STD
from shike_jax.common.paths import expanded
from shike_jax.config.fields import stage
from shike_jax.errors import UserError, nearest

_STATED: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("stated")  # see `stated`


@contextlib.contextmanager
def stated(**values: str) -> Iterator[None]:
    """Inside, `parse_arguments` takes these for the arguments of the same name; empty ones count as not stated.

    `--config.data.root=DIR` changes a configuration after its file was read, too late for a file that looks into DIR.
    """
    token = _STATED.set({name: value for name, value in values.items() if value})
    try:
        yield
    finally:
        _STATED.reset(token)


def exported(config: ConfigDict, file: str) -> None:
    """Takes the images of CIFAR from a file, in place: a split that `pack` wrote, or an archive of the authors'."""
    archive = file.lower().endswith((".tar.gz", ".tgz", ".tar"))
    config.data.update({"source": "archive" if archive else "arrays", "root": file})


def shike_stages(config: ConfigDict, preset: str, epochs: tuple[int, int] = (180, 20)) -> None:
    """Sets the two stages of SHIKE (sec. 3.4) in place.

    The preset is `official` (what the authors ran) or `paper` (printed equations, lr 0.05, cosine to 0).
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

    The preset gives the form of the losses; the schedule is the paper's cosine to 0 in both. `lr` is the peak of both
    stages, for batches of 256 (the size of comparable public recipes; the paper names none).
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


def fine_tuning(config: ConfigDict, weights: str, frozen: bool) -> None:
    """Starts a recipe of SHIKE's stages from a pre-trained backbone (a PyTorch file or a checkpoint), in place.

    `frozen`: stem and shared stages stay as they come, their BN in inference mode (sec. 4, Places-LT), and only the
    experts train; else everything trains in the first stage.
    """
    config.init_from = weights
    if frozen:
        config.stages.representation.train = (r"expert\d+/.*", "heads/representation/.*")
        for name in config.run:
            config.stages[name].bn_trunk = "running"


def parse_arguments(text: str | None, presets: Sequence[str] = (), **defaults: Any) -> dict[str, Any]:
    """Reads the argument after a config file's colon: `official,imbalance_factor=100`.

    Args:
      text: comma-separated; a bare word is the preset, the rest `name=value`. A value with a comma stands in quotes,
        `root="a, b"`; a leading `~` is the home folder.
      presets: allowed presets, the first being the default.
      defaults: argument names with defaults; values take the defaults' types, others are a UserError.
    """
    values = dict(defaults)
    if presets:
        values["preset"] = presets[0]
    for item in filter(None, (part.strip() for part in _separated(text or ""))):
        name, equals, value = item.partition("=")
        if not equals:
            if item not in presets:
                raise UserError(
                    f"config argument {item!r}: expected name=value or one of {', '.join(presets) or '-'} "
                    f"(a value that holds a comma stands in quotes: 'root=\"a,b\"'){nearest(item, presets)}"
                )
            values["preset"] = item
        elif name not in defaults:
            expected = f"{', '.join(sorted(defaults))}{nearest(name, defaults)}"
            raise UserError(f"config argument {name!r} is unknown; expected one of {expected}")
        else:
            values[name] = _convert(name, value, defaults[name])
    values |= {name: value for name, value in _STATED.get({}).items() if name in defaults}
    return {name: expanded(value) for name, value in values.items()}


def _separated(text: str) -> list[str]:
    """Splits at commas outside quotation marks, which enclose a whole value and are dropped."""
    items, mark = [""], ""
    for character in text:
        if mark:
            if character == mark:
                mark = ""
            else:
                items[-1] += character
        elif character in "\"'" and items[-1].endswith("="):
            mark = character
        elif character == ",":
            items.append("")
        else:
            items[-1] += character
    if mark:
        raise UserError(f"config arguments {text!r}: a quotation mark {mark} is not closed")
    return items


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
