"""What a disk or an object store can do to a run, said in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from shike_jax.common import buckets
from shike_jax.errors import UserError, causes
from shike_jax.storage.checkpoints import newest_checkpoint

_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE)
_WORDS = ("no space left on device", "disk quota exceeded", "read-only file system", "file too large")


def disk_trouble(error: BaseException | None) -> str:
    """The reason when an exception, or one that caused it, says that the disk takes no more; empty otherwise.

    Orbax and TensorStore wrap the system's error in exceptions of other kinds, so its words are looked for too.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in _ERRORS:
            return cause.strerror or str(cause)
        text = str(cause).lower()
        for words in _WORDS:
            if words in text:
                return words[0].upper() + words[1:]
    return ""


@contextlib.contextmanager
def naming_disk_trouble(workdir: Path, runs: Sequence[Path] = ()) -> Iterator[None]:
    """What a disk or a store does to a run in here becomes one line; that of a disk names its newest checkpoint.

    `runs` are the directories of several runs below it; empty: it is one run's. TryAgain where an object store failed
    in another way than by refusing what this user may not do.
    """
    try:
        yield
    except Exception as error:
        if buckets.in_bucket(workdir) and (said := buckets.trouble(error)):
            raise type(said)(f"--workdir={workdir}: {said}") from error
        if reason := disk_trouble(error):
            good = ", ".join(filter(None, map(newest_checkpoint, runs or [workdir]))) or "none"
            message = f"--workdir={workdir}: {reason}; last good checkpoint: {good}; make room and start again"
            raise UserError(message) from error
        raise


def check_present(workdir: Path) -> None:
    """Raises UserError when the work directory was removed or moved while its run was training."""
    if not (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir}: it, or its config.json, was removed while training; nothing more can be saved there"
        )
