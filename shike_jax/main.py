"""`python -m shike_jax.main`: another name of `python -m shike_jax train`, as runs of version 0.1 were started."""

import sys

from shike_jax.commands.train import main
from shike_jax.common.command import run_main

if __name__ == "__main__":
    run_main(main, sys.argv[1:])
