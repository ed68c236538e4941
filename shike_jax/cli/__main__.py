"""The console command `shike-jax`: every command of this package behind one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shike_jax.cli.command import run_main
from shike_jax.cli.parser import run_command

# subcommand: the module whose `main(argv)` it is, and what it does
COMMANDS = {
    "train": ("shike_jax.main", "train, evaluate and resume a run: python -m shike_jax.main"),
    "evaluate": ("shike_jax.evaluate", "accuracies of a checkpoint, in detail"),
    "predict": ("shike_jax.predict", "classes of your images: terminal, .csv or .npz"),
    "convert": ("shike_jax.convert.__main__", "PyTorch weights to a checkpoint, and back"),
    "export": ("shike_jax.export", "a function that runs without this package"),
    "inspect": ("shike_jax.data.inspect", "what a configuration trains on, in numbers and pictures"),
    "report": ("shike_jax.report.__main__", "tables and figures of finished runs"),
    "benchmark": ("shike_jax.benchmark.__main__", "speed on this machine"),
    "compile": ("shike_jax.compile", "the steps, compiled for TPUs or GPUs that are not there"),
    "doctor": ("shike_jax.doctor", "what this machine offers, and what is wrong"),
}
_EPILOG = """\
From your own photographs to predictions:

  shike-jax train --config=folder_lt:root=photos --workdir=runs/mine
  shike-jax predict --checkpoint=runs/mine --images=new --output=new.csv
"""


def main(argv: Sequence[str]) -> int | None:
    """Runs a subcommand with the arguments behind it; raises UserError when there is none of that name."""
    return run_command(argv, "shike-jax", "Long-tailed image recognition with SHIKE, in JAX.", COMMANDS, _EPILOG)


def entry() -> None:
    """What the installed command calls."""
    run_main(main, sys.argv[1:])


if __name__ == "__main__":
    entry()
