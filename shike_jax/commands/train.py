"""`python -m shike_jax train`: trains, evaluates and resumes one run."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from shike_jax.cluster import preemption
from shike_jax.common.buckets import place
from shike_jax.common.command import program
from shike_jax.common.parser import Parser
from shike_jax.common.quiet import quiet_third_parties
from shike_jax.common.text import say
from shike_jax.config.loading import describe_fields, parse_config, split_arguments
from shike_jax.errors import UserError

_EPILOG = """\
example:
  python -m shike_jax train --config=configs/cifar_lt.py:official,imbalance_factor=50 --workdir=runs/if50 \\
      --config.seed=1 --config.stages.classifier.epochs=10

The same command started again continues where the run was stopped; a finished run is left as it is. On SIGTERM the run
is saved when the running call ends (one step on a CPU, by default an epoch on accelerators), and the exit status is 75,
as it is where a checkpoint cannot be read for now; 76 says that another process of the job was lost. Several processes:
give each --coordinator, --processes and --process, or start them where JAX finds them: on Cloud TPU VMs, GKE, SLURM,
Open MPI.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags that are not the configuration's."""
    about = "Trains one run as configured, evaluates it and writes WORKDIR/results.json."
    parser = Parser("python -m shike_jax train", about, _EPILOG)
    about = "a Python file that is run: a path, or the name of one that comes along; --config.FIELD=VALUE changes it"
    parser.add_argument("--config", metavar="FILE[:ARGUMENTS]", help=about)
    about = "list the fields that --config.FIELD=VALUE sets (those whose description holds WORD) and exit"
    parser.add_argument("--fields", nargs="?", const="", metavar="WORD", help=about)
    parser.add_argument("--workdir", type=place, help="folder or gs://BUCKET/NAME of the run; created, or continued")
    about = "check everything, print what would be done and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=about)
    about = "join the job that JAX finds around this process: auto (where it has several processes), on or off"
    parser.add_argument("--distributed", choices=("auto", "on", "off"), default="auto", help=about)
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 of a multi-process job")
    parser.add_argument("--processes", type=int, help="number of processes of the job")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    started = time.monotonic()
    preemption.listen()
    if any(item.partition("=")[0] in ("-h", "--help", "--fields") for item in argv):
        word = parse(split_arguments(argv)[1]).fields
        lines = describe_fields(word)
        if not lines:
            raise UserError(f"--fields={word}: no field's description holds this; expected a part of one's name")
        say("\n".join(lines))
        return 0
    config, rest = parse_config(argv)
    args = parse(rest)
    if args.workdir is None:
        raise UserError("--workdir is missing: expected a directory for checkpoints, logs and results")

    quiet_third_parties(config.log)

    import jax

    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)

    from shike_jax.cluster.joining import start_distributed
    from shike_jax.cluster.parallel import is_main

    start_distributed(args.coordinator, args.processes, args.process, config.train.peer_timeout, args.distributed)

    from shike_jax.cluster import compiled_cache, cpu, peers
    from shike_jax.training import loop

    if not args.dry_run:
        place(compiled_cache.folder_in_use() or ".")  # in a bucket, JAX reaches it by the same packages as we
    compiled_cache.use_default_folder()
    cpu.prepare(config.train.cpu_devices)
    with peers.watched(config.train.peer_timeout):
        if args.dry_run:
            from shike_jax.training import dry_run

            say("\n".join(dry_run.describe(config, args.workdir)))
            return 0
        try:
            results = loop.train(config, args.workdir, started)
        except preemption.Preempted as stopped:
            print(stopped, file=sys.stderr)
            return stopped.status
    if is_main() and config.log != "quiet":
        say(_ending(args.workdir, results))
    return 0


def _ending(workdir: Any, results: dict[str, Any] | list[dict[str, Any]]) -> str:
    """The table of a run, or of several seeds, and what may be done next."""
    from shike_jax.report.tables import stage_table

    runs = results if isinstance(results, list) else [results]
    tables = [stage_table(run) for run in runs]
    if len(runs) > 1:
        tables = [f"seed {run['seed']}\n{table}" for run, table in zip(runs, tables, strict=True)]
    folder = shlex.quote(str(workdir))
    first = f"{folder}/seed{runs[0]['seed']}" if len(runs) > 1 else folder
    own = "".join(f" --config={shlex.quote(file)}" for file in runs[0].get("files_to_use", ()))
    commands = (
        f"evaluate --checkpoint={first}{own}",
        f"predict --checkpoint={first} --images=FILES{own}",
        f"report --runs={folder} --output={folder}/report{own}",
    )
    lines = [*tables, f"\nresults in {workdir}; next:", *(f"  {program()} {command}" for command in commands)]
    return "\n" + "\n".join(lines)
