"""The configuration of a run: its fields (`field.py`, `fields.py`), shared recipes (`recipes.py`) and `checks.py`."""

from shike_jax.common.colours import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from shike_jax.common.paths import count_images, count_lines, subfolders
from shike_jax.config.checks import validate
from shike_jax.config.fields import base, stage, to_plain, with_defaults
from shike_jax.config.recipes import exported, fine_tuning, parse_arguments, photograph_recipe, shike_stages
from shike_jax.errors import UserError

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "UserError",
    "base",
    "count_images",
    "count_lines",
    "exported",
    "fine_tuning",
    "parse_arguments",
    "photograph_recipe",
    "shike_stages",
    "stage",
    "subfolders",
    "to_plain",
    "validate",
    "with_defaults",
]
