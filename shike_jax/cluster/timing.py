"""Time that JAX spends on tracing and compiling, so that it is not taken for training time."""

from __future__ import annotations

from typing import Any

import jax


class CompileTime:
    """`CompileTime.total`: seconds since the program began."""

    total = 0.0


def _count(event: str, seconds: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        CompileTime.total += seconds


jax.monitoring.register_event_duration_secs_listener(_count)
