"""`python -m tests.peers.dispatch`: how long a call of a compiled step occupies the calling thread, pmap and shard_map.

The step takes 500 small arrays, as many as a network's state has, in one process and in two on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shike_jax.benchmark import measure
from shike_jax.common.command import run_main
from shike_jax.common.parser import Parser

CALLS = 100


def milliseconds(index: int, processes: int, port: str) -> dict[str, float]:
    """Median of the calling thread's time in a call, for each backend; the results are waited for between calls."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shike_jax.cluster import joining, parallel

    if processes > 1:
        joining.start_distributed(f"127.0.0.1:{port}", processes, index, 60)
    found = {}
    for backend in parallel.BACKENDS:
        parallel.use_backend(backend)
        step = parallel.compile_step(
            lambda state, batch: jax.tree.map(lambda x: x + jnp.sum(batch), state),
            replicated_in=(True, False),
            donate=True,
        )
        state = parallel.replicate({f"array{i}": np.ones(8, np.float32) for i in range(500)})
        batch, seconds = np.zeros((jax.local_device_count(), 4), np.float32), []
        for _ in range(CALLS):
            began = time.perf_counter()
            state = step(state, batch)
            seconds.append(time.perf_counter() - began)
            jax.block_until_ready(state)
        found[backend] = round(1e3 * statistics.median(seconds[5:]), 3)
    return found


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m tests.peers.dispatch", "Times the dispatch of a step.", "")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=3, metavar=("INDEX", "PROCESSES", "PORT"), help="what each process runs")
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(milliseconds(int(args.one[0]), int(args.one[1]), args.one[2])))
        return
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    found = {}
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "tests.peers.dispatch", "--one"]
        running = [
            subprocess.Popen(
                [*command, str(i), str(processes), port], env=environment, stdout=subprocess.PIPE, text=True
            )
            for i in range(processes)
        ]
        found[f"{processes} process{'es' if processes > 1 else ''}"] = [
            json.loads(child.communicate()[0]) for child in running
        ]
    result = {"milliseconds_in_a_call": found, "arrays": 500, **measure.origin("python -m tests.peers.dispatch", argv)}
    print(json.dumps(found, indent=1))
    measure.write(result, args.json)


if __name__ == "__main__":
    run_main(main)
