"""A network's variables at the end of each stage, with what is needed to rebuild it: `weights/STAGE/` of a run."""

from __future__ import annotations

from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from shike_jax.cluster import parallel
from shike_jax.common import buckets
from shike_jax.errors import UserError
from shike_jax.storage import hub_form
from shike_jax.storage.folders import Meta, PyTree, absolute, checkpointer, is_finished, read_meta, read_saved, seal
from shike_jax.storage.reading import patiently
from shike_jax.storage.trees import digest, to_tree


def save_weights(directory: Any, variables: PyTree, meta: Meta) -> None:
    """Writes a network's variables {`params`, `batch_stats`} and `meta` to a path or bucket URL, wholly or not at all.

    What is there is replaced (in a bucket: removed, then written). On several processes the main one writes; all return
    when it has. `meta` is JSON: `model` (the fields of config.model), `num_classes`, `image_size`, `mean`, `std`,
    `class_names`, `class_counts` (training images of each class), ...
    """
    if parallel.is_main():
        tree = to_tree(parallel.to_host(variables))
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave({**meta, "digest": digest(tree)})
        )
        target = absolute(directory)
        with buckets.staged(target) as folder, checkpointer() as orbax:
            orbax.save(folder, args=args, force=True)
            seal(epath.Path(folder))
    parallel.barrier("weights written")


def load_weights(directory: Any) -> tuple[PyTree, Meta]:
    """Reads weights: a folder of `save_weights` or `hub_form.save`, one that holds such a folder as `weights`, a work
    directory, or `hf://OWNER/NAME`; UserError where there are none, or damaged ones.

    Of a work directory, the weights at the end of its last finished stage are read.
    """
    hub = str(directory).startswith(hub_form.PREFIX)
    path = hub_form.fetch(str(directory)) if hub else absolute(directory)
    if not patiently(path, path.exists):
        raise UserError(f"checkpoint {directory}: no such folder")
    # Results that were given away: one set of weights next to them.
    if (path / "weights" / "variables").is_dir() or (path / "weights" / hub_form.WEIGHTS).exists():
        path = path / "weights"
    if (path / hub_form.WEIGHTS).exists():
        return patiently(f"checkpoint {path}", lambda: hub_form.load(path))
    if (path / "weights").is_dir():
        found = [p for p in (path / "weights").iterdir() if (p / "variables").is_dir() or (p / "meta").is_dir()]
        stages = [p for p in found if is_finished(p)]
        if not stages:
            raise UserError(f"checkpoint {directory}: no stage has been finished yet (weights/ holds none)")
        return read_saved(max(stages, key=lambda stage: read_meta(stage).get("stage_index", 0)), "variables")
    if not (path / "variables").is_dir():
        raise UserError(f"checkpoint {directory}: neither a work directory with weights/ nor a folder of saved weights")
    return read_saved(path, "variables")


def remove_unfinished(directory: Any) -> None:
    """Deletes what an interrupted `save_weights` left in a folder of weights."""
    path = absolute(directory)
    if path.exists():
        for child in path.iterdir():
            if not is_finished(child):
                child.rmtree()
