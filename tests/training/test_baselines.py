"""configs/baselines_cifar.py: every method trains on digits, and a run stopped in the middle ends bit for bit alike."""

import json

import numpy as np
import pytest

from shike_jax.config.loading import parse_config
from shike_jax.methods import LOSSES
from shike_jax.training import loop
from tests.conftest import ROOT
from tests.stopped import assert_same_end, train_until, weights

pytestmark = pytest.mark.usefixtures("quickly_compiled")

FAST = ("lws",)  # two stages and a second set of another kind
SLOW = ("ce", "focal", "class_balanced", "ldam_drw", "logit_adjusted", "balanced_softmax", "crt", "balpoe", "gcl")
SLOW += ("mislas", "ride", "sade", "proco", "disalign", "cmo")
# What trains in the second stage.
SECOND = {
    "crt": ("kernel", "bias"),
    "lws": ("scale",),
    "gcl": ("kernel",),
    "mislas": ("scale",),
    "disalign": ("scale", "bias", "confidence/kernel", "confidence/bias"),
}


def configured(method):
    config, _ = parse_config(
        [
            f"--config={ROOT}/configs/baselines_cifar.py:{method},dataset=digits,imbalance_factor=20,width=4",
            "--config.log=quiet",
            "--config.train.log_every_steps=1",
            "--config.train.pictures=0",
        ]
    )
    for name in config.run:
        config.stages[name].max_steps = 5 if name == "representation" else 3
    return config


@pytest.mark.parametrize("method", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_method_trains_and_a_stopped_run_ends_alike(method, tmp_path):
    config = configured(method)
    results = loop.train(config, tmp_path / "whole")
    said = train_until(config, tmp_path / "stopped", 3)
    loop.train(config, tmp_path / "stopped")
    assert len(results["experts"]) == (3 if method in ("balpoe", "ride", "sade") else 1)
    assert said.startswith("stopped in stage representation at step 3")
    assert_same_end(tmp_path / "whole", tmp_path / "stopped", tuple(config.run))
    losses = [_losses(tmp_path / name) for name in ("whole", "stopped")]
    assert losses[0] == losses[1] and len(losses[0]) == sum(config.stages[name].max_steps for name in config.run)

    # The method's own loss is what trained (the report of a term is its mean, unweighted).
    rows = _rows(tmp_path / "whole")
    own = {name: weight for name, weight in _weights(config).items() if weight}
    totals = [sum(weight * row[name] for name, weight in own.items()) for row in rows[:5]]
    assert [row["loss"] for row in rows[:5]] == pytest.approx(totals, rel=1e-5)
    if method in SECOND:
        _only_the_second_classifiers_moved(tmp_path / "whole", method)


def _only_the_second_classifiers_moved(workdir, method):
    before, after = (weights(workdir, stage) for stage in ("representation", "classifier"))
    moved = {path for path in before if "batch_stats" not in path and not np.array_equal(before[path], after[path])}
    assert moved == {f"params/heads/classifier/expert0/{name}" for name in SECOND[method]}


def _rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line and "epoch_loss" not in line]


def _losses(workdir):
    return [row["loss"] for row in _rows(workdir)]


def _weights(config):
    return {name: config.stages.representation.loss[name] for name in LOSSES}
