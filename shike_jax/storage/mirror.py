"""A local folder for files that grow, copied to the bucket in which their work directory lies: it cannot append."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import Any

from shike_jax.common import buckets

EVERY_SECONDS = 20.0


class Mirror:
    """The folder to write logs into: `folder` is the work directory itself unless that lies in a bucket."""

    def __init__(self, workdir: Any, names: tuple[str, ...]) -> None:
        """Begins with the files `names` as an earlier start of the run left them."""
        self._target, self._sent = workdir, dict[str, tuple[int, int]]()
        self._over, self._lock = threading.Event(), threading.Lock()
        self.folder: Path = workdir
        if buckets.in_bucket(workdir):
            self.folder = Path(tempfile.mkdtemp(prefix="shike_jax-"))
            for name in names:
                if (workdir / name).exists():
                    (self.folder / name).write_bytes((workdir / name).read_bytes())
                    self._sent[name] = _stamp(self.folder / name)
            threading.Thread(target=self._keep, name="mirror", daemon=True).start()

    def flush(self) -> None:
        """Returns when the bucket has every file as it is now."""
        if self.folder == self._target:
            return
        with self._lock:
            for path in sorted(self.folder.rglob("*")):
                name = path.relative_to(self.folder).as_posix()
                if path.is_file() and self._sent.get(name) != (stamp := _stamp(path)):
                    buckets.upload(path, self._target / name)
                    self._sent[name] = stamp

    def close(self) -> None:
        """As `flush`, for the last time; the local copy goes."""
        self._over.set()
        if self.folder != self._target:
            try:
                self.flush()
            finally:
                buckets.remove_tree(self.folder)

    def _keep(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            with contextlib.suppress(Exception):  # out of reach for a moment: the next time sends all of it
                self.flush()


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
