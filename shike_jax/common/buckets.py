"""Places that may lie in an object store: `gs://` for everything, `s3://` for results and weights.

A place is a `pathlib.Path`, or for a bucket an `epath.Path`, which has the same methods. What an object store lacks is
here too: it knows neither renaming nor appending, and a whole object is written at once or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shike_jax.common.extras import optional
from shike_jax.errors import TryAgain, UserError, causes

COMMITTED = "commit_success.txt"  # Orbax asks whether it is there, not what it says
SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # and the package that reaches it
# Libraries that speak to object stores raise exceptions of their own, which are no OSErrors; those in the second line
# speak to other servers too.
_OF_STORES = ("aiobotocore", "botocore", "fsspec", "gcsfs", "s3fs")
_OF_ANY_SERVER = ("aiohttp", "google", "requests", "urllib3")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one letter is a drive of Windows
_STORE = re.compile(r"\b(gs|s3)://|/storage/v1/b/|googleapis|amazonaws", re.IGNORECASE)
_STATUS = re.compile(r"^[A-Z]{4,}(_[A-Z]+)*: ")  # TensorStore's errors begin with one
_REFUSED = re.compile(
    r"permission.?denied|forbidden|access.?denied|unauthori[sz]ed|unauthenticated|anonymous caller|credential"
    r"|invalid_grant|no such bucket|nosuchbucket|bucket.{0,80}(not found|not exist)",
    re.IGNORECASE,
)


def place(value: str | os.PathLike[str]) -> Any:
    """The place that a path or URL names; UserError for a URL of another kind, and where its package is missing."""
    text = os.fspath(value)
    scheme = _SCHEME.match(text)
    if not scheme:
        return Path(text)
    if scheme[1] not in SCHEMES or not re.match(rf"{scheme[1]}://[^/]+", text):
        raise UserError(f"{text}: not understood; expected a path, gs://BUCKET/NAME or s3://BUCKET/NAME")
    optional(SCHEMES[scheme[1]], text)
    import fsspec
    from etils import epath

    # Others write there too: TensorStore, and the job before this one.
    fsspec.config.conf.setdefault(scheme[1], {})["use_listings_cache"] = False
    # epath would take TensorFlow where it is installed, with other credentials and errors, and decides that once.
    os.environ["EPATH_USE_TF"] = "false"
    decided: Any = getattr(epath.gpath, "_is_tf_installed", None)
    if hasattr(decided, "cache_clear"):
        decided.cache_clear()
    return epath.Path(text)


def local(value: str | os.PathLike[str]) -> Path:
    """A path of this machine; `UserError` for a URL, whose slashes pathlib may have taken away."""
    if _SCHEME.match(text := os.fspath(value)):
        raise UserError(f"{text}: expected a path of this machine, not a URL")
    return Path(text)


def in_bucket(path: Any) -> bool:
    """Whether a place lies in an object store."""
    return "://" in str(path)


def filesystem(path: Any) -> Any:
    """The fsspec file system of a place in a bucket."""
    import fsspec

    return fsspec.filesystem(str(path).partition("://")[0])


def upload(source: Path, target: Any) -> None:
    """Copies a file or the content of a folder to a place in a bucket; a checkpoint's mark of completion comes last."""
    store = filesystem(target)
    files = sorted(source.rglob("*"), key=lambda path: (path.name == COMMITTED, -len(path.parts), path))
    for path in files if source.is_dir() else [source]:
        if path.is_file():
            name = path.relative_to(source).as_posix()
            store.put_file(str(path), str(target) if path == source else f"{target}/{name}")


@contextmanager
def staged(target: Any) -> Iterator[Path]:
    """Yields a local name to write to: `target`, or for a bucket one that replaces it there when the body succeeds."""
    if not in_bucket(target):
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="shike_jax-") as scratch:
        yield (finished := Path(scratch) / target.name)
        if finished.is_dir():
            remove_tree(target)
        upload(finished, target)


@contextmanager
def downloaded(path: Any) -> Iterator[Path]:
    """A file or folder of a bucket as a temporary local one; a local one as it is."""
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="shike_jax-") as scratch:
        copy, store, root = Path(scratch) / path.name, filesystem(path), str(path).partition("://")[2]
        for found in store.find(root):
            target = copy if found == root else copy / found.removeprefix(f"{root}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(found, str(target))
        yield copy


def find(folder: Any, name: str) -> list[Any]:
    """Every file of that name in a folder and below."""
    if not in_bucket(folder):
        return [path.resolve() for path in folder.rglob(name)]
    scheme, _, root = str(folder).partition("://")
    found = filesystem(folder).find(root)
    return [place(f"{scheme}://{path}") for path in found if path.rpartition("/")[2] == name]


def rename_tree(path: Any, target: Any) -> None:
    """Gives a folder another name; in a bucket by copying, which may be cut off and begun again."""
    if not in_bucket(path):
        path.rename(target)
        return
    store, root = filesystem(path), str(path).partition("://")[2]
    for found in store.find(root):
        store.cp_file(found, f"{target}/{found.removeprefix(f'{root}/')}")
    remove_tree(path)


def remove_tree(path: Any) -> None:
    """Removes a folder and all below it, as far as it is there."""
    if not in_bucket(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.rmtree()


def is_refused(error: BaseException) -> bool:
    """Whether an object store said that the user may not do this, or that there is no such bucket."""
    return any(_of_store(cause) and _REFUSED.search(str(cause)) for cause in causes(error))


def trouble(error: BaseException) -> UserError | None:
    """What an object store did to this program, as one line; None for errors of other kinds.

    Permissions and missing buckets are the user's to change (status 2); anything else may be over at the next try (75).
    """
    for cause in causes(error):
        if isinstance(cause, UserError):
            return None
        if _of_store(cause):
            said = f"object store: {' '.join(str(cause).split())[:300] or type(cause).__name__}"
            if is_refused(error):
                return UserError(f"{said}; expected a bucket that these credentials may read and write")
            return TryAgain(f"{said}; nothing is lost: start the same command again")
    return None


def _of_store(error: BaseException) -> bool:
    library, text = type(error).__module__.partition(".")[0], str(error)
    if library in _OF_STORES or (library in _OF_ANY_SERVER and _from_file_system(error)):
        return True
    system = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    return bool(_STORE.search(text)) and (system or _STATUS.search(text) is not None or library in _OF_ANY_SERVER)


def _from_file_system(error: BaseException) -> bool:
    """Whether an exception went through a method of one of fsspec's file systems."""
    if "fsspec" not in sys.modules:
        return False
    import fsspec

    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), fsspec.AbstractFileSystem) for frame in frames)
