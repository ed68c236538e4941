"""TensorFlow and its data sets, imported late, kept off the accelerators (TensorFlow would claim their memory)."""

from __future__ import annotations

import os
import re
from types import ModuleType
from typing import Any

from shike_jax.common.errors import UserError
from shike_jax.common.extras import optional


def import_tensorflow(use: str = "config.data.source='tfds'") -> ModuleType:
    """Returns the module `tensorflow` with its accelerators hidden.

    Args:
      use: what needs it, for the error's sentence.

    Raises:
      UserError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and it greets with a warning
    tf = optional("tensorflow", use)
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


def import_tfds() -> ModuleType:
    """Returns the module `tensorflow_datasets`, after `import_tensorflow`.

    Raises:
      UserError: it is not installed.
    """
    import_tensorflow()
    tfds = optional("tensorflow_datasets", "config.data.source='tfds'")
    tfds.disable_progress_bar()
    return tfds


def find_builder(name: str, data_dir: str = "", build_options: str = "") -> Any:
    """Returns the read-only tfds builder of data set `name` from the newest version on disk.

    Args:
      data_dir: tfds folder; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      build_options: further options for the `tfds build` command that the error message suggests.

    Raises:
      UserError: the data set is not there.
    """
    tf, tfds = import_tensorflow(), import_tfds()
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    found = tf.io.gfile.glob(os.path.join(folder, name, "*", "dataset_info.json"))
    if not found:
        raise UserError(
            f"no prepared {name} in {folder} (from --config.data.data_dir, else $TFDS_DATA_DIR, else "
            f"~/tensorflow_datasets); prepare it once with: tfds build {name}{build_options} --data_dir={folder}"
        )
    newest = max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", os.path.basename(os.path.dirname(path)))])
    return tfds.builder_from_directory(os.path.dirname(newest))
