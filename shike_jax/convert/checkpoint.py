"""PyTorch files to checkpoints of this package, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shike_jax.common import atomic
from shike_jax.common.text import parse_json, to_json
from shike_jax.convert.names import MODELS, family_of, model_settings, named, to_state_dict, to_variables
from shike_jax.convert.reader import read_remark, read_state_dict, write_state_dict
from shike_jax.errors import UserError, naming
from shike_jax.models import HEAD_SETS, build_model
from shike_jax.storage.weights import load_weights, save_weights

REMARK = "shike_jax"  # of a .safetensors: the facts about the network as JSON
FACTS = ("model", "num_classes", "image_size", "resize", "mean", "std", "class_names", "class_counts", "heads")


def convert(model: str, source: Path, target: Path, num_classes: int | None = None, kind: str = "") -> int:
    """Writes the PyTorch file `source` as a checkpoint into the folder `target`, wholly or not at all.

    Returns the number of tensors. `model` is a name of `MODELS`; empty: the network that the file names, as files of
    `reverse` do. `num_classes` is insisted on; None: the source's. `kind`: see `read_state_dict`. `UserError` for a
    target with content, an unreadable source, or tensors that are not those of `model`.
    """
    if not model:
        meta = _remembered(source)
    else:
        family = family_of(model)
        meta = {name: getattr(family, name) for name in ("image_size", "resize", "mean", "std")}
        meta |= {"model": model_settings(model), "class_names": None}
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target={target}: exists and is not an empty folder")
    state = read_state_dict(source, kind)
    try:
        variables, num_classes = to_variables(model or meta["model"], state, num_classes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    meta = {**meta, "num_classes": num_classes, "source": source.name}
    with naming(f"--target={target}"), atomic.new_folder(target) as finished:
        save_weights(finished, variables, meta)
    return len(state)


def _remembered(source: Path) -> dict[str, Any]:
    with naming(source):  # a file that is not there names no network either
        source.stat()
    text = read_remark(source, REMARK)
    if not text:
        raise UserError(f"--model is missing: {source} does not name its network; expected one of {', '.join(MODELS)}")
    try:
        facts = parse_json(text)
        build_model(facts["model"], 2)
        return {name: facts[name] for name in FACTS if name in facts}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: its remark {REMARK} is damaged ({error}); give --model") from error


def reverse(model: str, source: Path | str, target: Path, head: str | None = None) -> int:
    """Writes the checkpoint `source` as a PyTorch state dict to the file `target`; returns the number of tensors.

    `model` is a name of `MODELS`; empty: the checkpoint's own network. `UserError` for an unreadable checkpoint or one
    of another network, a target that exists, or a `head` that is needed or unknown.
    """
    if model:
        family_of(model)
    if head is not None and head not in HEAD_SETS:
        raise UserError(f"--head={head}: expected {' or '.join(HEAD_SETS)}")
    variables, meta = load_weights(source)
    try:
        state = to_state_dict(model or named(meta["model"]), variables, head)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    write_state_dict(target, state, {REMARK: to_json({name: meta[name] for name in FACTS if name in meta})})
    return len(state)
