"""TensorFlow, imported late, kept off the accelerators (it would claim their memory) and quiet."""

from __future__ import annotations

import os
from types import ModuleType

from shike_jax.errors import UserError

_ADVICE = "install requirements.txt, or read a split exported by `python -m shike_jax.data.export`"


def import_tensorflow() -> ModuleType:
    """Returns the module `tensorflow` with its accelerators hidden.

    Raises:
      UserError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(f"this data source needs TensorFlow, which is not installed: {_ADVICE}") from None
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


def import_tfds() -> ModuleType:
    """Returns the module `tensorflow_datasets`, after `import_tensorflow`.

    Raises:
      UserError: it is not installed.
    """
    import_tensorflow()
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(f"data.source='tfds' needs tensorflow-datasets, which is not installed: {_ADVICE}") from None
    tfds.disable_progress_bar()
    return tfds
