"""`python -m shike_jax summary WORKDIR`: one run's table on the terminal, and its figure."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.common import atomic
from shike_jax.common.buckets import place
from shike_jax.common.extras import optional
from shike_jax.common.parser import Parser
from shike_jax.common.text import parse_json, printable, say
from shike_jax.config import own_files
from shike_jax.errors import naming

_EPILOG = """\
example:
  python -m shike_jax summary runs/digits

Written: WORKDIR/accuracy_by_count.png.
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    description = "Prints a finished run's table and draws its figure."
    parser = Parser("python -m shike_jax summary", description, _EPILOG)
    parser.add_argument("workdir", type=place, help="work directory of a finished run")
    own_files.add_option(parser)
    args = parser.parse_args(argv)
    own_files.register(args.config)
    workdir = args.workdir
    path = workdir / "results.json"
    optional("matplotlib", "summary")
    from shike_jax.report.figures import accuracy_by_count
    from shike_jax.report.tables import stage_table

    kind = "the results of a finished run (training again into this folder writes damaged ones again)"
    figure = workdir / "accuracy_by_count.png"
    with naming(path, kind):
        results = parse_json(path.read_text(encoding="utf-8"))
        table = f"{printable(results['split']['name'])}, accuracy in percent\n{stage_table(results)}"
        with naming(figure), atomic.replacing(figure) as partial:
            accuracy_by_count(results, partial)
    say(f"\n{table}\n")
    say(f"results      {path}\nlogs         {workdir / 'log.txt'}, {workdir / 'metrics.jsonl'}")
    say(f"checkpoints  {workdir / 'weights'}\nfigure       {figure}")
