"""`python -m shike_jax COMMAND`, which the installed command `shike-jax` is too."""

import sys

from shike_jax.commands.program import main
from shike_jax.common.command import run_main


def entry() -> None:
    """What the installed command calls."""
    run_main(main, sys.argv[1:])


if __name__ == "__main__":
    entry()
