"""`python -m shike_jax config`: a configuration as a run would use it, field by field."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.common.parser import Parser
from shike_jax.common.text import aligned, say, to_json
from shike_jax.config import base, stage, to_plain
from shike_jax.config.fields import flat
from shike_jax.config.loading import parse_command

_EPILOG = """\
example:
  python -m shike_jax config --config=cifar_lt:official,imbalance_factor=50 --config.seed=7 --changed

A line can be given to train as --config.FIELD=VALUE. `train --fields` explains the fields.
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
    defaults = base()
    defaults.stages = {name: stage() for name in config.stages}
    known = flat(to_plain(defaults))
    rows = [
        [field, repr(tuple(value) if isinstance(value, list) else value)]
        for field, value in flat(to_plain(config)).items()
        if not args.changed or field not in known or known[field] != value
    ]
    say("\n".join(aligned(rows, left=(0, 1))))
