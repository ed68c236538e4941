"""A trace of a few training steps: `config.train.profile=STEP:COUNT`, read with TensorBoard or Perfetto.

Every call of the training step is annotated with its first step, so that the tools show step times.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

from shike_jax.common import buckets


class Profile:
    """Starts the profiler before the step it should begin with and stops it after the last one, once."""

    def __init__(self, text: str, folder: Path, active: bool) -> None:
        """Args: text: `STEP:COUNT` or empty. folder: of the trace. active: False on processes that are not traced."""
        first, count = map(int, text.split(":")) if text and active else (0, 0)
        self._steps, self._folder, self._running = range(first, first + count), folder, False
        self._held = contextlib.ExitStack()

    def before(self, step: int, done: int) -> None:
        """Call before the compiled call that makes `done` steps from `step` of the run on.

        The trace holds whole calls: those that make one of the steps asked for.
        """
        if self._steps and not self._running and step < self._steps.stop and step + done > self._steps.start:
            jax.profiler.start_trace(str(self._held.enter_context(buckets.staged(self._folder))))
            self._running = True

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Holds the call that begins with `step`; its name in the trace."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, result: Any) -> bool:
        """Call with the result of the call that has reached `step`; True when the trace was written now."""
        if not self._running or step < self._steps.stop:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Writes a trace that is still under way: the run ends or stops within it."""
        if self._running:
            jax.profiler.stop_trace()
            self._held.close()
            self._steps, self._running = range(0), False
