"""One folder as Orbax saves it, in a folder or a bucket: whether it is finished, how it is sealed and read.

Two things are done here because Orbax does not do them: a digest over all arrays in the metadata, and a manifest of the
files, tell damage from a store that does not answer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from shike_jax.common import buckets
from shike_jax.common.atomic import write_json
from shike_jax.common.text import parse_json, some
from shike_jax.errors import reason
from shike_jax.storage.reading import Damaged, is_forbidden, is_of_the_system, patiently
from shike_jax.storage.trees import digest

PyTree = Any
Meta = dict[str, Any]
MANIFEST = "manifest.json"  # {relative path: SHA-256 in hex} of every other file


def absolute(directory: Any) -> epath.Path:
    """The place that a path or bucket URL names."""
    path = buckets.place(str(directory))
    return epath.Path(path if buckets.in_bucket(path) else path.expanduser().absolute())


def is_finished(path: epath.Path) -> bool:
    """Whether a save has come to its end there: a folder gets its name then, and in a bucket Orbax's mark."""
    if buckets.in_bucket(path):
        return bool((path / buckets.COMMITTED).exists())
    return "orbax-checkpoint-tmp" not in path.name


def seal(folder: epath.Path) -> None:
    """Adds the manifest to a finished local folder."""
    _forget_place(folder)
    files = {str(p.relative_to(folder)): _file_digest(p) for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    write_json(Path(folder / MANIFEST), files)


def _forget_place(folder: epath.Path) -> None:
    """Takes the absolute path out of Orbax's marks of completion: weights that are given away do not name a machine."""
    for place in (folder, *(child for child in folder.iterdir() if child.is_dir())):
        if (place / buckets.COMMITTED).exists():
            (place / buckets.COMMITTED).write_text("Checkpoint commit was successful", encoding="utf-8")


def _changes(folder: epath.Path) -> list[str]:
    """Says of each file in the manifest that is missing or has changed; an OSError says nothing of what is in a file.

    A folder that was finished in the moment before a kill has no manifest yet.
    """
    try:
        listed = dict(parse_json((folder / MANIFEST).read_text(encoding="utf-8")))
    except ValueError as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    changes = []
    for name, expected in listed.items():
        try:
            if _file_digest(Path(folder / name)) != expected:
                changes.append(f"{name} has changed")
        except (FileNotFoundError, NotADirectoryError):
            changes.append(f"{name} is missing")
    return changes


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_saved(path: epath.Path, item: str) -> tuple[PyTree, Meta]:
    """Restores one checkpoint after comparing its files with their manifest, and its arrays with their digest."""

    def read() -> tuple[PyTree, Meta]:
        with buckets.downloaded(path) as folder:
            return _read_once(epath.Path(folder), item, path)

    return patiently(f"checkpoint {path}", read)


def read_meta(path: epath.Path) -> Meta:
    """The facts of one checkpoint, without its arrays and not compared with its digest."""

    def read() -> Meta:
        try:
            with buckets.downloaded(path / "meta") as folder:
                return dict(ocp.JsonCheckpointHandler().restore(epath.Path(folder)))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError) as error:
            raise Damaged(f"checkpoint {path} is damaged: {reason(error)}") from error

    return patiently(f"checkpoint {path}", read)


def _read_once(folder: epath.Path, item: str, path: epath.Path) -> tuple[PyTree, Meta]:
    if changed := _changes(folder):
        raise Damaged(f"checkpoint {path} is damaged: {some(changed, 1)}")
    orbax = checkpointer()
    try:
        arrays = ocp.args.StandardRestore(_targets(folder / item))
        args = ocp.args.Composite(**{item: arrays, "meta": ocp.args.JsonRestore()})
        loaded = orbax.restore(folder, args=args)
        tree, meta = loaded[item], dict(loaded["meta"])
        good = digest(tree) == meta.get("digest")
    except Exception as error:
        # Files that agree with their manifest are good, whatever fails. Without one, a missing or short file can fail
        # anywhere below: parsing, checksums, missing keys.
        if (folder / MANIFEST).exists() or is_forbidden(error) or is_of_the_system(error):
            raise
        raise Damaged(f"checkpoint {path} is damaged: {reason(error)}") from error
    finally:
        orbax.close()
    if not good:
        raise Damaged(f"checkpoint {path} is damaged: its arrays do not match their digest")
    return tree, meta


def _targets(folder: epath.Path) -> PyTree:
    """Empty host arrays of what lies there: without them Orbax would look for the devices that saved it."""
    found = ocp.StandardCheckpointHandler().metadata(folder).tree
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), found)


def alone() -> ocp.options.MultiprocessingOptions:
    """Orbax works on this process without waiting for others."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )


def checkpointer() -> ocp.Checkpointer:
    """Saves and restores on this process alone."""
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone()))
    return ocp.Checkpointer(handler, multiprocessing_options=alone())
