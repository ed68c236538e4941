"""Packages that only some commands need, and the extras of this package that bring them (see pyproject.toml)."""

from __future__ import annotations

import importlib
from types import ModuleType

from shike_jax.errors import UserError

# imported name: what pip calls it, and the extra that holds it
EXTRAS = {
    "clu": ("tensorboardX (or TensorFlow for clu)", "tensorboard"),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "tensorboardX": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "gcsfs": ("gcsfs", "gcs"),
    "matplotlib": ("matplotlib", "report"),
    "s3fs": ("s3fs", "s3"),
    "sklearn": ("scikit-learn", "digits"),
    "tensorflow": ("tensorflow-cpu", "tfds"),
    "tensorflow_datasets": ("tensorflow-datasets", "tfds"),
}


def optional(module: str, use: str) -> ModuleType:
    """Imports a module, such as `sklearn.datasets`, of a package of `EXTRAS` that `use` needs.

    The UserError where it, or a package that it needs, is not installed names the package and the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        package, extra = EXTRAS[top]
        cause = "" if error.name == top else f" ({error.name} is missing)"
        raise UserError(
            f"{use}: {package} is needed and not installed{cause}; install the extra {extra!r} of this package: "
            f"pip install '.[{extra}]' in a clone of it"
        ) from None
