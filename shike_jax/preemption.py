"""Being asked to stop: SIGTERM or a preemption notice, answered at the next step boundary."""

from __future__ import annotations

import signal
import threading

import jax

EXIT_STATUS = 75  # stopped by a signal, everything saved: start again to go on (EX_TEMPFAIL)


class Preempted(Exception):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Whether to stop. In a multi-process job every process answers the same at the same step."""

    def __init__(self) -> None:
        """Watches SIGTERM; JAX's own preemption service does so in a multi-process job."""
        self._asked = False
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def requested(self, step: int) -> bool:
        """True when the run should save and stop before the next step; `step` counts over the whole run."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
