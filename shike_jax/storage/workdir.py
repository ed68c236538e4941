"""The work directory: which run it belongs to, whether it is finished, and its results."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shike_jax.cluster import preemption
from shike_jax.common.errors import UserError
from shike_jax.common.text import parse_json
from shike_jax.storage.atomic import write_json

CLAIM_SECONDS = 600  # how long a process that uses the same work directory is waited for

# Fields that may differ when a run continues: how it is watched, how its step is compiled and where its data lie.
# Another number of steps per call or of devices, or another backend, adds float32 numbers in another order, which
# training amplifies: such a run is as valid as an undisturbed one, but not equal to it bit for bit. results.json lists
# the starts of a run with these numbers.
FREE = (
    "log",
    "train.steps_per_call",
    "train.eval_every_epochs",
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.tensorboard",
    "train.pictures",
    "train.profile",
    "train.backend",
    "train.cpu_devices",
    "train.peer_timeout",
    "eval.batch_size",
    "data.data_dir",
    "data.root",
    "data.table",
    "data.threads",
    "init_from",
)


def open_workdir(
    path: Path, config: Mapping[str, Any], complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
) -> dict[str, Any] | None:
    """Creates or re-opens a work directory; on several processes only the main one does.

    Args:
      path: the directory.
      config: the run's configuration as plain data.
      complete: adds the defaults of fields that a configuration written by older code lacks.

    Returns:
      The results of a run that is already finished, else None.

    Raises:
      UserError: not writable, or it belongs to another configuration. Nothing is changed then.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={path}: cannot be created ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"--workdir={path}: not writable")
    saved = path / "config.json"
    if saved.exists():
        try:
            known = complete(dict(parse_json(saved.read_text())))
        except (ValueError, TypeError) as error:
            raise UserError(f"{saved}: not valid JSON ({error}); expected the configuration of the run here") from error
        differ = [key for key in differences(known, config) if key not in FREE]
        if differ:
            raise UserError(
                f"--workdir={path} belongs to another configuration: {', '.join(differ[:4])} differ"
                f"{' and others' if len(differ) > 4 else ''}; expected a new directory or the same settings"
            )
    else:
        if any(p.name not in ("log.txt",) for p in path.iterdir()):
            raise UserError(f"--workdir={path}: not empty and not a run of this program; expected a new directory")
        write_json(saved, config)
    results = path / "results.json"
    return _read_results(results) if results.exists() else None


@contextlib.contextmanager
def claimed(path: Path, patience: float = CLAIM_SECONDS) -> Iterator[bool]:
    """Keeps other processes out of a work directory while the body runs: two would overwrite each other's checkpoints.

    A process that is there already is waited for: a job that was stopped may take a while to end, and its successor
    should not fail for that. The lock lies on the directory itself and ends with the process, however that ends; a
    file system without locks gives none.

    Args:
      path: the directory.
      patience: seconds to wait.

    Yields:
      Whether another process was waited for; it may have finished the run.

    Raises:
      UserError: another process still has it.
      Preempted: asked to stop while waiting.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    descriptor, waited, until = os.open(path, os.O_RDONLY), False, time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise UserError(
                        f"--workdir={path}: in use by another process, still after {patience:.0f} s; stop that first"
                    ) from None
            except OSError:
                break
            if preemption.asked():
                raise preemption.Preempted(f"stopped while another process was using {path}: nothing was begun")
            if not waited:
                print(f"{path} is in use by another process: waiting for its end (at most {patience:.0f} s)")
            waited = True
            time.sleep(0.5)
        yield waited
    finally:
        os.close(descriptor)


def discard_untrained(path: Path) -> None:
    """Removes what the start of a run wrote when it failed before any training, so that a mended command can begin."""
    if any((path / name).exists() for name in ("checkpoints", "weights", "results.json")):
        return
    shutil.rmtree(path / "tensorboard", ignore_errors=True)
    for name in ("config.json", "log.txt", "metrics.jsonl", "split.csv", "files.npz"):
        (path / name).unlink(missing_ok=True)
    if path.exists() and not any(path.iterdir()):
        path.rmdir()


def _read_results(path: Path) -> dict[str, Any] | None:
    """The results of a finished run; None, and the file set aside, when it is damaged: the run's end is repeated."""
    try:
        found = parse_json(path.read_text())
        float(found["top1"])
        return found
    except (ValueError, KeyError, TypeError) as error:
        aside = path.with_name(f"damaged-{path.name}")
        print(f"{path} is damaged ({type(error).__name__}: {error}); set aside as {aside.name}", file=sys.stderr)
        os.replace(path, aside)
        return None


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two plain configurations differ."""
    found = []
    for key in sorted(set(one) | set(other)):
        a, b, name = one.get(key), other.get(key), prefix + key
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(name)
    return found
