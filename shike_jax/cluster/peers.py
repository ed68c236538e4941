"""Noticing that another process of the job has failed, died or hangs, and ending this one with the reason.

Every process reports a sign of life to the coordination service. The main process watches all of them, the others
watch the main process, so the traffic grows with the number of processes only. Whoever fails leaves the reason in the
service for the others. A thread does this: the main thread may be waiting in a collective that will never end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax

from shike_jax.cluster import coordination
from shike_jax.errors import UserError

EXIT_STATUS = 76  # another process was lost: start all of them again to go on
_ALIVE, _STOPPED = "shike_jax/alive/", "shike_jax/stopped"
_START_AGAIN = "start all processes again to continue"
_PROBE_AFTER = 3  # seconds without an answer of the coordinator's service before its address is tried


@contextlib.contextmanager
def watched(timeout: float) -> Iterator[None]:
    """Watches the other processes while the body runs, and tells them when it fails; nothing on a single process.

    A failure ends this process at once: leaving in the ordinary way would wait for the others, who wait for it. A
    process counts as lost after `timeout` seconds without a sign of life.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(timeout)
    watch.start()
    try:
        yield
    except Exception as error:
        watch.leave(*_account(error))
    finally:
        watch.over.set()


def _account(error: Exception) -> tuple[int, str, str]:
    """(exit status, reason for the others, message here) of a failure."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return error.status, text, f"error: {text}"
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
        reason = f"lost contact with another process ({text[:300]})"
        return EXIT_STATUS, reason, f"error: {reason}; {_START_AGAIN}"
    return 1, repr(error), traceback.format_exc()


def _delay_aborts() -> None:
    """Lets an abort of this process wait for 6 s, so that our threads can say why and leave with our status first.

    JAX's own service aborts the process as soon as the coordinator's connection closes. The handler is libc's `sleep`
    itself, called with the signal's number (6): no Python has to run in a process that may be broken, and when none of
    our threads acts the abort takes its course.
    """
    with contextlib.suppress(OSError, AttributeError):  # a platform without them: the abort comes at once
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGABRT, libc.sleep)


def _refused(address: str | None) -> bool:
    """True when HOST:PORT can be reached and nothing listens there: its process is gone, not merely slow."""
    host, _, port = (address or "").rpartition(":")
    if not host:
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError as error:  # of another kind where it cannot be reached: the silence will tell
        return isinstance(error, ConnectionRefusedError)
    return False


class _Watch:
    """The signs of life of this process and those of others."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.over = timeout, threading.Event()
        self._client, self._index = coordination.client(), jax.process_index()
        self._watched = [0] if self._index else list(range(1, jax.process_count()))
        self._pause = min(max(timeout / 12, 0.5), 2.0)  # seconds between signs
        self._seen: dict[int, str] = {}
        # Counted in ticks of the judging thread, not by the clock: a machine that was suspended accuses nobody.
        self._silent = dict.fromkeys(self._watched, 0)

    def start(self) -> None:
        _delay_aborts()
        for task in (self._report, self._judge):
            threading.Thread(target=task, name=f"peers{task.__name__}", daemon=True).start()

    def leave(self, status: int, reason: str, message: str) -> None:
        """Prints `message`, tells the others why and ends the process."""
        self.over.set()
        self._say(message)
        # In a thread: without the service the call would wait for it.
        telling = threading.Thread(target=self._tell, args=(status, reason), daemon=True)
        telling.start()
        telling.join(2.0)
        if self._index == 0:  # the service goes with this process: let the others read first
            time.sleep(3 * self._pause)
        os._exit(status)

    def _tell(self, status: int, reason: str) -> None:
        with contextlib.suppress(Exception):  # the others may have been faster, or the service gone
            self._client.key_value_set(_STOPPED, json.dumps([status, self._index, reason]))

    def _report(self) -> None:
        """Sends signs of life and collects those of others, through calls that may block."""
        for count in range(sys.maxsize):
            try:
                self._client.key_value_set(f"{_ALIVE}{self._index}", str(count), allow_overwrite=True)
                if self._index == 0:
                    signs = {int(key.rsplit("/", 1)[-1]): sign for key, sign in self._client.key_value_dir_get(_ALIVE)}
                else:
                    signs = {0: self._client.key_value_try_get(f"{_ALIVE}0")}
                for process in self._watched:
                    if process in signs and self._seen.get(process) != signs[process]:
                        self._seen[process], self._silent[process] = signs[process], 0
                self._obey(self._client.key_value_try_get(_STOPPED))
            except Exception:  # no answer, or no such key yet; silence is judged by the other thread
                pass
            if self.over.wait(self._pause):
                return

    def _obey(self, record: str) -> None:
        """Stops for the reason another process left, after a while in which this one may fail by itself."""
        status, process, reason = json.loads(record)
        if not self.over.wait(2 * self._pause):
            self._say(f"error: process {process} stopped: {reason}")
            os._exit(status)

    def _judge(self) -> None:
        while not self.over.wait(1.0):
            for process in self._watched:
                self._silent[process] += 1
                address = coordination.coordinator_address()
                if process == 0 and self._silent[0] >= _PROBE_AFTER and _refused(address):
                    reason = f"process 0 (the coordinator) is gone: nothing listens at {address}"
                    self._say(f"error: {reason}; {_START_AGAIN}")
                    os._exit(EXIT_STATUS)
                if self._silent[process] > self.timeout:
                    role = " (the coordinator)" if process == 0 else ""
                    reason = f"process {process}{role} has given no sign of life for {self.timeout:g} s"
                    message = f"error: {reason}: dead, stuck or cut off; {_START_AGAIN}"
                    if process == 0:  # the service is lost with it
                        self._say(message)
                    else:
                        self.leave(EXIT_STATUS, reason, message)
                    os._exit(EXIT_STATUS)

    def _say(self, message: str) -> None:
        sys.stdout.flush()
        print(f"[process {self._index}] {message}", file=sys.stderr, flush=True)
