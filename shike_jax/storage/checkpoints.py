"""The rolling checkpoints of a run. A work directory, in a folder or a bucket, holds

    checkpoints/STEP/        state, optimiser and position: the newest ones, the starts of stages, and every K-th step
    checkpoints/damaged-STEP what was found damaged and set aside
    newest_checkpoint.json   the step saved last

Orbax saves the state's global arrays in the background, all processes together; every process reads them from there.
Two things are done here because Orbax does not do them: a damaged checkpoint is set aside and an older one taken, where
Orbax would end; and a note of the step saved last tells a run whose checkpoints are gone from a new one.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from shike_jax.cluster import parallel
from shike_jax.common import buckets
from shike_jax.common.atomic import write_json
from shike_jax.common.text import parse_json
from shike_jax.errors import UserError
from shike_jax.storage.folders import Meta, PyTree, absolute, alone, is_finished, read_saved, seal
from shike_jax.storage.reading import Damaged, patiently
from shike_jax.storage.trees import digest, to_tree

_DAMAGED = "damaged-"


class Checkpoints:
    """The rolling checkpoints of one run; all processes of a job call each method together."""

    def __init__(self, workdir: Any, keep: int, every: int = 0, always: Iterable[int] = ()) -> None:
        """Of `workdir/checkpoints` the `keep` newest stay, multiples of `every` (0: none), and the steps `always`."""
        self.root = absolute(workdir) / "checkpoints"
        policies = checkpoint_managers.preservation_policy
        stay = [policies.LatestN(keep), policies.CustomSteps(list(always))]
        self._policy = policies.AnyPreservationPolicy([*stay, policies.EveryNSteps(every)] if every else stay)
        # In a bucket the main process alone saves, to its own disk, and copies what is complete.
        self._staging = tempfile.TemporaryDirectory(prefix="shike_jax-") if buckets.in_bucket(self.root) else None
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._sealing: Future | None = None
        self._note = absolute(workdir) / "newest_checkpoint.json"

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """The Orbax manager, opened at first use (it deletes what an interrupted save left)."""
        if self._staging is not None:
            own = ocp.CheckpointManagerOptions(max_to_keep=1, create=False, multiprocessing_options=alone())
            return ocp.CheckpointManager(self._staging.name, options=own)
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
        seal(folder)
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
        return newest_checkpoint(self.root.parent)

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

        Every process reads it once, not once for each of its devices. Damaged ones are named (`say`) and set aside.
        UserError where there are, or have been, checkpoints, but none is good, or they must not be read. TryAgain where
        one cannot be read now: nothing is changed then, and no older one is taken instead.
        """
        known = self._noted_step()
        while True:
            steps = patiently(self.root, lambda: _steps(self.root)) if parallel.is_main() else []
            if (step := parallel.from_main(max(steps, default=None))) is None:
                break
            path = self.root / str(step)
            if not path.exists():
                raise UserError(f"{path}: process {jax.process_index()} finds no such folder; expected a shared one")
            try:
                loaded = read_saved(path, "state")
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

    def _noted_step(self) -> int | None:
        if not patiently(self._note, self._note.exists):
            return None
        try:
            return int(parse_json(self._note.read_text(encoding="utf-8"))["step"])
        except (ValueError, KeyError, TypeError):
            return -1  # unreadable, but there: something had been saved


def newest_checkpoint(workdir: Any) -> str | None:
    """Path of the newest finished checkpoint of a work directory; None without one."""
    root = absolute(workdir) / "checkpoints"
    steps = _steps(root)
    return str(root / str(steps[-1])) if steps else None


def _set_aside(path: epath.Path) -> str:
    """Renames STEP to damaged-STEP, or damaged-STEP-2 and so on; returns the new name."""
    names = (f"{_DAMAGED}{path.name}{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    name = next(name for name in names if not (path.parent / name).exists())
    buckets.rename_tree(path, path.parent / name)
    return name


def _steps(root: epath.Path) -> list[int]:
    if not root.exists():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and is_finished(p))
