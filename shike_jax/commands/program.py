"""The program: every command of this package under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shike_jax.common.command import run_main
from shike_jax.common.parser import run_command

# command: the module whose `main(argv)` it is, and what it does
COMMANDS = {
    name: (f"shike_jax.commands.{name}", text)
    for name, text in {
        "configs": "the configurations that come along",
        "config": "a configuration, resolved, field by field",
        "train": "train, evaluate and resume a run",
        "evaluate": "accuracies of a checkpoint, in detail",
        "predict": "classes of your images: terminal, .csv or .npz",
        "convert": "PyTorch weights to a checkpoint, and back",
        "save": "a network to give away: safetensors, config.json, a card",
        "export": "a function that runs without this package",
        "inspect": "what a configuration trains on, in numbers and pictures",
        "report": "tables and figures of finished runs",
        "summary": "the table of one run, at a glance",
        "sweep": "many settings and seeds, here or on SLURM",
        "compile": "the steps, compiled for TPUs or GPUs that are not there",
        "benchmark": "speed on this machine",
        "pack": "a small-image split as one file",
        "doctor": "what this machine offers, and what is wrong",
    }.items()
}
_EPILOG = """\
From your own photographs to predictions:

  python -m shike_jax train --config=folder_lt:root=photos --workdir=runs/mine
  python -m shike_jax predict --checkpoint=runs/mine --images=new --output=new.csv
"""


def main(argv: Sequence[str]) -> int | None:
    """Runs a command with the arguments after it; raises UserError when there is none of that name."""
    return run_command(
        argv, "python -m shike_jax", "Long-tailed image recognition with SHIKE, in JAX.", COMMANDS, _EPILOG
    )


def entry() -> None:
    """What the installed command calls."""
    run_main(main, sys.argv[1:])
