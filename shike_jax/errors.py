"""The errors that end a command with one line: what a user can fix, and what the next try may not meet."""

from __future__ import annotations

import contextlib
import csv
import difflib
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any


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


# What readers of files raise that are of another kind than they should be, or damaged.
_OF_PYTHON = (ValueError, LookupError, TypeError, AttributeError, EOFError)
_OF_FORMATS = (csv.Error, pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
_DAMAGE = (*_OF_PYTHON, *_OF_FORMATS, NotImplementedError)  # the last of a method of compression that zipfile lacks


@contextlib.contextmanager
def naming(what: Any, kind: str = "") -> Iterator[None]:
    """What the system refuses in here becomes a `UserError` about `what`: `--output=x: Permission denied`.

    A `kind` says what is expected there, such as "an evaluation"; damaged content is a `UserError` then too.
    """
    try:
        yield
    except OSError as error:
        file = str(error.filename or "")  # names that begin with a dot are of files that are not complete yet
        inside = f"{file}: " if file not in str(what) and not os.path.basename(file).startswith(".") else ""
        expected = f"; expected {kind}" if kind else ""
        raise UserError(f"{what}: {inside}{reason(error)}{expected}") from error
    except _DAMAGE as error:
        if not kind:
            raise
        raise UserError(f"{what}: not {kind}, or damaged ({reason(error)})") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one resembles, as the end of a sentence: `; did you mean 'train'?`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
