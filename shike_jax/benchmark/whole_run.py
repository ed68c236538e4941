"""`benchmark run`: the wall time of a whole run, from the command to `results.json`, by what it was spent on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shike_jax.benchmark import measure
from shike_jax.cluster.preemption import EXIT_STATUS
from shike_jax.common.parser import Parser
from shike_jax.config.loading import parse_command, split_arguments
from shike_jax.errors import UserError

RESULTS = "results.json"
_EPILOG = """\
The run is a process of its own, `python -m shike_jax train` with the same --config arguments, so its start counts too.
Its own clock splits the time: start-up (data, network), compilation, training, evaluation; what is left is the
interpreter's start, imports, checkpoints and files. Without --workdir it runs in a temporary directory.

With --workdir, a run that was stopped (--limit seconds, a signal) continues with the same command. The split then
covers all its parts, and there is no wall time. A finished run is not timed again.

examples:
  python -m shike_jax benchmark run --config=configs/digits_lt.py --json=run.json
  python -m shike_jax benchmark run --config=configs/cifar_lt.py:official,file=cifar100_if100.npz \\
      --config.dtype=bfloat16 --workdir=runs/timed --limit=540 --json=run.json
"""


def main(argv: Sequence[str]) -> int | None:
    """Runs the command; returns 75 when the run was stopped and can continue."""
    parser = Parser("python -m shike_jax benchmark run", "Times a whole run by its parts.", _EPILOG)
    parser.add_argument("--workdir", type=Path, help="directory of the run; default: a temporary one")
    parser.add_argument("--limit", type=measure.positive, metavar="SECONDS", help="stop and save after that long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    _, args = parse_command(parser, argv)  # mistakes in one line, before anything starts
    measure.check_writable(args.json)
    if args.workdir and (args.workdir / RESULTS).exists():
        raise UserError(f"--workdir={args.workdir}: already finished; expected a new or an unfinished run")
    continued = args.workdir is not None and args.workdir.exists()
    with tempfile.TemporaryDirectory() as scratch:
        workdir = args.workdir or Path(scratch) / "run"
        wall, status = _run(split_arguments(argv)[0], workdir, args.limit)
        if status == EXIT_STATUS:
            print(f"stopped after {wall:.0f} s; the same command continues" if args.workdir else "stopped")
            return EXIT_STATUS
        if status:
            raise UserError(f"the run ended with status {status}; its messages are above")
        results = json.loads((workdir / RESULTS).read_text(encoding="utf-8"))
    origin = measure.origin("python -m shike_jax benchmark run", argv)
    result = {**split(results, None if continued else wall), **origin}
    print(_text(result))
    measure.write(result, args.json)
    return 0


def split(results: dict[str, Any], wall: float | None) -> dict[str, Any]:
    """The seconds of each part of a run, by its `results.json`; without a wall time of its process not of the rest."""
    seconds = dict(results["seconds"])
    if wall is not None:
        seconds |= {"other": round(wall - sum(seconds.values()), 2), "wall": round(wall, 2)}
    return {
        "name": results["name"],
        "seed": results["seed"],
        "top1": results["top1"],
        "stages": [{key: stage[key] for key in ("name", "epochs", "steps", "top1")} for stage in results["stages"]],
        "split": {key: results["split"][key] for key in ("name", "sizes", "hash")},
        "device": results["devices"],
        "seconds": seconds,
        "steps_per_second": round(sum(s["steps"] for s in results["stages"]) / max(seconds["train"], 1e-9), 2),
        "config": results["config"],
    }


def _run(chosen: list[str], workdir: Path, limit: int | None) -> tuple[float, int]:
    """Wall seconds and exit status of the run; SIGTERM at the limit."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "shike_jax", "train", *chosen, f"--workdir={workdir}"])
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return time.perf_counter() - began, process.returncode


def _text(result: dict[str, Any]) -> str:
    lines = [f"{result['name']}, seed {result['seed']}: top-1 {result['top1']:.2f} %, {result['device']['kind']}"]
    lines += [f"  {name:<10} {value:9.2f} s" for name, value in result["seconds"].items()]
    return "\n".join([*lines, f"  {result['steps_per_second']:.1f} steps a second of training"])
