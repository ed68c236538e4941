"""Runs many settings and seeds: locally, several at a time, or as a SLURM job array. See --help."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from shike_jax.common.command import Parser, UserError
from shike_jax.config import to_plain
from shike_jax.config.loading import parse_config
from shike_jax.report import paper
from shike_jax.storage.workdir import examine

_EPILOG = """\
sweeps:
  table4  the seven rows of the paper's table 4: plain; MoE; + DKF; + DKF + mu; + DKF + nt; MoE + mu + nt; all
  table5  the ten arrangements of expert depths of table 5, A to ABCC (a backbone with three shared stages)
  seeds   the configuration as it is
  grid    all combinations of --set

examples:
  python -m shike_jax sweep table4 --config=configs/cifar_lt.py:official --workdir=runs/table4 --seeds=0,1,2
  python -m shike_jax sweep table4 --config=configs/digits_lt.py --workdir=runs/digits4 --jobs=2 \\
      --config.stages.representation.epochs=3
  python -m shike_jax sweep grid --config=configs/cifar_lt.py --workdir=runs/lr --rows='lr=0.1_*' --dry-run \\
      --set=stages.representation.lr=0.1,0.15 --set='model.depths=(1,2,1),(1,2)'
  python -m shike_jax sweep seeds --config=configs/imagenet_lt.py --workdir=runs/in --seeds=0,1,2 --slurm \\
      --sbatch=--nodes=2 --sbatch=--time=4:00:00

Each run has WORKDIR/ROW/seedN, its output is in WORKDIR/logs. The same command again skips what is finished and
continues what was interrupted. Exit status: 0 all finished, 1 some failed, 75 stopped by a signal, 2 wrong input.
Tables and figures afterwards: python -m shike_jax report --runs=WORKDIR --output=DIR
"""
INTERRUPTED = 75
HOME = Path(__file__).resolve().parents[2]  # of the package, and of launch/ in a clone
Settings = dict[str, str]  # field below `config.` to its value as on the command line


@dataclasses.dataclass
class Job:
    """One run: its name (ROW/seedN), directory and the arguments of `python -m shike_jax train`."""

    name: str
    workdir: Path
    arguments: list[str]

    @property
    def command(self) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", "shike_jax", "train", *self.arguments]

    def results(self) -> dict | None:
        """What the run found, when it is finished; None also where the file is damaged: the run writes it anew."""
        path = self.workdir / "results.json"
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError:
            return None


def rows(sweep: str, config: ConfigDict, grid: Sequence[str]) -> dict[str, Settings]:
    """Returns the settings of each row of a sweep.

    Raises:
      UserError: a configuration that the sweep does not fit, or a malformed --set.
    """
    if grid and sweep != "grid":
        raise UserError(f"--set={grid[0]}: belongs to the sweep `grid`, not {sweep}")
    if sweep == "table4":
        return _table4(config)
    if sweep == "table5":
        return _table5(config)
    return {"": {}} if sweep == "seeds" else _grid(grid)


def _table4(config: ConfigDict) -> dict[str, Settings]:
    """Single networks have one expert without fusion; terms that are off have weight 0."""
    if len(config.model.depths) < 2 or not config.model.fusion:
        raise UserError("table4: expected a configuration with all components: several experts and fusion")
    found = {}
    for row in paper.TABLE4:
        settings = {} if row.moe else {"model.depths": _tuple(config.model.depths[:1])}
        settings |= {} if row.dkf else {"model.fusion": "False"}
        found[row.name] = settings | _terms_off(config, [term for term in ("mu", "nt") if not getattr(row, term)])
    return found


def _table5(config: ConfigDict) -> dict[str, Settings]:
    """One expert has nobody to distil from: its terms are off."""
    from shike_jax.models import BACKBONES

    shared = len(BACKBONES[config.model.backbone].blocks) - 1
    if shared < 3:
        backbone = config.model.backbone
        raise UserError(f"table5: config.model.backbone={backbone!r} has {shared} shared stages; expected 3")
    found = {}
    for arrangement in paper.TABLE5:
        off = ["mu", "nt"] if len(arrangement) == 1 else []
        found[arrangement] = {"model.depths": _tuple(paper.depths_of(arrangement)), **_terms_off(config, off)}
    return found


def _terms_off(config: ConfigDict, terms: Sequence[str]) -> Settings:
    stages = config.stages
    return {f"stages.{name}.loss.{t}": "0.0" for name in config.run for t in terms if stages[name].loss[t]}


def _grid(grid: Sequence[str]) -> dict[str, Settings]:
    if not grid:
        raise UserError("grid: expected at least one --set=FIELD=VALUE,VALUE")
    axes = []
    for item in grid:
        field, _, values = item.removeprefix("config.").partition("=")
        found = [value for value in re.split(r",(?![^(]*\))", values) if value]
        if not found:
            raise UserError(f"--set={item}: expected FIELD=VALUE,VALUE, such as stages.representation.lr=0.1,0.2")
        axes.append([(field, value) for value in found])
    fields = [axis[0][0] for axis in axes]
    if len(set(fields)) < len(fields):
        raise UserError(f"--set: {', '.join(fields)} name a field twice; expected all its values in one --set")
    short = _short_names(fields)
    combinations = [dict(choice) for choice in itertools.product(*axes)]
    return {"_".join(f"{short[field]}={_in_path(v)}" for field, v in c.items()): c for c in combinations}


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """As many of each field's last components as tell all fields (different ones) apart."""
    candidates = ({f: ".".join(f.split(".")[-length:]) for f in fields} for length in itertools.count(1))
    return next(short for short in candidates if len(set(short.values())) == len(short))


def _in_path(value: str) -> str:
    """A value as part of a directory's name: (1,2,1) becomes 1-2-1."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-")


def _tuple(values: Sequence[int]) -> str:
    return f"({','.join(map(str, values))}{',' if len(values) == 1 else ''})"


def make_jobs(args: argparse.Namespace, mine: Sequence[str]) -> list[Job]:
    """Returns one job per row and seed; every configuration is read and checked before anything starts.

    Raises:
      UserError: a bad configuration, or a directory that belongs to another one.
    """
    config, _ = parse_config(mine)
    jobs = []
    for name, settings in rows(args.sweep, config, args.set).items():
        if args.rows and not any(fnmatch.fnmatchcase(name, p) for p in args.rows.split(",")):
            continue
        for seed in _seeds(args.seeds):
            changes = [f"--config.{field}={value}" for field, value in {**settings, "seed": str(seed)}.items()]
            label = f"{name}/seed{seed}" if name else f"seed{seed}"
            workdir = args.workdir / label
            plain = to_plain(parse_config([*mine, *changes])[0])
            if (workdir / "config.json").exists():
                examine(workdir, plain)
            jobs.append(Job(label, workdir, [*mine, *changes, f"--workdir={workdir}"]))
    if not jobs:
        raise UserError(f"--rows={args.rows}: no such row in {args.sweep}")
    return jobs


def _seeds(text: str) -> list[int]:
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds={text}: expected whole numbers such as 0,1,2") from None


def run_local(jobs: Sequence[Job], at_once: int, logs: Path) -> int:
    """Runs what is not finished, `at_once` at a time; returns the exit status."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])}
    if at_once > 1:  # JAX would reserve most of a GPU's memory for each process
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / at_once:.2f}")
    waiting = [job for job in jobs if job.results() is None]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished already; their output is in {logs}", flush=True)
    stopped: list[bool] = []
    before = {n: signal.signal(n, lambda *_: stopped.append(True)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = _run_all(waiting, at_once, logs, environment, stopped)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(_summary(jobs))
    return INTERRUPTED if stopped else int(bool(failed))


def _run_all(
    waiting: list[Job], at_once: int, logs: Path, environment: dict[str, str], stopped: list[bool]
) -> list[Job]:
    """Runs the jobs until all have ended or `stopped` has something in it; returns those that failed."""
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    failed = []
    while running or (waiting and not stopped):
        while waiting and len(running) < at_once and not stopped:
            job = waiting.pop(0)
            with _log(logs, job).open("a") as log:
                # A session of its own: Ctrl-C reaches this program only, which passes it on as SIGTERM.
                child = subprocess.Popen(job.command, stdout=log, stderr=log, env=environment, start_new_session=True)
            running[child] = job, time.time()
            print(f"{job.name}: started", flush=True)
        for child in [child for child in running if child.poll() is not None]:
            job, began = running.pop(child)
            status = child.returncode
            if status == INTERRUPTED:
                stopped.append(True)
            elif stopped and status:  # stopped before it could listen to signals
                status = INTERRUPTED
            elif status:
                failed.append(job)
            print(f"{job.name}: {_outcome(job, status, logs)}, {time.time() - began:.0f} s", flush=True)
        if stopped:
            for child in running:
                child.terminate()
            for child in running:
                child.wait()
        time.sleep(0.1)
    return failed


def _log(logs: Path, job: Job) -> Path:
    return logs / f"{job.name.replace('/', '-')}.log"


def _outcome(job: Job, status: int, logs: Path) -> str:
    results = job.results()
    if status == 0 and results:
        return f"top-1 {results['top1']:.2f} %"
    if status == INTERRUPTED:
        return "interrupted"
    lines = _log(logs, job).read_text(errors="replace").strip().splitlines() or ["no output"]
    return f"failed with status {status}: {lines[-1][:200]} ({_log(logs, job)})"


def _summary(jobs: Sequence[Job]) -> str:
    width = max(len(job.name) for job in jobs)
    found = [(job.name, job.results()) for job in jobs]
    scores = [(name, f"{results['top1']:6.2f}" if results else "unfinished") for name, results in found]
    return "\n".join(f"{name:<{width}}  {score}" for name, score in scores)


def array_script(jobs: Sequence[Job], at_once: int) -> str:
    """Returns a batch script that runs the jobs as an array through gpu_slurm.sbatch, whose settings it copies."""
    single = HOME / "launch" / "gpu_slurm.sbatch"
    if not single.exists():
        raise UserError(f"--slurm: {single} is missing")
    settings = [line for line in single.read_text().splitlines() if line.startswith("#SBATCH")]
    limit = f"%{at_once}" if at_once > 1 else ""
    runs = [f"  {shlex.quote(shlex.join(job.arguments))}" for job in jobs]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *settings,
            f"#SBATCH --array=0-{len(jobs) - 1}{limit}",
            "runs=(",
            *runs,
            ")",
            'eval "set -- ${runs[$SLURM_ARRAY_TASK_ID]}"',
            f'cd {shlex.quote(str(Path.cwd()))} && exec bash {shlex.quote(str(single))} "$@"',
            "",
        ]
    )


def submit(jobs: Sequence[Job], at_once: int, workdir: Path, options: Sequence[str]) -> int:
    """Writes WORKDIR/array.sbatch for what is not finished, gives it to sbatch with `options`; returns the status."""
    waiting = [job for job in jobs if job.results() is None]
    if not waiting:
        print("all runs are finished")
        return 0
    script = workdir / "array.sbatch"
    workdir.mkdir(parents=True, exist_ok=True)
    script.write_text(array_script(waiting, at_once))
    if shutil.which("sbatch") is None:
        raise UserError(f"--slurm: sbatch was not found; written for a machine that has it: {script}")
    return subprocess.run(["sbatch", *options, str(script)]).returncode


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m shike_jax sweep", "Trains many settings and seeds.", _EPILOG)
    parser.add_argument("sweep", choices=("table4", "table5", "seeds", "grid"))
    parser.add_argument("--config", metavar="FILE[:ARGS]", help="configuration; --config.FIELD=VALUE changes it")
    parser.add_argument("--workdir", type=Path, required=True, help="directory of all runs")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 (default 0)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=V,V", help="an axis of a grid; repeatable")
    parser.add_argument("--rows", default="", metavar="ROW,ROW", help="only these rows (* matches anything)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1; SLURM: no limit)")
    parser.add_argument("--slurm", action="store_true", help="submit a job array instead of running here")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed on to sbatch, such as --sbatch=--ntasks-per-node=1; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands (with --slurm the script) only")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    from shike_jax.config.loading import split_arguments

    mine, rest = split_arguments([item for item in argv if item != "--"])
    args = _parser().parse_args(rest)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: expected at least 1")
    jobs = make_jobs(args, mine)
    if args.dry_run:
        commands = "\n".join(shlex.join(["python", *job.command[1:]]) for job in jobs)
        print(array_script(jobs, args.jobs) if args.slurm else commands)
        return 0
    if args.slurm:
        return submit(jobs, args.jobs, args.workdir, args.sbatch)
    return run_local(jobs, args.jobs, args.workdir / "logs")
