"""Orbax checkpoints: the rolling ones of a run, the weights at the end of each stage, and strict restore.

A work directory, in a folder or a bucket, holds

    checkpoints/STEP/        state, optimiser and position: the newest ones, the starts of stages, and every K-th step
    checkpoints/damaged-STEP what was found damaged and set aside
    newest_checkpoint.json   the step saved last
    weights/STAGE/           the network's variables at the end of each stage, with what is needed to rebuild it

Orbax saves the state's global arrays in the background, all processes together; every process reads them from there.
Three things are done here because Orbax does not do them: a digest over all arrays in the metadata, and a manifest of
the files, tell damage from a store that does not answer; a damaged checkpoint is set aside and an older one taken,
where Orbax would end; and a note of the step saved last tells a run whose checkpoints are gone from a new one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization, traverse_util
from orbax.checkpoint import checkpoint_managers

from shike_jax.cluster import parallel
from shike_jax.common import buckets
from shike_jax.common.atomic import write_json
from shike_jax.common.text import parse_json
from shike_jax.errors import UserError
from shike_jax.storage import hub_form, manifest
from shike_jax.storage.reading import Damaged, is_forbidden, is_of_the_system, patiently

PyTree = Any
Meta = dict[str, Any]
_DAMAGED = "damaged-"


def digest(tree: PyTree) -> str:
    """SHA-256 (hex) over the paths, dtypes, shapes and bytes of a nested dict of host arrays."""
    total = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(tree, sep="/").items()):
        leaf = np.ascontiguousarray(leaf)
        total.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        total.update(leaf.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def to_tree(state: PyTree) -> PyTree:
    """A state as nested dicts of arrays, without the empty places of frozen parameters."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state), sep="/")
    return traverse_util.unflatten_dict({k: v for k, v in flat.items() if v is not None}, sep="/")


def restore_into(template: PyTree, tree: PyTree, where: str) -> PyTree:
    """Puts saved arrays into the structure of `template`, which must name exactly the same arrays.

    Raises:
      UserError: names missing from, or extra in, the checkpoint `where`, or an array of another shape.
    """
    target = traverse_util.flatten_dict(serialization.to_state_dict(template), sep="/", keep_empty_nodes=True)
    wanted = {k for k, v in target.items() if hasattr(v, "shape")}
    saved = traverse_util.flatten_dict(tree, sep="/")
    check_names(wanted, set(saved), where)
    for path in wanted:
        if target[path].shape != saved[path].shape:
            raise UserError(f"{where}: {path} has shape {saved[path].shape}, expected {target[path].shape}")
    filled = {k: saved.get(k, v) for k, v in target.items()}
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(filled, sep="/"))


def check_names(wanted: set[str], present: set[str], where: str) -> None:
    """Raises UserError naming the first few arrays that are missing or extra."""
    for kind, names in (("lacks", sorted(wanted - present)), ("has unexpected", sorted(present - wanted))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{where}: the checkpoint {kind} {', '.join(names[:3])}{more}")


class Checkpoints:
    """The rolling checkpoints of one run; all processes of a job call each method together."""

    def __init__(self, workdir: Any, keep: int, every: int = 0, always: Iterable[int] = ()) -> None:
        """Opens `workdir/checkpoints`, of which the `keep` newest stay.

        Args:
          every: checkpoints at multiples of that step stay too; 0: none.
          always: so do those of these steps.
        """
        self.root = _absolute(workdir) / "checkpoints"
        policies = checkpoint_managers.preservation_policy
        stay = [policies.LatestN(keep), policies.CustomSteps(list(always))]
        self._policy = policies.AnyPreservationPolicy([*stay, policies.EveryNSteps(every)] if every else stay)
        # In a bucket the main process alone saves, to its own disk, and copies what is complete.
        self._staging = tempfile.TemporaryDirectory(prefix="shike_jax-") if buckets.in_bucket(self.root) else None
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._sealing: Future | None = None
        # Which step was saved last: tells a run whose checkpoints are gone from one that never had any.
        self._note = _absolute(workdir) / "newest_checkpoint.json"

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """The Orbax manager, opened at first use (it deletes what an interrupted save left)."""
        if self._staging is not None:
            alone = ocp.CheckpointManagerOptions(max_to_keep=1, create=False, multiprocessing_options=_alone())
            return ocp.CheckpointManager(self._staging.name, options=alone)
        if parallel.is_main():
            self.root.mkdir(parents=True, exist_ok=True)
        parallel.barrier("folder of checkpoints")
        shared = {"create": False, "cleanup_tmp_directories": True, "preservation_policy": self._policy}
        return ocp.CheckpointManager(self.root, options=ocp.CheckpointManagerOptions(**shared))

    def save(self, step: int, state: PyTree, meta: Meta) -> None:
        """Starts saving in the background; `step` counts over the whole run. Saving a step twice does nothing."""
        self._finish()
        if self._staging is not None and not parallel.is_main():
            return
        if step in self._manager.all_steps():
            return
        tree = to_tree(state)
        host = parallel.to_host(tree) if parallel.is_main() else None
        meta = {**meta, "digest": digest(host) if parallel.is_main() else ""}
        arrays = ocp.args.StandardSave(parallel.to_global(tree) if self._staging is None else host)
        args = ocp.args.Composite(state=arrays, meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)
        if parallel.is_main():
            self._sealing = self._worker.submit(self._seal, step)

    def _seal(self, step: int) -> None:
        """Adds the manifest when Orbax has finished with a checkpoint, and notes it; main process only."""
        while self._manager.is_saving_in_progress():
            time.sleep(0.02)
        folder = (epath.Path(self._staging.name) if self._staging else self.root) / str(step)
        if not folder.exists():  # what went wrong is raised by `_finish`
            return
        _forget_place(folder)
        manifest.write(folder)
        if self._staging is not None:
            buckets.remove_tree(self.root / str(step))  # parts of an earlier copy that was cut off
            buckets.upload(Path(folder), self.root / str(step))
            self._tidy()
        write_json(self._note, {"step": step})

    def _tidy(self) -> None:
        """Removes from a bucket what the policy does not keep, and copies that were cut off."""
        found = [SimpleNamespace(step=step) for step in _steps(self.root)]
        kept = self._policy.should_preserve(found, context=None)
        stay = {str(one.step) for one, keep in zip(found, kept, strict=True) if keep}
        for path in list(self.root.iterdir()):
            if path.name.isdigit() and path.name not in stay:
                buckets.remove_tree(path)

    def _finish(self) -> None:
        """Waits for the save in progress; raises what went wrong in it."""
        if "_manager" in vars(self):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.result()

    def latest(self) -> str | None:
        """Path of the newest checkpoint, once it is on disk; None without one."""
        self._finish()
        steps = _steps(self.root)
        return str(self.root / str(steps[-1])) if steps else None

    def wait(self) -> None:
        """Returns, on every process, when everything is on disk."""
        self._finish()
        parallel.barrier("checkpoints written")

    def close(self) -> None:
        """Waits, then releases everything; nothing can be saved afterwards."""
        self.wait()
        self._worker.shutdown()
        if self._staging is not None:
            self._staging.cleanup()

    def restore(self, say: Callable[[str], None]) -> tuple[PyTree, Meta] | None:
        """Reads the newest good checkpoint: host arrays, the same on every process; None when there was never one.

        Every process reads it once from where it lies, not once for each of its devices.

        Damaged ones are named (`say`), and renamed to damaged-STEP.

        Raises:
          UserError: there are, or have been, checkpoints, but none is good; or they must not be read.
          TryAgain: one cannot be read now; nothing is changed then, and no older one is taken instead.
        """
        known = self._noted_step()
        while (step := parallel.from_main(self._newest() if parallel.is_main() else None)) is not None:
            path = self.root / str(step)
            if not path.exists():
                raise UserError(f"{path}: process {jax.process_index()} finds no such folder; expected a shared one")
            try:
                loaded = _read(path, "state")
            except Damaged as error:  # the same bytes: every process comes here
                parallel.barrier("damaged checkpoint")
                if parallel.is_main():
                    say(f"{error}; set aside as {_set_aside(path)}")
                continue
            if known is not None and step < known:
                say(f"{self.root}: step {known} had been saved and is not there any more; going on from step {step}")
            return loaded
        damaged = sorted(p.name for p in self.root.iterdir() if _DAMAGED in p.name) if self.root.exists() else []
        if damaged or known is not None:
            raise UserError(
                f"{self.root}: no good checkpoint is left ({', '.join(damaged) or f'step {known} had been saved'}); "
                "restore one from a copy, or start again in a new work directory"
            )
        return None

    def _newest(self) -> int | None:
        steps = patiently(self.root, lambda: _steps(self.root))
        return steps[-1] if steps else None

    def _noted_step(self) -> int | None:
        if not patiently(self._note, self._note.exists):
            return None
        try:
            return int(parse_json(self._note.read_text())["step"])
        except (ValueError, KeyError, TypeError):
            return -1  # unreadable, but there: something had been saved


def newest_checkpoint(workdir: Any) -> str | None:
    """Path of the newest finished checkpoint of a work directory; None without one."""
    root = _absolute(workdir) / "checkpoints"
    steps = _steps(root)
    return str(root / str(steps[-1])) if steps else None


def _set_aside(path: epath.Path) -> str:
    """Renames STEP to damaged-STEP, or damaged-STEP-2 and so on; returns the new name."""
    endings = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    names = (f"{_DAMAGED}{path.name}{ending}" for ending in endings)
    name = next(name for name in names if not (path.parent / name).exists())
    buckets.rename_tree(path, path.parent / name)
    return name


def save_weights(directory: Any, variables: PyTree, meta: Meta) -> None:
    """Writes the network's variables {`params`, `batch_stats`} and `meta`, wholly or not at all.

    On several processes the main one writes; all return when it has.

    Args:
      directory: path or bucket URL; what is there is replaced (in a bucket: removed, then written).
      variables: nested dicts of host arrays.
      meta: JSON: `model` (the fields of config.model), `num_classes`, `image_size`, `mean`, `std`, `class_names`,
        `class_counts` (training images of each class), ...
    """
    if parallel.is_main():
        tree = to_tree(parallel.to_host(variables))
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave({**meta, "digest": digest(tree)})
        )
        target = _absolute(directory)
        with buckets.staged(target) as folder, _checkpointer() as checkpointer:
            checkpointer.save(folder, args=args, force=True)
            _forget_place(epath.Path(folder))
            manifest.write(epath.Path(folder))
    parallel.barrier("weights written")


def give_away(directory: Any, variables: PyTree, meta: Meta) -> None:
    """Writes a network's variables as `hub_form.save` does, which `load_weights` reads; arguments as `save_weights`."""
    tree = to_tree(variables)
    hub_form.save(_absolute(directory), tree, {**meta, "digest": digest(tree)})


def push_weights(name: str, variables: PyTree, meta: Meta, private: bool) -> str:
    """As `give_away`, to a hub; returns the address. Other arguments as `hub_form.push`."""
    tree = to_tree(variables)
    return hub_form.push(name, tree, {**meta, "digest": digest(tree)}, private)


def load_weights(directory: Any) -> tuple[PyTree, Meta]:
    """Reads weights: a folder of `save_weights` or `give_away`, one that holds such a folder as `weights`, a work
    directory, or `hf://OWNER/NAME`.

    Of a work directory, the weights at the end of its last finished stage are read.

    Raises:
      UserError: nothing there, or damaged.
    """
    hub = str(directory).startswith(hub_form.PREFIX)
    path = hub_form.fetch(str(directory)) if hub else _absolute(directory)
    if not patiently(path, path.exists):
        raise UserError(f"checkpoint {directory}: no such folder")
    # Results that were given away: one set of weights next to them.
    if (path / "weights" / "variables").is_dir() or (path / "weights" / hub_form.WEIGHTS).exists():
        path = path / "weights"
    if (path / hub_form.WEIGHTS).exists():
        return patiently(f"checkpoint {path}", lambda: _read_given(path))
    if (path / "weights").is_dir():
        stages = [(p, _read(p, "variables")) for p in (path / "weights").iterdir() if is_finished(p)]
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
            if not is_finished(child):
                child.rmtree()


def _read_given(path: epath.Path) -> tuple[PyTree, Meta]:
    tree, meta = hub_form.load(path)
    if "digest" in meta and digest(tree) != meta["digest"]:
        raise Damaged(f"checkpoint {path} is damaged: its arrays do not match their digest")
    return tree, meta


def _read(path: epath.Path, item: str) -> tuple[PyTree, Meta]:
    """Restores one checkpoint after comparing its files with their manifest, and its arrays with their digest.

    Raises:
      Damaged, UserError, TryAgain: as `patiently` tells them apart.
    """

    def read() -> tuple[PyTree, Meta]:
        with buckets.downloaded(path) as folder:
            return _read_once(epath.Path(folder), item, path)

    return patiently(f"checkpoint {path}", read)


def _read_once(folder: epath.Path, item: str, path: epath.Path) -> tuple[PyTree, Meta]:
    """Args: folder: local. path: for messages."""
    if changed := manifest.differences(folder):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Damaged(f"checkpoint {path} is damaged: {changed[0]}{more}")
    checkpointer = _checkpointer()
    try:
        arrays = ocp.args.StandardRestore(_targets(folder / item))
        args = ocp.args.Composite(**{item: arrays, "meta": ocp.args.JsonRestore()})
        loaded = checkpointer.restore(folder, args=args)
        tree, meta = loaded[item], dict(loaded["meta"])
        good = digest(tree) == meta.get("digest")
    except Exception as error:
        # Files that agree with their manifest are good, whatever fails. Without one, a missing or short file can fail
        # anywhere below: parsing, checksums, missing keys.
        if (folder / manifest.NAME).exists() or is_forbidden(error) or is_of_the_system(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise Damaged(f"checkpoint {path} is damaged: {reason}") from error
    finally:
        checkpointer.close()
    if not good:
        raise Damaged(f"checkpoint {path} is damaged: its arrays do not match their digest")
    return tree, meta


def _targets(folder: epath.Path) -> PyTree:
    """Empty host arrays of what lies there: without them Orbax would look for the devices that saved it."""
    found = ocp.StandardCheckpointHandler().metadata(folder).tree
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), found)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax works on this process without waiting for others."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )


def _checkpointer() -> ocp.Checkpointer:
    options = ocp.CompositeOptions(multiprocessing_options=_alone())
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=_alone())


def _forget_place(folder: epath.Path) -> None:
    """Takes the absolute path out of Orbax's marks of completion: weights that are given away do not name a machine."""
    for place in (folder, *(child for child in folder.iterdir() if child.is_dir())):
        if (place / buckets.COMMITTED).exists():
            (place / buckets.COMMITTED).write_text("Checkpoint commit was successful")


def _steps(root: epath.Path) -> list[int]:
    if not root.exists():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and is_finished(p))


def is_finished(path: epath.Path) -> bool:
    """Whether a save has come to its end there: a folder gets its name then, and in a bucket Orbax's mark."""
    if buckets.in_bucket(path):
        return bool((path / buckets.COMMITTED).exists())
    return "orbax-checkpoint-tmp" not in path.name


def _absolute(directory: Any) -> epath.Path:
    path = buckets.place(str(directory))
    return epath.Path(path if buckets.in_bucket(path) else path.expanduser().absolute())
