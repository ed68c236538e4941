"""`python -m shike_jax pack`: a small-image split as one compressed file, read back without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence

from shike_jax.common.parser import Parser
from shike_jax.config.loading import parse_command
from shike_jax.data import arrays, sources

_EPILOG = """\
example:
  python -m shike_jax pack --config=configs/cifar_lt.py:imbalance_factor=100 --output=cifar100_if100.npz
  python -m shike_jax train --config=configs/cifar_lt.py:file=cifar100_if100.npz --workdir=runs/one

The file holds the images, labels and identity of the split: reading it back gives the same split hash. An existing
file is never overwritten.
"""


def main(argv: Sequence[str]) -> None:
    """Loads the configured split and writes it."""
    about = "Writes a small-image split (CIFAR, digits) with its images as one compressed .npz file."
    parser = Parser("python -m shike_jax pack", about, _EPILOG)
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="file to write; must not exist")
    config, args = parse_command(parser, argv)
    output = args.output
    arrays.check_output(output)
    source = sources.load(config.data)
    arrays.save(source, output)
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in source.split.parts.items())
    print(f"{output}: {source.split.name}, {sizes}, {os.path.getsize(output) / 1e6:.1f} MB, hash {source.split.hash}")
