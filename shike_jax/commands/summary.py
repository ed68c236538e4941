"""`python -m shike_jax summary WORKDIR`: one run's table on the terminal, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shike_jax.common.extras import optional
from shike_jax.common.parser import Parser
from shike_jax.common.text import parse_json, printable, say
from shike_jax.errors import UserError
from shike_jax.methods.scores import describe_scores

_EPILOG = """\
example:
  python -m shike_jax summary runs/digits

Written: WORKDIR/accuracy_by_count.png.
"""


def stage_table(results: Mapping[str, Any]) -> str:
    """Accuracies (percent) at the end of each stage, the ensemble and each expert, as aligned text."""
    experts = [f"expert {m + 1}" for m in range(len(results["experts"]))]
    scores = results.get("scores") or describe_scores()
    columns = [name for name, about in scores.items() if about["column"]]
    lines = ["".join(f"{name:>15}" if i == 0 else f"{name:>9}" for i, name in enumerate(("after", *columns, *experts)))]
    for stage in results["stages"]:
        values = [stage[name] for name in columns] + stage["experts"]
        cells = "".join("        -" if value is None else f"{value:9.2f}" for value in values)
        lines.append(f"{stage['name']:>15}{cells}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    description = "Prints a finished run's table and draws its figure."
    parser = Parser("python -m shike_jax summary", description, _EPILOG)
    parser.add_argument("workdir", type=Path, help="work directory of a finished run")
    workdir = parser.parse_args(argv).workdir
    path = workdir / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the work directory of a finished run")
    optional("matplotlib", "report.summary")
    try:
        results = parse_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); training again into this folder writes it anew") from None
    from shike_jax.report.figures import accuracy_by_count

    figure = workdir / "accuracy_by_count.png"
    accuracy_by_count(results, figure)
    say(f"\n{printable(results['split']['name'])}, accuracy in percent\n{stage_table(results)}\n")
    say(f"results      {path}\nlogs         {workdir / 'log.txt'}, {workdir / 'metrics.jsonl'}")
    say(f"checkpoints  {workdir / 'weights'}\nfigure       {figure}")
