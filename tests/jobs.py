"""Starting small runs of main as processes of their own, on the CPU."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def digits(representation: int = 2, classifier: int = 1, *changes: str) -> list[str]:
    """Flags of a small network on digits: epochs of both stages, then more `--config.` flags without that prefix.

    Without TensorBoard files, which would import TensorFlow in every process.
    """
    return [
        f"--config=configs/digits_lt.py:width=4,epochs={representation},classifier_epochs={classifier}",
        "--config.model.depths=(1, 2)",
        "--config.train.tensorboard=False",
        *(f"--config.{change}" for change in changes),
    ]


def untouched() -> dict[str, str]:
    """The environment of a user who computes on the CPU and has not chosen how many devices that is."""
    chosen = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC")
    return {key: value for key, value in os.environ.items() if key not in chosen} | {"JAX_PLATFORMS": "cpu"}


STARTED: list[Job] = []  # conftest.py ends what a failed test leaves running


class Job:
    """The processes of one job; `output(i)` is what process i has printed."""

    def __init__(
        self,
        workdir: pathlib.Path,
        flags: list[str],
        processes: int = 1,
        devices: int = 1,
        own: tuple = (),
        url: str = "",
        module: str = "shike_jax",
    ) -> None:
        """Starts `python -m MODULE train` in each process.

        `devices` of each process, 0: as a user finds them, one for each core; `own`: more flags for each process;
        `url`: the work directory where it is in a bucket; what is printed lies next to `workdir` all the same.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **untouched(),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "cache")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if devices:
            environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
            environment["NPROC"] = str(max(4, 2 * devices))
        self.workdir, self._logs, self.processes = workdir, [], []
        for index in range(processes):
            together = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={index}"]
            command = [sys.executable, "-m", module, "train", f"--workdir={url or workdir}", *flags]
            self._logs.append(workdir.parent / f"{workdir.name}-{index}.out")
            with self._logs[-1].open("w") as log:
                command += [*(together if processes > 1 else []), *(own[index] if own else [])]
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
                self.processes.append(process)
        STARTED.append(self)

    def output(self, index: int = 0) -> str:
        return self._logs[index].read_text(errors="replace")

    def wait(self, seconds: float = 600) -> list[int]:
        """Exit statuses of all; what still runs after `seconds` is killed."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def recorded_steps(workdir: pathlib.Path) -> int:
    """Lines that the run has recorded so far."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
