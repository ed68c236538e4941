"""`python -m shike_jax configs`: the configurations that come with the package."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from shike_jax.common.parser import Parser, table
from shike_jax.common.text import say
from shike_jax.config.loading import SHIPPED

_EPILOG = """\
example:
  python -m shike_jax train --config=digits_lt --workdir=runs/digits

The head of each file tells its arguments and the results that were measured. Own files do as well: --config=FILE.py.
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    Parser("python -m shike_jax configs", "Lists the configurations that come along.", _EPILOG).parse_args(argv)
    files = sorted(path for path in SHIPPED.glob("*.py") if not path.stem.startswith("_"))
    width = max(len(path.stem) for path in files)
    for path in files:
        about = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines() or [""]
        say("\n".join(table(f"{path.stem:<{width}}  {about[0]}")))
    say(f"\nThey lie in {SHIPPED}.")
