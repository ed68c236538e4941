"""What a disk can do to a run, said in one line."""

from __future__ import annotations

import errno
from pathlib import Path

from shike_jax.common.errors import UserError

_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE)
_WORDS = ("no space left on device", "disk quota exceeded", "read-only file system", "file too large")


def disk_trouble(error: BaseException | None) -> str:
    """The reason when an exception, or one that caused it, says that the disk takes no more; empty otherwise.

    Orbax and TensorStore wrap the system's error in exceptions of other kinds, so its words are looked for too.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _ERRORS:
            return error.strerror or str(error)
        text = str(error).lower()
        for words in _WORDS:
            if words in text:
                return words[0].upper() + words[1:]
        error = error.__cause__ or error.__context__
    return ""


def check_present(workdir: Path) -> None:
    """Raises UserError when the work directory was removed or moved while its run was training."""
    if not (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir}: it, or its config.json, was removed while training; nothing more can be saved there"
        )
