"""`benchmark`: speed on this machine, next to plain Flax, PyTorch, Pillow and tf.data in the same run."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.common.parser import run_command

# subcommand: the module whose `main(argv)` it is, and what it measures
COMMANDS = {
    "step": ("shike_jax.benchmark.step", "the compiled training step, next to plain Flax and PyTorch"),
    "parts": ("shike_jax.benchmark.parts", "the layers of a training step one by one, next to PyTorch's"),
    "input": ("shike_jax.benchmark.host_input", "reading and cropping photographs, next to Pillow and tf.data"),
    "start": ("shike_jax.benchmark.start", "from the command to a run's first step, by its parts"),
    "run": ("shike_jax.benchmark.whole_run", "a whole run: start-up, compilation, training, evaluation"),
}
_EPILOG = """\
examples:
  python -m shike_jax benchmark step --batch=128 --against=plain,torch --json=step.json
  python -m shike_jax benchmark run --config=digits_lt --json=run.json
"""


def main(argv: Sequence[str]) -> int | None:
    """Runs a subcommand with the arguments after it; raises UserError when there is none of that name."""
    description = "Measures speed and prints a summary; --json=FILE keeps samples, versions, device and commit."
    return run_command(argv, "python -m shike_jax benchmark", description, COMMANDS, _EPILOG)
