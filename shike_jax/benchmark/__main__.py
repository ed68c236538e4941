"""`python -m shike_jax.benchmark`: speed on this machine, beside plain Flax, PyTorch and Pillow in the same run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from shike_jax.errors import UserError, run_main

# subcommand: the module whose `main(argv)` it is, and what it measures
COMMANDS = {
    "step": ("step", "the compiled training step, beside plain Flax and PyTorch"),
    "augment": ("augmentation", "augmentation on the device, beside the same with Pillow"),
    "input": ("host_input", "reading and cropping photographs on one core, beside Pillow and tf.data"),
    "run": ("whole_run", "a whole run: start-up, compilation, training, evaluation"),
}
_LINES = "\n".join(f"  {name:<8} {text}" for name, (_, text) in COMMANDS.items())
HELP = f"""\
usage: python -m shike_jax.benchmark COMMAND [OPTIONS] [--json=FILE]

Measures speed and prints a summary; --json keeps every sample with versions, device and commit.

commands:
{_LINES}

  python -m shike_jax.benchmark COMMAND --help explains one.

examples:
  python -m shike_jax.benchmark step --batch=128 --against=plain,torch --json=step.json
  taskset -c 0 python -m shike_jax.benchmark augment
"""


def main(argv: Sequence[str]) -> int | None:
    """Runs a subcommand with the arguments behind it.

    Raises:
      UserError: no such subcommand, and whatever the subcommand raises.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"{name!r} measures nothing; expected one of {', '.join(COMMANDS)}")
    return importlib.import_module(f"shike_jax.benchmark.{COMMANDS[name][0]}").main(rest)


if __name__ == "__main__":
    run_main(main)
