"""`python -m shike_jax save`: a network in the form that hubs expect, in a folder or on a hub."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.commands import classifiers
from shike_jax.common.parser import Parser
from shike_jax.common.text import say
from shike_jax.errors import UserError

_EPILOG = """\
example:
  python -m shike_jax save --checkpoint=runs/mine --output=mine --push=OWNER/NAME

Written: model.safetensors, config.json and README.md. Every command takes the folder, or hf://OWNER/NAME, as
--checkpoint. --push needs the extra `hub` and a login (hf auth login).
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    about = "Writes a network as safetensors, config.json and a card."
    parser = Parser("python -m shike_jax save", about, _EPILOG)
    classifiers.add_options(parser, mirror=False)
    parser.add_argument("--output", metavar="DIR", help="a new folder")
    parser.add_argument("--push", metavar="OWNER/NAME", help="a place on Hugging Face's hub")
    parser.add_argument("--private", action="store_true", help="--push: only its owner sees a new one")
    args = parser.parse_args(argv)
    if not args.output and not args.push:
        raise UserError("--output or --push is missing; see python -m shike_jax save --help")
    classifier = classifiers.loaded(args)
    if args.output:
        classifier.save(args.output)
        say(f"{args.output}: {classifier!r}")
    if args.push:
        say(f"{classifier.push(args.push, private=args.private)}: {classifier!r}")
