"""`python -m shike_jax.benchmark`: speed on this machine, beside plain Flax, PyTorch and Pillow in the same run."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.cli.command import run_main
from shike_jax.cli.parser import run_command

# subcommand: the module whose `main(argv)` it is, and what it measures
COMMANDS = {
    "step": ("shike_jax.benchmark.step", "the compiled training step, beside plain Flax and PyTorch"),
    "parts": ("shike_jax.benchmark.parts", "the layers of a training step one by one, beside PyTorch's"),
    "augment": ("shike_jax.benchmark.augmentation", "augmentation on the device, beside the same with Pillow"),
    "input": ("shike_jax.benchmark.host_input", "reading and cropping photographs, beside Pillow and tf.data"),
    "run": ("shike_jax.benchmark.whole_run", "a whole run: start-up, compilation, training, evaluation"),
    "compiled": ("shike_jax.benchmark.compiled", "a table of programs compiled for devices that are not there"),
}
_EPILOG = """\
examples:
  python -m shike_jax.benchmark step --batch=128 --against=plain,torch --json=step.json
  taskset -c 0 python -m shike_jax.benchmark augment
"""


def main(argv: Sequence[str]) -> int | None:
    """Runs a subcommand with the arguments behind it; raises UserError when there is none of that name."""
    description = "Measures speed and prints a summary; --json=FILE keeps samples, versions, device and commit."
    return run_command(argv, "python -m shike_jax.benchmark", description, COMMANDS, _EPILOG)


if __name__ == "__main__":
    run_main(main)
