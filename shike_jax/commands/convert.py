"""`python -m shike_jax convert`: PyTorch weights to a checkpoint, and back with `--reverse`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shike_jax.common.parser import Parser
from shike_jax.convert.names import MODELS, family_of, model_settings, to_state_dict, to_variables
from shike_jax.convert.reader import KINDS, SUFFIXES, read_state_dict, write_state_dict
from shike_jax.errors import UserError
from shike_jax.models import HEAD_SETS
from shike_jax.storage.checkpoints import load_weights, save_weights

_EPILOG = """\
examples:
  python -m shike_jax convert --model=resnet152 --source=resnet152.pth --target=weights/resnet152
  python -m shike_jax convert --model=shike_resnet32_cifar --source=best.pth.tar --target=weights/shike
  python -m shike_jax convert --model=resnet152 --source=weights/resnet152 --target=resnet152.safetensors --reverse

A converted checkpoint serves `--config.init_from` of training, evaluation and prediction. PyTorch is not needed, and
pickled files cannot run code: anything but tensors, containers and numbers in them is refused.
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "python -m shike_jax convert",
        "Converts PyTorch weights to a checkpoint of this package, or back with --reverse.",
        _EPILOG,
    )
    parser.add_argument("--model", required=True, help=f"the network: {', '.join(MODELS)}")
    parser.add_argument(
        "--source",
        required=True,
        type=Path,
        help=f"{', '.join(SUFFIXES)} file; with --reverse a checkpoint or a work directory",
    )
    parser.add_argument(
        "--target", required=True, type=Path, help="folder to write, absent or empty; with --reverse a new file"
    )
    parser.add_argument("--num_classes", type=int, help="number of classes to insist on (default: the source's)")
    about = "of a file with both, the averaged or the raw weights (default: averaged, and this is said)"
    parser.add_argument("--weights", choices=KINDS, default="", help=about)
    parser.add_argument(
        "--reverse", action="store_true", help="write PyTorch's names and layouts to .npz or .safetensors"
    )
    parser.add_argument(
        "--head", help=f"with --reverse, torchvision names: which classifiers ({' or '.join(HEAD_SETS)})"
    )
    return parser.parse_args(argv)


def convert(model: str, source: Path, target: Path, num_classes: int | None = None, kind: str = "") -> int:
    """Writes the PyTorch file `source` as a checkpoint into the folder `target`, wholly or not at all.

    Args:
      num_classes: to insist on; None: the source's.
      kind: as for `read_state_dict`.

    Returns:
      The number of tensors read.

    Raises:
      UserError: a target with content, an unreadable source, or tensors that are not those of `model`.
    """
    family = family_of(model)
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target={target}: exists and is not an empty folder")
    state = read_state_dict(source, kind)
    try:
        variables, num_classes = to_variables(model, state, num_classes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    meta = {
        "model": model_settings(model),
        "num_classes": num_classes,
        "source": source.name,
        "image_size": family.image_size,
        "resize": family.resize,
        "mean": list(family.mean),
        "std": list(family.std),
        "class_names": None,
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            finished = Path(scratch) / "weights"
            save_weights(finished, variables, meta)
            finished.rename(target)  # replaces an empty folder
    except OSError as error:
        raise UserError(f"--target={target}: {error}") from error
    return len(state)


def reverse(model: str, source: Path, target: Path, head: str | None = None) -> int:
    """Writes the checkpoint `source` as a PyTorch state dict to the file `target`; returns the number of tensors.

    Raises:
      UserError: an unreadable checkpoint or one of another network, a target that exists, `head` is needed or unknown.
    """
    family_of(model)
    if head is not None and head not in HEAD_SETS:
        raise UserError(f"--head={head}: expected {' or '.join(HEAD_SETS)}")
    variables, _ = load_weights(source)
    try:
        state = to_state_dict(model, variables, head)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    write_state_dict(target, state)
    return len(state)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = _parse(argv)
    if args.reverse:
        count = reverse(args.model, args.source, args.target, args.head)
    else:
        count = convert(args.model, args.source, args.target, args.num_classes, args.weights)
    print(f"{args.model}: {count} tensors from {args.source} written to {args.target}")
