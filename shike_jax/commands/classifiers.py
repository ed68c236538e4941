"""What the commands that take a trained network have in common: its options, and loading it."""

from __future__ import annotations

import argparse

from shike_jax.common.parser import Parser
from shike_jax.config import own_files
from shike_jax.evaluation.classifier import Classifier, load


def add_options(parser: Parser, required: bool = True, mirror: bool = True) -> None:
    """Adds --checkpoint, --config and --head, and with `mirror` --mirror."""
    about = "a run's work directory, its weights/STAGE, or converted weights"
    parser.add_argument("--checkpoint", required=required, metavar="DIR", help=about)
    own_files.add_option(parser)
    about = "representation or classifier; default: what the run trained last"
    parser.add_argument("--head", default="", metavar="SET", help=about)
    if mirror:
        about = "average the logits of each image and its mirror image; for networks trained with flips"
        parser.add_argument("--mirror", action="store_true", default=None, help=about)


def loaded(args: argparse.Namespace) -> Classifier:
    """The network that these options name."""
    own_files.register(args.config)
    return load(args.checkpoint, args.head, mirror=getattr(args, "mirror", None))
