"""Weights to start from: a checkpoint of this package, or a PyTorch file as it is."""

from __future__ import annotations

from typing import Any

from shike_jax.common.buckets import place
from shike_jax.common.text import say
from shike_jax.convert.names import MODELS, has_head, to_variables, without_head
from shike_jax.convert.reader import SUFFIXES, Tell, read_state_dict
from shike_jax.errors import UserError
from shike_jax.storage.weights import load_weights

PyTree = Any


def is_file(source: str) -> bool:
    """Whether a source is a PyTorch file rather than a checkpoint, by its name."""
    return source.lower().endswith(SUFFIXES) and not place(source).is_dir()


def read_pretrained(source: str, backbone: str, tell: Tell = say) -> tuple[PyTree, tuple[str, ...] | None]:
    """Variables {`params`, `batch_stats`} to start from, and their classes' names by output; None where none are known.

    `source` is a work directory, a folder of weights, or a PyTorch file of torchvision's or timm's `backbone` (of the
    authors' network where the backbone is `resnet32`), converted on the way. Without its classifier, or with another
    one than theirs, the backbone alone is read. `UserError` for nothing there, damage, or tensors of another network.
    """
    if not is_file(source):
        variables, meta = load_weights(source)
        return variables, tuple(meta.get("class_names") or ()) or None
    model = "shike_resnet32_cifar" if backbone == "resnet32" else backbone
    if model not in MODELS:
        known = ", ".join(name for name in MODELS if name != "shike_resnet32_cifar")
        raise UserError(f"{source}: PyTorch weights of a {backbone} are not known here; expected one of {known}")
    state = read_state_dict(source, tell=tell)
    head = has_head(model, state)
    try:
        return to_variables(model, state if head else without_head(model, state), head=head)[0], None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
