"""Being asked to stop: SIGTERM, a preemption notice or Ctrl-C, answered at the next step boundary.

Until the first step of a program is done there is nothing to save, and the main thread may sit in a compilation that no
Python signal handler interrupts. A thread that the interpreter's own signal handler wakes leaves at once then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

EXIT_STATUS = 75  # stopped by a signal, everything saved: start again to go on (EX_TEMPFAIL)
INTERRUPTED = 130  # the same after Ctrl-C

_asked = threading.Event()
_number = 0  # of the signal that asked
_leave: Callable[[], None] | None = None  # what to do before leaving at once; None while leaving would lose something


class Preempted(Exception):
    """The run was asked to stop; its state is saved. `status` is the exit status of the program."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.status = INTERRUPTED if _number == signal.SIGINT else EXIT_STATUS


def listen() -> None:
    """Takes SIGTERM and Ctrl-C as requests to stop, from now on; a second Ctrl-C ends the program at once.

    In a multi-process job JAX's preemption service takes SIGTERM over.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _ask)
    signal.signal(signal.SIGINT, _interrupt)
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, writing), name="signals", daemon=True).start()


def leave_at_once(prepare: Callable[[], None]) -> None:
    """From now until `stay`, a request to stop ends the program within a second.

    Before that `prepare` is called, in another thread: it removes what would be in the way of another start.
    """
    global _leave
    _leave = prepare
    if _asked.is_set():
        _leave_now(_number)


def stay() -> None:
    """Ends `leave_at_once`: training has begun, and requests are answered at step boundaries; or the run is over."""
    global _leave
    _leave = None


def asked() -> bool:
    """Whether this process was asked to stop; before training, when no other process has to agree."""
    return _asked.is_set()


def _ask(number: int, _: object) -> None:
    global _number
    _number = number
    _asked.set()


def _interrupt(number: int, frame: object) -> None:
    if _asked.is_set():
        raise KeyboardInterrupt
    _ask(number, frame)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGTERM)  # to JAX's service: all processes stop at the same step
    if _leave is None:
        print("stopping after this step, and saving; Ctrl-C again leaves at once", file=sys.stderr, flush=True)


def _watch(reading: socket.socket, writing: socket.socket) -> None:
    """Reads the numbers of signals; holds on to `writing`, which the interpreter writes to."""
    while numbers := reading.recv(64):
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                _leave_now(number)
    writing.close()


def _leave_now(number: int) -> None:
    prepare = _leave
    if prepare is None:
        return
    with contextlib.suppress(Exception):
        prepare()
    print("stopped before the first step: nothing was trained, and the same command starts again", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(INTERRUPTED if number == signal.SIGINT else EXIT_STATUS)


class StopRequest:
    """Whether to stop. In a multi-process job every process answers the same after the same call."""

    def __init__(self) -> None:
        import jax

        self._calls, self._reached = 0, False
        if jax.process_count() > 1 and _asked.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # came before JAX's service listened: pass it on

    def requested(self) -> bool:
        """True when the run should save and stop now; every process calls this once after every compiled call."""
        import jax

        if jax.process_count() == 1:
            return _asked.is_set()
        from jax.experimental import multihost_utils

        # Calls are counted, not steps: the service names one count as the meeting point, and a call of many steps
        # would jump over it. The point is reached once; the answer stays.
        self._calls += 1
        self._reached = self._reached or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._reached
