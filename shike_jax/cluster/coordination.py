"""What is used of JAX without a public name: the detection of a job, its coordination service, compilation events.

One place, so that a new version of JAX has one place to break; tests/cluster/test_coordination.py checks it all.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
from jax._src import clusters, distributed

_COMPILE_EVENTS = "/jax/core/compile/"
_barriers, _exchanges = itertools.count(), itertools.count()


def detected_processes() -> int | None:
    """Processes of the job that JAX finds around this one; None where it finds none.

    JAX knows Cloud TPU VMs (by their metadata server), GKE, slices of a multislice job, SLURM, Open MPI and Kubernetes.
    Reading a job's description may fail in as many ways, with exceptions of any kind.
    """
    for kind in clusters.ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return int(kind.get_process_count())
    return None


def client() -> Any:
    """The client of the coordination service: a key-value store and barriers; None on a single process."""
    return distributed.global_state.client


def coordinator_address() -> str | None:
    """HOST:PORT of process 0; None on a single process."""
    return distributed.global_state.coordinator_address


def wait_at_barrier(name: str, seconds: float) -> None:
    """Waits until every process has come to its n-th barrier."""
    client().wait_at_barrier(f"{name}/{next(_barriers)}", timeout_in_ms=int(seconds * 1000))


def exchanged(name: str, text: str, seconds: float) -> list[str]:
    """Every process's n-th text of that name, in the order of the processes."""
    place = f"{name}/{next(_exchanges)}/"
    client().key_value_set(place + str(jax.process_index()), text)
    wait_at_barrier(name, seconds)
    texts = [client().blocking_key_value_get(place + str(i), int(seconds * 1000)) for i in range(jax.process_count())]
    wait_at_barrier(name, seconds)
    client().key_value_delete(place + str(jax.process_index()))
    return texts


class CompileTime:
    """Time that JAX spends on tracing and compiling, so that it is not taken for training time."""

    total = 0.0  # seconds since the program began


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith(_COMPILE_EVENTS):
        CompileTime.total += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count)
