"""Runs made by hand: results.json, metrics.jsonl and evaluation.npz as the program writes them, without training."""

import json

import numpy as np

from shike_jax.config import to_plain
from shike_jax.config.loading import parse_config
from shike_jax.data.splits import longtail_counts
from shike_jax.evaluation import metrics
from shike_jax.evaluation.checkpoint import save
from tests.conftest import ROOT

COUNTS = {"cifar": longtail_counts(500, 100, 100, "exponential"), "digits": np.array([150, 90, 60, 30, 15, 9])}


def results(config="cifar_lt.py:official", changes=(), data="cifar", top1=55.0, seed=0):
    """results.json of a run whose classes have accuracies around `top1`."""
    arguments = [f"--config.{change}" for change in (*changes, f"seed={seed}")]
    config, _ = parse_config([f"--config={ROOT}/configs/{config}", *arguments])
    counts, rng = COUNTS[data], np.random.default_rng(seed)
    experts = len(config.model.depths)
    scores = {
        "top1": top1,
        "top5": top1 + 20,
        "many": top1 + 10,
        "medium": top1,
        "few": top1 - 10,
        "experts": [top1 - m for m in range(experts)],
    }
    stages = [{"name": n, "epochs": config.stages[n].epochs, "steps": 9, **scores} for n in config.run]
    stages[0] = {**stages[0], "top1": top1 - 8, "few": top1 - 40}
    return {
        **scores,
        "stages": stages,
        "per_class": np.clip(rng.normal(top1, 10, len(counts)), 0, 100).round(2).tolist(),
        "experts_per_class": np.clip(rng.normal(top1, 10, (experts, len(counts))), 0, 100).round(2).tolist(),
        "name": config.name,
        "seed": seed,
        "num_parameters": 1_277_008,
        "split": {"name": f"{data}_lt", "sizes": {}, "hash": data, "class_counts": counts.tolist()},
        "seconds": {"start_up": 3.0, "compile": 10.0, "train": 60.0, "evaluate": 2.0},
        "versions": {"jax": "0.0"},
        "devices": {"kind": "cpu", "count": 1},
        "config": to_plain(config),
    }


def write_run(folder, curve=True, evaluation=True, **settings):
    """Writes one work directory; returns its results."""
    found = results(**settings)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    if curve:
        records = [
            {"step": 1, "stage": stage["name"], "epoch": epoch, "epoch_loss": 5.0 / (epoch + 1), "top1": 5.0 + epoch}
            for stage in found["stages"]
            for epoch in range(stage["epochs"])
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if evaluation:
        save(folder / "evaluation.npz", *evaluated(found))
    return found


def summary(found):
    """The scores of an evaluation of random logits for the classes of a run."""
    return evaluated(found)[0]


def evaluated(found, examples=2000):
    """The same with what is known of each image."""
    counts = np.array(found["split"]["class_counts"])
    rng, classes = np.random.default_rng(found["seed"]), len(counts)
    labels = rng.integers(0, classes, examples).astype(np.int32)
    logits = rng.normal(0, 1, (len(found["experts"]), examples, classes)) + 2.5 * np.eye(classes)[labels]
    arrays = {k: np.asarray(v) for k, v in metrics.per_example(logits.astype(np.float32), labels).items()}
    divisions = {
        "many": np.flatnonzero(counts > 100),
        "medium": np.flatnonzero((counts <= 100) & (counts >= 20)),
        "few": np.flatnonzero(counts < 20),
    }
    about = {
        "checkpoint": {"heads": "classifier"},
        "data": {
            "hash": found["split"]["hash"],
            "class_counts": counts.tolist(),
            "class_names": [f"class {c}" for c in range(classes)],
            "divisions": {k: v.tolist() for k, v in divisions.items()},
        },
        "heads": {"classifier": metrics.analyse(arrays, labels, classes, divisions)},
    }
    return about, {"": {"label": labels}, "classifier": arrays}
