"""`python -m shike_jax config`: a configuration as a run would use it, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shike_jax.common.parser import Parser
from shike_jax.common.text import aligned, say, to_json
from shike_jax.config import base, stage, to_plain
from shike_jax.config.loading import parse_command

_EPILOG = """\
examples:
  python -m shike_jax config --config=cifar_lt:official,imbalance_factor=50
  python -m shike_jax config --config=digits_lt --config.seed=7 --changed

A line can be given to train as --config.FIELD=VALUE. `train --fields` explains
the fields.
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax config", "Prints a configuration with everything resolved.", _EPILOG)
    parser.add_argument("--changed", action="store_true", help="only what differs from the fields' defaults")
    parser.add_argument("--json", action="store_true", help="as JSON, as WORKDIR/config.json has it")
    config, args = parse_command(parser, argv)
    if args.json:
        say(to_json(to_plain(config), indent=1))
        return
    plain, defaults = to_plain(config), to_plain(base())
    defaults["stages"] = {name: to_plain(stage()) for name in plain["stages"]}
    known = dict(_flat(defaults))
    rows = [
        [field, repr(tuple(value) if isinstance(value, list) else value)]
        for field, value in _flat(plain)
        if not args.changed or field not in known or known[field] != value
    ]
    say("\n".join(aligned(rows, left=(0, 1))))


def _flat(plain: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in plain.items():
        inner = isinstance(value, Mapping) and value
        found += _flat(value, f"{prefix}{name}.") if inner else [(prefix + name, value)]
    return found
