"""The errors that end a command with one line: what a user can fix, and what the next try may not meet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Bad input: one line that names the thing, its value and what is expected."""

    status = 2  # of the program


class TryAgain(UserError):
    """Nothing is wrong with the input: the same command may succeed later."""

    status = 75  # EX_TEMPFAIL of sysexits.h, as after a request to stop


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it: libraries wrap the system's errors in kinds of their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException, most: int = 200) -> str:
    """Why something failed, on one line: what the system says, else the exception's words, else its name."""
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    return said[:most] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one resembles, as the end of a sentence: `; did you mean 'train'?`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
