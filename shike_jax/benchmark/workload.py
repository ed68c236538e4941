"""What all sides of the step benchmark compute: one network, its weights, its images, its recipe."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np

from shike_jax import config as schema
from shike_jax import models
from shike_jax.benchmark import measure
from shike_jax.errors import UserError

MODELS = {  # name: backbone, the experts' depths, side of the images in pixels
    "shike_resnet32_cifar": ("resnet32", (1, 2, 1), 32),
    "shike_resnet50": ("resnet50", (1, 2, 3), 224),
    "shike_resnext50_32x4d": ("resnext50_32x4d", (1, 2, 3), 224),
    "shike_resnet152": ("resnet152", (1, 2, 3), 224),
}
STAGES = ("representation", "classifier")
LEARNING_RATE = 0.01  # small: the labels are random, and no side may diverge
BATCHES = 4  # different ones, used in rotation


def add_arguments(parser: argparse.ArgumentParser, batch: int) -> None:
    """Adds the arguments that choose a network and its images; `batch` is the default."""
    parser.add_argument("--model", default="shike_resnet32_cifar", help=", ".join(MODELS))
    parser.add_argument("--batch", type=measure.positive, default=batch, help="images per step")
    parser.add_argument("--image_size", type=measure.positive, default=0, help="pixels; default: the model's")
    parser.add_argument("--width", type=measure.positive, default=0, help="channels of the stem, for quick tries")
    parser.add_argument(
        "--blocks", type=measure.positives, default=(), metavar="N,N,N", help="blocks per stage, for quick tries"
    )


@dataclasses.dataclass(frozen=True)
class Workload:
    """One measured step and its inputs, on the host."""

    model: dict[str, Any]  # fields of `config.model`
    stage: dict[str, Any]  # fields of `config.stages.NAME`, preset `official`
    classes: int  # C
    dtype: str  # of the computation
    batch: int  # images per step, B
    steps: int  # per measured call, S
    images: np.ndarray  # uint8 [N,H,W,3]
    labels: np.ndarray  # int32 [N]
    index: np.ndarray  # int32 [S,B], the images of each step
    class_counts: np.ndarray  # [C]
    variables: dict[str, Any]  # {`params`, `batch_stats`} of this package's network

    @property
    def spec(self) -> models.Backbone:
        return models.build_model(self.model, self.classes).spec

    @property
    def heads(self) -> str:
        return self.stage["heads"]


def make(
    model: str,
    *,
    batch: int = 128,
    image_size: int = 0,
    classes: int = 100,
    dtype: str = "float32",
    stage: str = "representation",
    steps: int = 1,
    width: int = 0,
    blocks: tuple[int, ...] = (),
) -> Workload:
    """Draws images, labels and weights from a fixed seed; the stage has the authors' losses and optimiser.

    `UserError` for an unknown model, or settings that no network can have.
    """
    if model not in MODELS:
        raise UserError(f"--model={model}: expected one of {', '.join(MODELS)}")
    backbone, depths, size = MODELS[model]
    size = image_size or size
    config = schema.base()
    config.model.update({"backbone": backbone, "depths": depths, "width": width, "blocks": blocks})
    schema.shike_stages(config, "official")
    settings = schema.to_plain(config.model)
    random, count = np.random.default_rng(0), BATCHES * batch
    return Workload(
        model=settings,
        stage=schema.to_plain(config.stages[stage]),
        classes=classes,
        dtype=dtype,
        batch=batch,
        steps=steps,
        images=random.integers(0, 256, (count, size, size, 3), np.uint8),
        labels=random.integers(0, classes, count, np.int32),
        index=(np.arange(steps * batch, dtype=np.int32) % count).reshape(steps, batch),
        class_counts=np.maximum(500 * 0.01 ** (np.arange(classes) / max(classes - 1, 1)), 1).astype(np.int32),
        variables=models.init_variables(models.build_model(settings, classes), 0, size),
    )
