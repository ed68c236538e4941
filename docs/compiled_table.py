"""Prints what `shike-jax compile --json=FILE` wrote as a table in Markdown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shike_jax.common.command import run_main
from shike_jax.common.parser import Parser
from shike_jax.common.text import parse_json, say
from shike_jax.errors import UserError

HEADER = (
    "program",
    "devices",
    "batch (a device)",
    "computed in",
    "GB of a device",
    "fits",
    "GFLOP",
    "GB moved",
    "collectives",
    "gathers, scatters (of pixels)",
    "seconds to compile",
)
_EPILOG = """\
example:
  python docs/compiled_table.py --page=docs docs/results/compiled/*.json
"""


def rows(written: dict[str, Any], link: str) -> list[tuple[str, ...]]:
    """Rows of the table for one file, a row for each program in it; what a compiler did not state is a dash.

    Args:
      written: content of the file.
      link: where it lies, seen from the page that will hold the table.

    Raises:
      KeyError: it is something else's.
    """
    found: list[tuple[str, ...]] = []
    for one in written["programs"]:
        of_device = f"of {written['device_memory'] / 1e9:.1f}"
        if "error" in one:  # too large even to compile: nothing was counted
            counts = (f"more than all {of_device}", "no", "-", "-", "-", "-")
        else:
            memory = one["memory"]
            collectives = (f"{v['count']} {k} of {v['bytes'] / 1e6:.1f} MB" for k, v in one["collectives"].items())
            moves = ", ".join(f"{one[kind]['count']} ({one[kind]['of_pixels']})" for kind in ("gathers", "scatters"))
            counts = (
                f"{memory['total'] / 1e9:.2f} {of_device}" if memory else "-",
                {True: "yes", False: "no", None: "-"}[one["fits"]],
                _billions(one["flops"], 1),
                _billions(one["bytes_accessed"], 2),
                ", ".join(collectives) or "none",
                moves,
            )
        stage = one["what"].removeprefix("train ").replace("representation", "").strip()
        name = f"[{PurePosixPath(link).stem}]({link}){' ' + stage if stage else ''}"
        if (steps := written.get("steps_per_call", 1)) > 1:
            name += f", {steps} steps a call"
        batch = f"{one['batch_per_device'] * written['devices']} ({one['batch_per_device']})"
        seconds = f"{one['seconds']['compile']:.0f}"
        found.append((name, written["topology"], batch, written["dtype"], *counts, seconds))
    return found


def table(paths: Sequence[Path], page: Path) -> str:
    """The table of several files, in their order, for a page in the folder `page`.

    Raises:
      UserError: a file cannot be read, or is not one of `shike-jax compile`.
    """
    lines = [HEADER, ("---",) * len(HEADER)]
    for path in paths:
        try:
            lines += rows(parse_json(path.read_text()), Path(os.path.relpath(path, page)).as_posix())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: {error!r}; expected a file that shike-jax compile --json=FILE wrote") from error
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _billions(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value / 1e9:.{digits}f}"


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    description = "Prints what `shike-jax compile --json=FILE` wrote as one table in Markdown."
    options = Parser("python docs/compiled_table.py", description, _EPILOG)
    options.add_argument("files", nargs="+", type=Path, metavar="FILE")
    options.add_argument("--page", type=Path, default=Path(), metavar="FOLDER", help="where links start from")
    args = options.parse_args(argv)
    say(table(args.files, args.page).rstrip("\n"))


if __name__ == "__main__":
    run_main(main)
