"""One job for each work directory in a bucket, where no lock ends with its process: a lease that has to be renewed.

The lease is an object that can be created only while there is none, and renewed or removed only in the generation that
was seen last: the store decides between two jobs. Whoever finds a lease watches it; one that has not been renewed for
`LEASE_SECONDS` belonged to a job that was killed. Nobody's clock is compared with anybody else's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import uuid
from typing import Any

from shike_jax.common.buckets import filesystem
from shike_jax.errors import TryAgain, UserError

NAME = "lease.txt"
RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0
State = tuple[str, str]  # generation and metageneration: the second counts the renewals


class Lease:
    """The lease of this process on a work directory in a bucket."""

    def __init__(self, workdir: Any) -> None:
        self._workdir, self._path = workdir, str(workdir / NAME)
        self._store = filesystem(workdir)
        self._bucket, _, self._key = self._path.partition("://")[2].partition("/")
        self._holder = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}".encode()
        self._generation, self._over = "", threading.Event()

    def seen(self) -> State | None:
        """The lease as it is now, whoever holds it; None where there is none."""
        try:
            found = self._store.info(self._path)
        except FileNotFoundError:
            return None
        return str(found.get("generation")), str(found.get("metageneration"))

    def take(self) -> bool:
        """Takes the lease when there is none, and renews it from then on; False when another job was faster."""
        try:
            self._store.pipe_file(self._path, self._holder, mode="create")
        except FileExistsError:
            pass  # another's, or our own from a try whose answer was lost
        except FileNotFoundError as error:
            raise UserError(f"{self._workdir}: no such bucket; expected one that exists") from error
        found = self.seen()
        if found is None or self._store.cat_file(self._path) != self._holder:
            return False
        self._generation = found[0]
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return True

    def release(self) -> None:
        """Gives the lease back; nothing where it is another's by now, or the store does not answer."""
        self._over.set()
        with contextlib.suppress(Exception):
            self._call("DELETE", self._generation)

    def abandoned(self, found: State) -> None:
        """Removes the lease of a job that was killed, unless it has changed since it was `seen` as `found`."""
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            self._call("DELETE", found[0])

    def _call(self, method: str, generation: str, **options: Any) -> None:
        self._store.call(method, "b/{}/o/{}", self._bucket, self._key, ifGenerationMatch=generation, **options)

    def _renew(self) -> None:
        number = 0
        while not self._over.wait(RENEW_SECONDS):
            number += 1
            try:
                self._call("PATCH", self._generation, json={"metadata": {"renewed": str(number)}})
            except (FileExistsError, FileNotFoundError):
                if self._over.is_set():
                    return
                # The other job writes there already: nothing more may be written by this one.
                print(f"error: another job has taken {self._workdir} over: this one ends", file=sys.stderr, flush=True)
                os._exit(TryAgain.status)
            except Exception:  # out of reach for a moment; what lasts is met by the next checkpoint
                pass
