"""TensorFlow and its data sets, imported late, kept off the accelerators (TensorFlow would claim their memory)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from shike_jax.common.extras import optional
from shike_jax.errors import UserError


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


def find_builder(name: str, data_dir: str = "", file_format: str = "tfrecord") -> Any:
    """Returns the read-only tfds builder of data set `name` from the newest version on disk.

    Args:
      data_dir: tfds folder; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      file_format: in which its records must be stored.

    Raises:
      UserError: the data set is not there, not complete, or stored in another format; names the file and the command
        that prepares it.
    """
    tf, tfds = import_tensorflow(), import_tfds()
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    option = "" if file_format == "tfrecord" else f" --file_format={file_format}"
    command = f"tfds build {name}{option} --data_dir={folder}"
    found = tf.io.gfile.glob(os.path.join(folder, name, "*", "dataset_info.json"))
    if not found:
        raise UserError(
            f"no prepared {name} in {folder} (from --config.data.data_dir, else $TFDS_DATA_DIR, else "
            f"~/tensorflow_datasets); prepare it once with: {command}"
        )
    newest = max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", os.path.basename(os.path.dirname(path)))])
    with named_damage(os.path.dirname(newest), command):
        builder = tfds.builder_from_directory(os.path.dirname(newest))
        stored = builder.info.file_format.value
    if stored != file_format:
        raise UserError(f"{builder.data_path} is stored as {stored}, expected {file_format}: {command}")
    builder.prepared_by = command
    return builder


def shards(builder: Any, split: str) -> Iterator[tuple[str, int]]:
    """The files of a split, each with the number of its records.

    Raises:
      UserError: one is missing.
    """
    about = builder.info.splits[split]
    for path, records in zip(about.filepaths, about.shard_lengths, strict=True):
        if not path.exists():
            raise UserError(damage(path, "missing", builder.prepared_by))
        yield str(path), records


@contextlib.contextmanager
def named_damage(path: Any, command: str) -> Iterator[None]:
    """Turns whatever reading a prepared data set raises into one line.

    Args:
      path: the file, or the folder where it is not known.
      command: that prepares the data set.

    Raises:
      UserError: instead of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TensorFlow, protocol buffers, JSON and tfds raise kinds of their own
        raise UserError(damage(path, " ".join(str(error).split())[:160] or type(error).__name__, command)) from error


def damage(path: Any, reason: str, command: str) -> str:
    """The line on a file of a prepared data set that is damaged or was copied in part."""
    return f"{path}: damaged, or copied in part ({reason}); remove its folder and prepare it again: {command}"
