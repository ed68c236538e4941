"""A network as people give it away: a folder of model.safetensors, config.json and README.md, local or on a hub.

The tensors are the network's own variables under their paths, with dots: `params.trunk.conv1.kernel`. config.json holds
what a checkpoint knows of the network, and a digest of all tensors; README.md begins with the metadata that hubs read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from shike_jax.common.atomic import write_json, write_text
from shike_jax.common.extras import optional
from shike_jax.common.text import markdown, markdown_table, number, parse_json
from shike_jax.errors import UserError, reason
from shike_jax.storage import tensor_file
from shike_jax.storage.card import example_of, is_picture, named
from shike_jax.storage.reading import Damaged
from shike_jax.storage.trees import digest

PyTree = Any
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PREFIX = "hf://"
_NEEDED = {"model", "num_classes", "image_size", "mean", "std"}  # without which there is no classifier


def save(folder: epath.Path, tree: PyTree, meta: Mapping[str, Any]) -> None:
    """Writes variables {`params`, `batch_stats`} as the three files, the weights last: a folder without them is no
    network. Paths of this machine in the checkpoint's configuration (`meta`) are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"library_name": "shike_jax", **_without_paths(meta), "digest": digest(tree)}
    write_json(folder / CONFIG, meta)
    write_text(folder / CARD, _card(meta))
    arrays = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(tree, sep=".").items()}
    (folder / WEIGHTS).write_bytes(tensor_file.to_bytes(arrays, {"format": "flax"}))


def load(folder: epath.Path) -> tuple[PyTree, dict[str, Any]]:
    """Variables and facts of a folder that `save` wrote; UserError for damaged or missing files, and for others'."""
    try:
        if not (folder / CONFIG).exists():
            raise UserError(f"no {CONFIG} next to {WEIGHTS}")
        meta = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        if not (isinstance(meta, dict) and meta.keys() >= _NEEDED and isinstance(meta["model"], dict)):
            raise UserError(f"{CONFIG} next to it is not of this package; expected what `save` writes")
        arrays, _ = tensor_file.from_bytes((folder / WEIGHTS).read_bytes())
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is damaged ({error})") from error
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from error
    tree = traverse_util.unflatten_dict(arrays, sep=".")
    if "digest" in meta and digest(tree) != meta["digest"]:
        raise Damaged(f"checkpoint {folder} is damaged: its arrays do not match their digest")
    return tree, meta


def fetch(name: str) -> epath.Path:
    """The local copy of a hub's network OWNER/NAME (perhaps OWNER/NAME@REVISION), loaded where it is not there yet."""
    place, _, revision = name.removeprefix(PREFIX).partition("@")
    _check_name(place)
    hub = optional("huggingface_hub", f"{PREFIX}{place}")
    try:
        found = hub.snapshot_download(place, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG, CARD])
    except Exception as error:  # the library's own errors, and those of what it connects with
        raise UserError(f"{PREFIX}{place}: cannot be loaded ({reason(error)})") from error
    return epath.Path(found)


def push(name: str, tree: PyTree, meta: Mapping[str, Any], private: bool) -> str:
    """Writes a network to a hub as OWNER/NAME, made if it is missing, by the library's login; returns its address."""
    place = name.removeprefix(PREFIX)
    _check_name(place)
    hub = optional("huggingface_hub", "push")
    with tempfile.TemporaryDirectory() as scratch:
        save(epath.Path(scratch), tree, meta)
        try:
            hub.create_repo(place, private=private, exist_ok=True)
            hub.upload_folder(repo_id=place, folder_path=str(Path(scratch)), commit_message="A network of shike_jax")
        except Exception as error:
            raise UserError(f"{PREFIX}{place}: cannot be written ({reason(error)})") from error
    return f"{PREFIX}{place}"


def _check_name(place: str) -> None:
    if len(parts := place.split("/")) != 2 or not all(parts):
        raise UserError(f"{PREFIX}{place}: expected {PREFIX}OWNER/NAME")


def _without_paths(value: Any) -> Any:
    """Plain data in which absolute paths are empty: they name a machine, and lead nowhere on another one."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    return "" if isinstance(value, str) and value.startswith(("/", "~")) else value


def _card(meta: Mapping[str, Any]) -> str:
    """README.md: metadata as YAML (JSON is YAML), then what the network is and how it is used."""
    model, classes, scores = meta["model"], meta["num_classes"], meta.get("scores") or {}
    data = (meta.get("config") or {}).get("data", {})
    name = (meta.get("config") or {}).get("name") or f"{model['backbone']} of {classes} classes"
    side, counts = meta["image_size"], meta.get("class_counts") or ()
    example = example_of(meta, side)
    pictures = is_picture(example)
    task, taken = ("image-classification", "images") if pictures else ("other", "arrays")
    described: dict[str, Any] = {
        "library_name": "shike_jax",
        "pipeline_tag": task,
        "tags": [*([task] if pictures else []), "long-tailed-recognition", "jax", "flax"],
        "metrics": ["accuracy"],
    }
    part = "val" if data.get("validation") else data.get("test_part")  # what a run looks at while it trains
    if scores.get("top1") is not None:
        dataset = {"name": data.get("name") or name, "type": data.get("name") or "image-folder"}
        dataset |= {"split": part} if part else {}
        metric = {"type": "accuracy", "value": round(scores["top1"] / 100, 4)}
        described["model-index"] = [
            {"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": [metric]}]}
        ]
    experts = len(model["depths"])
    kind = f"{experts} experts on a {model['backbone']} (SHIKE, CVPR 2023)" if experts > 1 else f"A {model['backbone']}"
    seen = f"{side} x {side} pixels, RGB" if pictures else f"arrays {named(example)}"
    mirrored = " Its logits are the means of an image's and its mirror image's." if meta.get("mirror") else ""
    lines = [
        *("---", *(f"{key}: {json.dumps(value)}" for key, value in described.items()), "---", ""),
        *(f"# {markdown(name)}", ""),
        f"{kind}, a classifier of {classes} classes for long-tailed data; input {seen}.{mirrored}",
    ]
    if counts:
        lines.append(f"Trained on {sum(counts):,} {taken}, {max(counts):,} to {min(counts):,} of a class.")
    shown = {k: v for k, v in scores.items() if isinstance(v, int | float) and k in ("top1", "many", "medium", "few")}
    if shown:
        where = f" on part `{part}`" if part else ""
        where += ", held out of the training images" if data.get("validation") else ""
        lines += ["", *markdown_table([*shown], [[*map(number, shown.values())]]), "", f"Accuracy in percent{where}."]
    lines += [
        *("", "```python", "import shike_jax as sj", ""),
        'classifier = sj.load("PATH OR hf://OWNER/NAME")',
        f"classes, probabilities = classifier.predict({taken})  # {named(example, 'N')}",
        "```",
        "",
        "`config.json` holds the names of the classes, how the input is normalised, and how it was trained. With "
        "PyTorch: `python -m shike_jax convert --reverse`.",
    ]
    return "\n".join(lines) + "\n"
