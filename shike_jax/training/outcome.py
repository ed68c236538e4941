"""What a run leaves: the position in a checkpoint, the weights of each stage, results.json."""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.common.provenance import versions
from shike_jax.common.version import __version__
from shike_jax.config import to_plain
from shike_jax.data.held_out import evaluated_part
from shike_jax.data.host_pipeline import short_side
from shike_jax.methods import LOSSES, SCORES
from shike_jax.methods.loss_registry import describe_losses
from shike_jax.methods.own_files import needed_to_use, remembered
from shike_jax.methods.scores import describe_scores
from shike_jax.storage.trouble import check_present
from shike_jax.storage.weights import save_weights
from shike_jax.training.loss_variables import of_network
from shike_jax.training.setup import Run
from shike_jax.training.state import TrainState
from shike_jax.training.task import Stage

PyTree = Any
PER_CLASS = ("per_class", "experts_per_class")
KEPT = ("experts", "examples", *PER_CLASS)  # of an evaluation, in addition to the registered scores


def share_bad_images(run: Run) -> None:
    """Exchanges between all processes, which call this together, what each of them could not read."""
    if run.source.images is not None:
        return
    own = [[*key, reason] for key, reason in run.source.report.unreadable.copy().items()]
    for found in parallel.gather(own):
        run.source.report.unreadable.update({(part, name): reason for part, name, reason in found})
    run.history["bad_images"] = run.source.report.bad_images()


def _made_by(run: Run, stage: Stage) -> dict[str, Any]:
    """What checkpoints and weights remember of the stage, the data and the code that they come from."""
    return {
        "stage": stage.name,
        "stage_index": stage.index,
        "split_hash": run.source.split.hash,
        "config": to_plain(run.config),
        "files": remembered(to_plain(run.config)),
        "version": __version__,
    }


def save_checkpoint(run: Run, stage: Stage, state: TrainState, step: int) -> None:
    """Begins to write a checkpoint of a stage's step and of what happened before; all processes call this together."""
    if parallel.is_main():
        check_present(run.workdir)
    share_bad_images(run)
    run.log.flush()  # a run that continues from here finds its records up to here
    position = {**_made_by(run, stage), "step": step, "history": run.history}
    run.checkpoints.save(stage.steps_before + step, state, position)


def stage_record(stage: Stage, evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the history and results.json keep of a finished stage."""
    record = {"name": stage.name, "epochs": -(-stage.steps // stage.steps_per_epoch), "steps": stage.steps}
    return record | {name: evaluation[name] for name in (*SCORES, *KEPT)}


def save_stage_weights(run: Run, stage: Stage, variables: PyTree) -> None:
    """Writes weights/NAME, in place of what is there; all processes call this together.

    Weights that are there already need not be this run's: results and weights are of the same start, always.
    """
    data, images = run.config.data, run.source.images
    meta = {
        "model": to_plain(run.config.model),
        "num_classes": run.source.split.num_classes,
        "class_names": list(run.source.split.class_names),
        "class_counts": run.source.split.class_counts.tolist(),
        "image_size": data.image_size,
        "resize": short_side(data) if images is None else data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "example": _example(run),
        "heads": stage.settings.heads,
        "scores": {name: run.history["stages"][-1].get(name) for name in SCORES},
        **_made_by(run, stage),
    }
    save_weights(run.workdir / "weights" / stage.name, of_network(variables), meta)


def _example(run: Run) -> dict[str, Any]:
    """Shape and dtype of one example, as the classifier takes it."""
    if run.source.images is None:
        return {"shape": [run.config.data.image_size] * 2 + [3], "dtype": "uint8"}
    train = run.source.images["train"]
    return {"shape": list(train.shape[1:]), "dtype": str(train.dtype)}


def hyperparameters(config: ConfigDict) -> dict[str, float | int | str | bool]:
    """The fields that tell runs apart, for a table: seed, network, data, augmentation, and those of each stage.

    Losses of weight 0 and their parameters are left out.
    """
    found = {"name": config.name, "seed": config.seed, "dtype": config.dtype}
    rooms = {"model": config.model, "data": config.data, "augment": config.augment}
    rooms |= {name: config.stages[name] for name in config.run}
    for room, fields in rooms.items():
        found |= {f"{room}.{k}": v for k, v in fields.items() if isinstance(v, (int, float, str))}
    for name in config.run:
        found |= {f"{name}.loss.{k}": v for k, v in config.stages[name].loss.items() if k in LOSSES and v}
    return found


def results(run: Run, variables: PyTree) -> dict[str, Any]:
    """The machine-readable end of a run (`results.json`); accuracies in percent, after the last epoch."""
    stages, bad = run.history["stages"], run.source.report.bad_images()
    last = stages[-1]
    return {
        **{name: last.get(name) for name in SCORES},
        "experts": last["experts"],
        "stages": [{k: v for k, v in stage.items() if k not in PER_CLASS} for stage in stages],
        "per_class": last["per_class"],
        "experts_per_class": last["experts_per_class"],
        "scores": describe_scores(),
        "losses": {name: describe_losses(run.config.stages[name].loss) for name in run.config.run},
        "files": (files := remembered(to_plain(run.config))),
        "files_to_use": needed_to_use(files),
        "name": run.config.name,
        "seed": run.config.seed,
        "num_parameters": models.num_parameters(of_network(variables)["params"]),
        "split": run.source.split.summary(),
        "part": evaluated_part(run.config.data),
        "example": _example(run),
        "bad_images": {"count": len(bad), "limit": run.config.data.bad_image_limit, "list": bad},
        "seconds": {name: round(value, 2) for name, value in run.history["seconds"].items()},
        "starts": run.history["starts"],
        "versions": versions(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "config": to_plain(run.config),
    }
