"""Runs many settings and seeds: locally, several at a time, or as a SLURM job array. See --help."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shike_jax.common import buckets
from shike_jax.common.buckets import place
from shike_jax.common.parser import Parser
from shike_jax.config.loading import split_arguments
from shike_jax.errors import UserError
from shike_jax.training.jobs import Job, make_jobs

_EPILOG = """\
sweeps:
  table4  the seven rows of the paper's table 4: plain; MoE; + DKF; + DKF + mu; + DKF + nt; MoE + mu + nt; all
  table5  the ten arrangements of expert depths of table 5, A to ABCC (a backbone with three shared stages)
  seeds   the configuration as it is
  grid    all combinations of --set

examples:
  python -m shike_jax sweep table4 --config=configs/cifar_lt.py:official --workdir=runs/table4 --seeds=0,1,2 --jobs=2
  python -m shike_jax sweep grid --config=configs/cifar_lt.py --workdir=runs/lr --rows='lr=0.1_*' --dry-run \\
      --set=stages.representation.lr=0.1,0.15 \\
      --set='model.depths=(1,2,1),(1,2)'
  python -m shike_jax sweep seeds --config=configs/imagenet_lt.py --workdir=runs/in --seeds=0,1,2 --slurm \\
      --sbatch=--nodes=2 --sbatch=--time=4:00:00

Each run has WORKDIR/ROW/seedN, its output is in WORKDIR/logs. The same command again skips what is finished and
continues what was interrupted. Exit status: 0 all finished, 1 some failed, 75 stopped by a signal, 2 wrong input.
Tables and figures afterwards: python -m shike_jax report --runs=WORKDIR --output=DIR
"""
INTERRUPTED = 75
HOME = Path(__file__).resolve().parents[2]  # of the package, and of launch/ in a clone


def run_local(jobs: Sequence[Job], at_once: int, logs: Path) -> int:
    """Runs what is not finished, `at_once` at a time; returns the exit status."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])}
    if at_once > 1:  # JAX would reserve most of a GPU's memory for each process
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / at_once:.2f}")
    waiting = [job for job in jobs if job.results() is None]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished already; their output is in {logs}", flush=True)
    stopped: list[bool] = []
    children: list[subprocess.Popen] = []

    def stop(*_: object) -> None:
        stopped.append(True)
        for child in children:
            child.terminate()

    def run(job: Job) -> int:
        """The job's exit status."""
        if stopped:
            return INTERRUPTED
        began = time.time()
        print(f"{job.name}: started\n", end="", flush=True)  # one piece: other threads print too
        with _log(logs, job).open("ab") as log:
            # A session of its own: Ctrl-C reaches this program only, which passes it on as SIGTERM.
            child = subprocess.Popen(job.command, stdout=log, stderr=log, env=environment, start_new_session=True)
        children.append(child)
        if stopped:
            child.terminate()
        status = child.wait()
        if status == INTERRUPTED:
            stop()
        elif status and stopped:  # stopped before it could listen to signals
            status = INTERRUPTED
        print(f"{job.name}: {_outcome(job, status, logs)}, {time.time() - began:.0f} s\n", end="", flush=True)
        return status

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(at_once) as pool:
            statuses = list(pool.map(run, waiting))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        found = job.results()
        score = f"{found['top1']:6.2f}" if found else "unfinished"
        print(f"{job.name:<{width}}  {score}")
    return INTERRUPTED if stopped else int(any(statuses))


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{job.name.replace('/', '-')}.log"


def _outcome(job: Job, status: int, logs: Path) -> str:
    results = job.results()
    if status == 0 and results:
        return f"top-1 {results['top1']:.2f} %"
    if status == INTERRUPTED:
        return "interrupted"
    lines = _log(logs, job).read_text(encoding="locale", errors="replace").strip().splitlines() or ["no output"]
    return f"failed with status {status}: {lines[-1][:200]} ({_log(logs, job)})"


def array_script(jobs: Sequence[Job], at_once: int) -> str:
    """A batch script that runs the jobs as an array through gpu_slurm.sbatch, whose settings it copies."""
    single = HOME / "launch" / "gpu_slurm.sbatch"
    if not single.exists():
        raise UserError(f"--slurm: {single} is missing")
    settings = [line for line in single.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")]
    settings.append(f"#SBATCH --array=0-{len(jobs) - 1}{f'%{at_once}' if at_once > 1 else ''}")
    runs = [f"  {shlex.quote(shlex.join(job.arguments))}" for job in jobs]
    run = f'cd {shlex.quote(str(Path.cwd()))} && exec bash {shlex.quote(str(single))} "$@"'
    end = ['eval "set -- ${runs[$SLURM_ARRAY_TASK_ID]}"', run, ""]
    return "\n".join(["#!/usr/bin/env bash", *settings, "runs=(", *runs, ")", *end])


def submit(jobs: Sequence[Job], at_once: int, workdir: Path, options: Sequence[str]) -> int:
    """Writes WORKDIR/array.sbatch for what is not finished, gives it to sbatch with `options`; returns the status."""
    waiting = [job for job in jobs if job.results() is None]
    if not waiting:
        print("all runs are finished")
        return 0
    folder = _here(workdir)
    script = folder / "array.sbatch"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_bytes(os.fsencode(array_script(waiting, at_once)))  # it holds names of files
    if shutil.which("sbatch") is None:
        raise UserError(f"--slurm: sbatch was not found; written for a machine that has it: {script}")
    return subprocess.run(["sbatch", *options, str(script)]).returncode


def _here(workdir: Path) -> Path:
    """Where this program writes: the directory of all runs, or a temporary one where that is in a bucket."""
    return Path(tempfile.mkdtemp(prefix="shike_jax-sweep-")) if buckets.in_bucket(workdir) else workdir


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    mine, rest = split_arguments([item for item in argv if item != "--"])
    parser = Parser("python -m shike_jax sweep", "Trains many settings and seeds.", _EPILOG)
    parser.add_argument("sweep", choices=("table4", "table5", "seeds", "grid"))
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="configuration; --config.FIELD=VALUE changes it")
    parser.add_argument("--workdir", type=place, required=True, help="directory of all runs")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 (default 0)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=V,V", help="an axis of a grid; repeatable")
    parser.add_argument("--rows", default="", metavar="ROW,ROW", help="only these rows (* matches anything)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1; SLURM: no limit)")
    parser.add_argument("--slurm", action="store_true", help="submit a job array instead of running here")
    about = "passed on to sbatch, such as --sbatch=--ntasks-per-node=1; repeatable"
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help=about)
    parser.add_argument("--dry-run", action="store_true", help="print the commands (with --slurm the script) only")
    args = parser.parse_args(rest)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: expected at least 1")
    jobs = make_jobs(mine, args.workdir, args.sweep, args.seeds, args.set, args.rows)
    if args.dry_run:
        commands = "\n".join(shlex.join(["python", *job.command[1:]]) for job in jobs)
        print(array_script(jobs, args.jobs) if args.slurm else commands)
        return 0
    if args.slurm:
        return submit(jobs, args.jobs, args.workdir, args.sbatch)
    return run_local(jobs, args.jobs, _here(args.workdir) / "logs")
