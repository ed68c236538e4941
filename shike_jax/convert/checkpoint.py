"""PyTorch files to checkpoints of this package, and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

from shike_jax.convert.names import family_of, model_settings, to_state_dict, to_variables
from shike_jax.convert.reader import read_state_dict, write_state_dict
from shike_jax.errors import UserError
from shike_jax.models import HEAD_SETS
from shike_jax.storage.checkpoints import load_weights, save_weights


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
