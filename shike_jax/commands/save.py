"""`python -m shike_jax save`: a network in the form that hubs expect, in a folder or on a hub."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.common.parser import Parser
from shike_jax.common.text import say
from shike_jax.config import own_files
from shike_jax.errors import UserError
from shike_jax.evaluation.classifier import load

_EPILOG = """\
examples:
  python -m shike_jax save --checkpoint=runs/mine --output=mine
  python -m shike_jax save --checkpoint=runs/mine --push=OWNER/NAME

Written: model.safetensors, config.json and README.md. Every command takes the
folder, or hf://OWNER/NAME, as --checkpoint. --push needs the extra `hub` and a
login (hf auth login).
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    about = "Writes a network as safetensors, config.json and a card."
    parser = Parser("python -m shike_jax save", about, _EPILOG)
    place = "a run's work directory, its weights/STAGE, or converted weights"
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help=place)
    own_files.add_option(parser)
    parser.add_argument("--output", metavar="DIR", help="a new folder")
    parser.add_argument("--push", metavar="OWNER/NAME", help="a place on Hugging Face's hub")
    parser.add_argument("--private", action="store_true", help="--push: only its owner sees a new one")
    which = "representation or classifier; default: what the run trained last"
    parser.add_argument("--head", default="", metavar="SET", help=which)
    args = parser.parse_args(argv)
    if not args.output and not args.push:
        raise UserError("--output or --push is missing; see python -m shike_jax save --help")
    own_files.register(args.config)
    classifier = load(args.checkpoint, args.head)
    if args.output:
        classifier.save(args.output)
        say(f"{args.output}: {classifier!r}")
    if args.push:
        say(f"{classifier.push(args.push, private=args.private)}: {classifier!r}")
