"""`python -m shike_jax convert`: PyTorch weights to a checkpoint, and back with `--reverse`."""

from __future__ import annotations

from collections.abc import Sequence

from shike_jax.common.buckets import place
from shike_jax.common.parser import Parser
from shike_jax.config import own_files
from shike_jax.convert.checkpoint import HEAD_SETS, convert, reverse
from shike_jax.convert.names import MODELS
from shike_jax.convert.reader import KINDS, SUFFIXES

_EPILOG = """\
examples:
  python -m shike_jax convert --model=resnet152 --source=resnet152.pth --target=weights/resnet152
  python -m shike_jax convert --reverse --source=runs/if100 --target=if100.safetensors

A converted checkpoint serves `--config.init_from` of training, evaluation and prediction. PyTorch is not needed, and
pickled files cannot run code: anything but tensors, containers and numbers in them is refused. What --reverse writes
names its network; docs/pytorch_model.py loads it with PyTorch.
"""


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    about = "Converts PyTorch weights to a checkpoint of this package, or back with --reverse."
    parser = Parser("python -m shike_jax convert", about, _EPILOG)
    about = "default: the one that the source names, as checkpoints and files of --reverse do"
    parser.add_argument("--model", default="", help=f"the network: {', '.join(MODELS)}; {about}")
    about = f"{', '.join(SUFFIXES)} file; with --reverse a checkpoint or a work directory"
    parser.add_argument("--source", required=True, help=about)
    about = "folder to write, absent or empty; with --reverse a new file"
    parser.add_argument("--target", required=True, type=place, help=about)
    parser.add_argument("--num_classes", type=int, help="number of classes to insist on (default: the source's)")
    about = "of a file with both, the averaged or the raw weights (default: averaged, and this is said)"
    parser.add_argument("--weights", choices=KINDS, default="", help=about)
    about = "write PyTorch's names and layouts to .npz or .safetensors"
    parser.add_argument("--reverse", action="store_true", help=about)
    about = f"with --reverse, torchvision names: which classifiers ({' or '.join(HEAD_SETS)})"
    parser.add_argument("--head", help=about)
    own_files.add_option(parser)
    args = parser.parse_args(argv)
    own_files.register(args.config)
    if args.reverse:
        count = reverse(args.model, args.source, args.target, args.head)
    else:
        count = convert(args.model, place(args.source), args.target, args.num_classes, args.weights)
    print(f"{count} tensors of {args.model or args.source} written to {args.target}")
