"""What is used of JAX without a public name: the coordination service, and the names of compilation events.

One place, so that a new version of JAX has one place to break; tests/cluster/test_coordination.py checks it all.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
from jax._src import distributed

_COMPILE_EVENTS = "/jax/core/compile/"
_barriers = itertools.count()


def client() -> Any:
    """The client of the coordination service: a key-value store and barriers; None on a single process."""
    return distributed.global_state.client


def coordinator_address() -> str | None:
    """HOST:PORT of process 0; None on a single process."""
    return distributed.global_state.coordinator_address


def wait_at_barrier(name: str, seconds: float) -> None:
    """Waits until every process has come to its n-th barrier."""
    client().wait_at_barrier(f"{name}/{next(_barriers)}", timeout_in_ms=int(seconds * 1000))


class CompileTime:
    """Time that JAX spends on tracing and compiling, so that it is not taken for training time.

    `CompileTime.total`: seconds since the program began.
    """

    total = 0.0


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith(_COMPILE_EVENTS):
        CompileTime.total += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count)
