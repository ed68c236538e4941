"""TensorFlow and its data sets, imported late, kept off the accelerators (TensorFlow would claim their memory)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from shike_jax.common.extras import optional
from shike_jax.errors import UserError, reason


def import_tensorflow(use: str = "config.data.source='tfds'") -> ModuleType:
    """The module `tensorflow` with its accelerators hidden; `UserError` says that `use` needs it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and it greets with a warning
    # Keras 2, which this variable asks for, is imported when it is used: Keras takes a quarter of TensorFlow's time.
    keras = os.environ.get("TF_USE_LEGACY_KERAS")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    try:
        tf = optional("tensorflow", use)
    finally:
        del os.environ["TF_USE_LEGACY_KERAS"]
        if keras is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = keras
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


def import_tfds() -> ModuleType:
    """The module `tensorflow_datasets`, after `import_tensorflow`; `UserError` where it is not installed."""
    import_tensorflow()
    tfds = optional("tensorflow_datasets", "config.data.source='tfds'")
    tfds.disable_progress_bar()
    return tfds


def find_builder(name: str, data_dir: str = "", file_format: str = "tfrecord", try_gcs: bool = False) -> Any:
    """Returns the read-only tfds builder of NAME[/CONFIG][:VERSION], without a version of the newest one on disk.

    It lies in `data_dir`, else in $TFDS_DATA_DIR, else in ~/tensorflow_datasets, or with `try_gcs` in tfds's public
    bucket. The UserError for one that is not there, not complete, or stored in another format than `file_format` names
    the file and the command that prepares it.
    """
    tf, tfds = import_tensorflow(), import_tfds()
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    option = "" if file_format == "tfrecord" else f" --file_format={file_format}"
    command = f"tfds build {name}{option} --data_dir={folder}"
    kind, _, version = name.partition(":")
    found = tf.io.gfile.glob(os.path.join(folder, kind, version or "*", "dataset_info.json"))
    if not found and try_gcs:
        with named_damage(name, command):
            builder = tfds.builder(name, data_dir=folder, try_gcs=True)
            found = [str(builder.data_path / "dataset_info.json")] if builder.is_prepared() else []
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


@dataclasses.dataclass(frozen=True)
class Shard:
    """Records of one file that belong to a split: `records` in all, those from `skip` to `end` are taken."""

    path: str
    records: int
    skip: int
    end: int


def shards(builder: Any, split: str) -> Iterator[Shard]:
    """The files, none missing, of a split, or of a split expression such as `train[:90%]`, in order."""
    try:
        about = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{builder.info.full_name}: split {split!r} is none of {known}, nor made of them") from error
    for one in about:
        if not epath.Path(one.filename).exists():
            raise UserError(damage(one.filename, "missing", builder.prepared_by))
        end = one.examples_in_shard if one.take < 0 else one.skip + one.take
        yield Shard(str(one.filename), one.examples_in_shard, one.skip, end)


def splits_of(data: ConfigDict, own: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The split expression of each part (`own`: the data set's), and how the rule of the split says the others."""
    chosen = {part: data[f"{part}_split"] for part in ("train", "val", "test") if data[f"{part}_split"]}
    said = "".join(f", {part} {expression}" for part, expression in chosen.items())
    return {**own, **chosen}, said


def check_apart(builder: Any, splits: Mapping[str, str]) -> None:
    """Raises UserError where the split expression of another part takes records that `train` has too."""
    trained = list(shards(builder, splits["train"]))  # an expression may take several pieces of one file
    for part, expression in splits.items():
        others = shards(builder, expression) if part != "train" else ()
        for one, other in itertools.product(others, trained):
            if one.path == other.path and max(one.skip, other.skip) < min(one.end, other.end):
                raise UserError(
                    f"config.data.{part}_split={expression!r} shares records with part train, "
                    f"config.data.train_split={splits['train']!r}; expected expressions that share none"
                )


@contextlib.contextmanager
def named_damage(path: Any, command: str) -> Iterator[None]:
    """Turns whatever reading a prepared data set raises into a `UserError` of one line.

    `path` is the file, or the folder where it is not known; `command` prepares the data set.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TensorFlow, protocol buffers, JSON and tfds raise kinds of their own
        raise UserError(damage(path, reason(error), command)) from error


def damage(path: Any, why: str, command: str) -> str:
    """The line on a file of a prepared data set that is damaged or was copied in part."""
    return f"{path}: damaged, or copied in part ({why}); remove its folder and prepare it again: {command}"
