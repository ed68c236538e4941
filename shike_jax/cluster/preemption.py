"""Being asked to stop: SIGTERM or a preemption notice, answered at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading

EXIT_STATUS = 75  # stopped by a signal, everything saved: start again to go on (EX_TEMPFAIL)

_asked = threading.Event()


class Preempted(Exception):
    """The run was asked to stop; its state is saved."""


def listen() -> None:
    """Takes SIGTERM as a request to stop, from now on; in a multi-process job JAX's preemption service takes over."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _asked.set())


def asked() -> bool:
    """Whether this process was asked to stop; before training, when no other process has to agree."""
    return _asked.is_set()


class StopRequest:
    """Whether to stop. In a multi-process job every process answers the same after the same call."""

    def __init__(self) -> None:
        """Counts from zero on every process."""
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
