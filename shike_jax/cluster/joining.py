"""Joining the processes of a job."""

from __future__ import annotations

import math
import os

import jax

from shike_jax.cluster import coordination
from shike_jax.errors import UserError, reason

# Where launchers tell each process that they start how many there are.
_STARTED = {"SLURM_STEP_NUM_TASKS": "SLURM", "OMPI_COMM_WORLD_SIZE": "Open MPI", "PMI_SIZE": "MPI"}


def start_distributed(
    coordinator: str | None, processes: int | None, index: int | None, peer_timeout: float, joining: str = "auto"
) -> None:
    """Joins a multi-process job when there is one; call before anything touches a device.

    Explicit arguments (or JAX's own JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID) win. Without them,
    JAX's own detection finds the job (`coordination.detected_processes`).

    Args:
      coordinator: HOST:PORT of process 0.
      index: of this process among `processes`.
      peer_timeout: seconds of silence after which a process counts as lost (see `peers`).
      joining: `auto`: where there are several processes; `on`: in any case; `off`: never.

    Raises:
      UserError: the job's processes did not come together, there is none to join, or several were started that JAX does
        not recognise as one job.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = processes if processes is not None else _int_variable("JAX_NUM_PROCESSES")
    index = index if index is not None else _int_variable("JAX_PROCESS_ID")
    if joining == "off":
        if coordinator:
            raise UserError(f"--distributed=off with the coordinator {coordinator}: expected one of them")
        return
    if not coordinator:
        if (processes or 1) > 1 or index:
            given = f"--processes={processes}, --process={index}"
            raise UserError(f"{given} (or their environment variables): expected --coordinator=HOST:PORT with them")
        found = _detected()
        if found is None and joining == "on":
            raise UserError("--distributed=on: JAX finds no job around this process; expected --coordinator=HOST:PORT")
        if (found or 1) == 1 and joining == "auto":
            return
    # Gloo carries collectives between CPU processes; other platforms ignore the setting.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        # All three are None on managed clusters, where JAX finds them itself. JAX's own heartbeat only ends what our
        # watch could not: it says less about the reason, so it comes later.
        jax.distributed.initialize(
            coordinator, processes, index, heartbeat_timeout_seconds=max(100, math.ceil(1.5 * peer_timeout))
        )
    except (RuntimeError, ValueError) as error:
        where = coordinator or "(from the environment)"
        raise UserError(f"process {index} of {processes} could not join coordinator {where}: {error}") from error


def _detected() -> int | None:
    """Processes of the job around this one; None where there is none."""
    alone = "--distributed=off lets each process run alone"
    try:
        found = coordination.detected_processes()
    except Exception as error:  # of a metadata server that does not answer, of variables that are missing, ...
        raise UserError(f"the job around this process could not be read ({reason(error)}); {alone}") from error
    for name, launcher in _STARTED.items():
        started = _int_variable(name) or 1
        if found is None and started > 1:
            raise UserError(
                f"{launcher} started {started} processes ({name}), which JAX does not recognise as one job: expected "
                f"--coordinator=HOST:PORT, --processes and --process; {alone}"
            )
    return found


def _int_variable(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"environment variable {name}={text!r}: expected a whole number")
    return int(text)
