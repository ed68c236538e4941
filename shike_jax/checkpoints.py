"""Orbax checkpoints: the rolling ones of a run, the weights at the end of each stage, and strict restore.

A work directory holds

    checkpoints/STEP/        state, optimiser and position, newest ones only (CheckpointManager, asynchronous)
    checkpoints/damaged-STEP what was found damaged and set aside
    weights/STAGE/           the network's variables at the end of each stage, with what is needed to rebuild it

Arrays are saved as plain host arrays, once per job, so that any number of devices and processes reads them. A digest of
every array's bytes lies beside them: a flipped byte is found at restore, not in the results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization, traverse_util

from shike_jax import parallel
from shike_jax.errors import UserError
from shike_jax.state import TrainState

PyTree = Any
Meta = dict[str, Any]


def digest(tree: PyTree) -> str:
    """SHA-256 (hex) over the paths, dtypes, shapes and bytes of a nested dict of host arrays."""
    total = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(tree, sep="/").items()):
        leaf = np.ascontiguousarray(leaf)
        total.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        total.update(leaf.reshape(-1).view(np.uint8))
    return total.hexdigest()


def to_tree(state: PyTree) -> PyTree:
    """A state as nested dicts of host arrays, without the empty places of frozen parameters."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(parallel.to_host(state)), sep="/")
    return traverse_util.unflatten_dict({k: np.asarray(v) for k, v in flat.items() if v is not None}, sep="/")


def restore_into(template: PyTree, tree: PyTree, where: str) -> PyTree:
    """Puts saved arrays into the structure of `template`, which must name exactly the same arrays.

    Raises:
      UserError: names missing from, or extra in, the checkpoint `where`, or an array of another shape.
    """
    target = traverse_util.flatten_dict(serialization.to_state_dict(template), sep="/", keep_empty_nodes=True)
    wanted = {k for k, v in target.items() if hasattr(v, "shape")}
    found = traverse_util.flatten_dict(tree, sep="/")
    check_names(wanted, set(found), where)
    for path in wanted:
        if target[path].shape != found[path].shape:
            raise UserError(f"{where}: {path} has shape {found[path].shape}, expected {target[path].shape}")
    filled = {k: found.get(k, v) for k, v in target.items()}
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(filled, sep="/"))


def check_names(wanted: set[str], found: set[str], where: str) -> None:
    """Raises UserError naming the first few arrays that are missing or extra."""
    for kind, names in (("lacks", sorted(wanted - found)), ("has unexpected", sorted(found - wanted))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{where}: the checkpoint {kind} {', '.join(names[:3])}{more}")


class Checkpoints:
    """The rolling checkpoints of one run."""

    def __init__(self, workdir: str, keep: int) -> None:
        """Opens `workdir/checkpoints`; `keep` newest ones stay."""
        self.root = epath.Path(workdir) / "checkpoints"
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    @property
    def manager(self) -> ocp.CheckpointManager:
        """The Orbax manager, opened at first use (it deletes what an interrupted save left behind)."""
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True, enable_async_checkpointing=True)
            self._manager = ocp.CheckpointManager(self.root, options=options)
        return self._manager

    def save(self, step: int, state: TrainState, meta: Meta) -> None:
        """Starts saving in the background; `step` counts over the whole run. Saving a step twice does nothing."""
        if step in self.manager.all_steps():
            return
        tree = to_tree(state)
        meta = {**meta, "digest": digest(tree)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self.manager.save(step, args=args)

    def latest(self) -> str | None:
        """Path of the newest checkpoint, or None."""
        step = self.manager.latest_step()
        return None if step is None else str(self.root / str(step))

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes and releases the manager."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def restore(self, say: Callable[[str], None]) -> tuple[PyTree, Meta] | None:
        """Reads the newest good checkpoint; None when there has never been one.

        Damaged ones are named (`say`), and renamed to damaged-STEP.

        Raises:
          UserError: there are checkpoints, but none is good.
        """
        if not self.root.exists():
            return None
        if parallel.is_main():
            self._set_damaged_aside(say)
        parallel.barrier("damaged checkpoints set aside")
        steps = _steps(self.root)
        if not steps:
            damaged = [p.name for p in self.root.iterdir() if p.name.startswith("damaged-")]
            if damaged:
                raise UserError(
                    f"{self.root}: no good checkpoint is left ({', '.join(sorted(damaged))}); "
                    "restore one from a copy, or start again in a new work directory"
                )
            return None
        return _read(self.root / str(steps[-1]), "state")

    def _set_damaged_aside(self, say: Callable[[str], None]) -> None:
        for step in reversed(_steps(self.root)):
            try:
                _read(self.root / str(step), "state")
                return
            except UserError as error:
                say(f"{error}; set aside as damaged-{step}")
                (self.root / str(step)).rename(self.root / f"damaged-{step}")


def save_weights(directory: Any, variables: PyTree, meta: Meta) -> None:
    """Writes the network's variables {`params`, `batch_stats`} and `meta`, wholly or not at all.

    Args:
      directory: path or bucket URL; must not exist.
      variables: nested dicts of host arrays.
      meta: JSON: `model` (the fields of config.model), `num_classes`, `image_size`, `mean`, `std`, `class_names`, ...
    """
    tree = to_tree(variables)
    args = ocp.args.Composite(
        variables=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave({**meta, "digest": digest(tree)})
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(_absolute(directory), args=args)


def load_weights(directory: Any) -> tuple[PyTree, Meta]:
    """Reads weights: a folder of `save_weights`, or a work directory (the end of its last finished stage).

    Raises:
      UserError: nothing there, or damaged.
    """
    path = _absolute(directory)
    if not path.exists():
        raise UserError(f"checkpoint {directory}: no such folder")
    if (path / "weights").is_dir():
        stages = [(p, _read(p, "variables")) for p in (path / "weights").iterdir() if not _temporary(p)]
        if not stages:
            raise UserError(f"checkpoint {directory}: no stage has been finished yet (weights/ is empty)")
        return max((loaded for _, loaded in stages), key=lambda loaded: loaded[1].get("stage_index", 0))
    if not (path / "variables").is_dir():
        raise UserError(f"checkpoint {directory}: neither a work directory with weights/ nor a folder of saved weights")
    return _read(path, "variables")


def remove_unfinished(directory: Any) -> None:
    """Deletes what an interrupted `save_weights` left in a folder of weights."""
    path = _absolute(directory)
    if path.exists():
        for child in path.iterdir():
            if _temporary(child):
                child.rmtree()


def _read(path: epath.Path, item: str) -> tuple[PyTree, Meta]:
    """Restores one checkpoint and compares its digest."""
    args: Mapping[str, Any] = {item: ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            loaded = checkpointer.restore(path, args=ocp.args.Composite(**args))
        tree, meta = loaded[item], dict(loaded["meta"])
        good = digest(tree) == meta.get("digest")
    except Exception as error:  # a damaged file can fail anywhere below: parsing, checksums, missing keys
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"checkpoint {path} is damaged: {reason}") from error
    if not good:
        raise UserError(f"checkpoint {path} is damaged: its arrays do not match their digest")
    return tree, meta


def _steps(root: epath.Path) -> list[int]:
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit())


def _temporary(path: epath.Path) -> bool:
    return "orbax-checkpoint-tmp" in path.name


def _absolute(directory: Any) -> epath.Path:
    path = epath.Path(directory)
    return path if "://" in str(directory) else path.expanduser().absolute()
