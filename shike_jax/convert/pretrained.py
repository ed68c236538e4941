"""Weights to start from: a checkpoint of this package, or a PyTorch file as it is."""

from __future__ import annotations

from typing import Any

from shike_jax.common.errors import UserError
from shike_jax.convert.names import MODELS, to_variables
from shike_jax.convert.reader import SUFFIXES, read_state_dict
from shike_jax.storage.checkpoints import load_weights

PyTree = Any


def is_file(source: str) -> bool:
    """Whether a source is a PyTorch file rather than a checkpoint, by its name."""
    return source.endswith(SUFFIXES)


def read_pretrained(source: str, backbone: str) -> tuple[PyTree, tuple[str, ...] | None]:
    """Variables {`params`, `batch_stats`} to start from, and the names of their classes, for `warm.warm_start`.

    Args:
      source: a work directory, a folder of weights, or a PyTorch file of torchvision's or timm's `backbone` (of the
        authors' network where the backbone is `resnet32`), converted on the way.
      backbone: `config.model.backbone` of the network that will train.

    Returns:
      The variables, and the names of the classes in the order of the outputs; None where the source has none.

    Raises:
      UserError: nothing there, damaged, or the tensors of another network.
    """
    if not is_file(source):
        variables, meta = load_weights(source)
        return variables, tuple(meta.get("class_names") or ()) or None
    model = "shike_resnet32_cifar" if backbone == "resnet32" else backbone
    if model not in MODELS:
        known = ", ".join(name for name in MODELS if name != "shike_resnet32_cifar")
        raise UserError(f"{source}: PyTorch weights of a {backbone} are not known here; expected one of {known}")
    state = read_state_dict(source)
    try:
        return to_variables(model, state)[0], None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
