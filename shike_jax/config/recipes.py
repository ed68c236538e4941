"""Stages and settings that several configuration files share, and the arguments behind a file's colon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from shike_jax.config.fields import IMAGENET_MEAN, IMAGENET_STD, stage
from shike_jax.errors import UserError


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
