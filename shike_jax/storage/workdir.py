"""The work directory: which run it belongs to, whether it is finished, and its results."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shike_jax.cluster import preemption
from shike_jax.common import buckets
from shike_jax.common.atomic import write_json
from shike_jax.common.text import parse_json
from shike_jax.config.fields import flat, may_change, with_defaults
from shike_jax.errors import UserError, naming
from shike_jax.storage import lease, writers
from shike_jax.storage.folders import is_finished

CLAIM_SECONDS = 600  # how long a process that uses the same work directory is waited for


def examine(path: Path, config: Mapping[str, Any], tell: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """The results of a run of this configuration (plain data) when it is finished in a work directory, else None.

    Changes nothing but a damaged results.json; `tell` gets a line for each speed switch of version 0.1 that the run had
    on. UserError where the directory holds something else, or what a run of another configuration has saved.
    """
    saved = path / "config.json"
    if not saved.exists() and path.exists() and any(p.name not in ("log.txt", lease.NAME) for p in path.iterdir()):
        raise UserError(f"--workdir={path}: not empty and not a run of this program; expected a new directory")
    differ = _differing(saved, config, tell)
    if differ and _has_saved(path):
        raise UserError(
            f"--workdir={path} belongs to another configuration: {', '.join(differ[:4])} differ"
            f"{' and others' if len(differ) > 4 else ''}; expected a new directory or the same settings"
        )
    results = path / "results.json"
    return _read_results(results) if results.exists() else None


def _differing(saved: Path, config: Mapping[str, Any], tell: Callable[[str], None] | None = None) -> list[str]:
    """The fields that keep a run from continuing the one whose configuration is `saved`; none without the file."""
    if not saved.exists():
        return []
    try:
        known = flat(with_defaults(dict(parse_json(saved.read_text(encoding="utf-8"))), tell))
    except (ValueError, TypeError) as error:
        raise UserError(f"{saved}: not valid JSON ({error}); expected the configuration of the run here") from error
    wanted = flat(with_defaults(config))
    return [path for path in sorted(known | wanted) if known.get(path) != wanted.get(path) and not may_change(path)]


@contextlib.contextmanager
def opened(path: Path, config: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Creates or continues a work directory, which is this process's alone while the body runs.

    A run that has saved no step leaves nothing there when the body fails, and one that was killed before its first step
    does not keep another configuration out. Of several processes of a job only the main one calls this. Yields the
    results of a run that is already finished, else None. UserError, and nothing is changed, where the directory is not
    writable, in use, or of another configuration.
    """
    if not buckets.in_bucket(path):
        with naming(f"--workdir={path}", "a directory that is there or can be created"):
            path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise UserError(f"--workdir={path}: not writable")
    finished = examine(path, config, print)
    if finished is not None:
        yield finished
        return
    with claimed(path):
        finished = examine(path, config)  # the process that was waited for may have finished the run
        if _differing(path / "config.json", config):
            _remove_start(path)
        if not (path / "config.json").exists():
            write_json(path / "config.json", config)
        try:
            yield finished
        except BaseException:
            discard_untrained(path)
            raise


@contextlib.contextmanager
def claimed(path: Path, patience: float = CLAIM_SECONDS) -> Iterator[None]:
    """Keeps other processes out of a work directory while the body runs: two would overwrite each other's checkpoints.

    A process that is there already is waited for (`patience` seconds): a job that was stopped may take a while to end,
    and its successor should not fail for that. The lock lies on the directory itself and ends with the process, however
    that ends; a file system without locks gives none. In a bucket it is a lease (`lease`). UserError where another
    process still has it, Preempted where this one is asked to stop while waiting.
    """
    waiting = _moments(path, patience)
    with _leased(path, waiting) if buckets.in_bucket(path) else _locked(path, waiting):
        yield


def _moments(path: Path, patience: float) -> Iterator[None]:
    """Each `next` waits for a moment: UserError when it has lasted too long, Preempted when asked to stop."""
    until = time.monotonic() + patience
    print(f"{path} is in use by another process: waiting for its end (at most {patience:.0f} s)")
    while time.monotonic() < until:
        if preemption.asked():
            raise preemption.Preempted(f"stopped while another process was using {path}: nothing was begun")
        time.sleep(0.5)
        yield
    raise UserError(f"--workdir={path}: in use by another process, still after {patience:.0f} s; stop that first")


@contextlib.contextmanager
def _locked(path: Path, waiting: Iterator[None]) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                    break
                os.close(descriptor)  # the process that was waited for has removed its directory
                path.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDONLY)
            except BlockingIOError:
                next(waiting)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


_leases: dict[Any, lease.Lease] = {}  # that this process holds, by work directory


@contextlib.contextmanager
def _leased(path: Any, waiting: Iterator[None]) -> Iterator[None]:
    own = lease.Lease(path)
    known, since = None, time.monotonic()
    while True:
        found = own.seen()
        if found is None and own.take():
            break
        if found != known:
            known, since = found, time.monotonic()
        elif found is not None and time.monotonic() - since > lease.LEASE_SECONDS:
            own.abandoned(found)  # nobody has renewed it: its job was killed
            continue
        next(waiting)
    _leases[path] = own
    try:
        yield
    finally:
        _leases.pop(path).release()


def discard_untrained(*paths: Path) -> None:
    """Removes what runs that have saved no step wrote, so that a corrected command can begin."""
    for path in paths:
        if not _has_saved(path):
            _remove_start(path)
            if not buckets.in_bucket(path) and path.exists() and not any(path.iterdir()):
                path.rmdir()
        if path in _leases:  # this process may end without coming to the end of `claimed`
            _leases[path].release()


def _has_saved(path: Path) -> bool:
    """Whether a run has saved a step, a stage's weights or results here; a save that was cut off does not count."""
    names = ("checkpoints/*", "weights/*", "newest_checkpoint.json", "results.json")
    found = (found for name in names for found in path.glob(name))
    return any(is_finished(one) if one.is_dir() else True for one in found)


def _remove_start(path: Path) -> None:
    for name in ("tensorboard", "profile", "checkpoints", "weights", *writers.FOLDERS):
        buckets.remove_tree(path / name)
    files = ("log.txt", "metrics.jsonl", *writers.CONTINUED_BY, "split.csv", "files.npz")
    for name in (*files, "config.json"):  # no run's without the last
        (path / name).unlink(missing_ok=True)


def _read_results(path: Path) -> dict[str, Any] | None:
    """The results of a finished run; None, and the file set aside, when it is damaged: the run's end is repeated."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        float(found["top1"])
        return found
    except (ValueError, KeyError, TypeError) as error:
        aside = path.with_name(f"damaged-{path.name}")
        print(f"{path} is damaged ({type(error).__name__}: {error}); set aside as {aside.name}", file=sys.stderr)
        path.replace(aside)
        return None
