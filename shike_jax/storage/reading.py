"""Reading what may be damaged, forbidden, or out of reach for a moment: three things with three answers.

Damage is a fact about the bytes: files that are missing or short, or that disagree with their digest. Whatever else
fails while reading says nothing of them: it is tried again, and the files stay as they are.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shike_jax.common import buckets
from shike_jax.errors import TryAgain, UserError, causes, reason

Result = TypeVar("Result")
PAUSES = (0.5, 2.0)  # seconds before the second and the third try
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_OS_ERROR = re.compile(r"\[OS error (?!2\b)\d+")  # TensorStore's words; number 2 is a missing file


class Damaged(UserError):
    """Files are missing or short, or their bytes disagree with their digest."""


def patiently(what: Any, read: Callable[[], Result]) -> Result:
    """The result of `read`, which is tried again when it fails; messages call what is read `what`.

    UserError for what no further try can change (what `read` finds damaged, no permission), TryAgain where every try
    failed.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return read()
        except UserError:
            raise
        except Exception as error:
            if is_forbidden(error):
                raise UserError(f"{what}: {reason(error)}; expected files that this user may read") from error
            if (pause := next(pauses, None)) is None:
                tried = f"could not be read in {len(PAUSES) + 1} tries ({reason(error)})"
                raise TryAgain(f"{what} {tried}; nothing was changed") from error
            time.sleep(pause)


def is_forbidden(error: Exception) -> bool:
    """Whether the system, or a library that read for us, says that permission is lacking."""
    return buckets.is_refused(error) or any(
        (isinstance(cause, OSError) and cause.errno in _FORBIDDEN)
        or "permission denied" in str(cause).lower().replace("_", " ")
        for cause in causes(error)
    )


def is_of_the_system(error: Exception) -> bool:
    """Whether the system failed to give the bytes of a file that is there: the bytes themselves may be good.

    A bucket tells what is damaged by its manifest, and every other failure of an object store is one to try again.
    """
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    found = list(causes(error))
    raised = any(isinstance(cause, OSError | MemoryError) and not isinstance(cause, missing) for cause in found)
    return raised or any(_OS_ERROR.search(str(cause)) for cause in found) or buckets.trouble(error) is not None
