"""The main job on CIFAR100-LT: the same training on one device and on eight."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax.config.loading import parse_config
from shike_jax.models import build_model, init_variables
from shike_jax.storage.weights import load_weights
from tests.jobs import Job

CONFIG = "--config=configs/cifar_lt.py:official,imbalance_factor=100"
pytestmark = pytest.mark.slow


@pytest.fixture
def train(shared, tmp_path, monkeypatch):
    """Trains on so many host-platform devices; returns the work directory and the lines of its metrics."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data" / "tfds"))

    def run(devices, *changes):
        workdir = tmp_path / f"on{devices}"
        job = Job(workdir, [CONFIG, *(f"--config.{change}" for change in changes)], devices=devices)
        assert job.wait(3000) == [0], job.output()[-2000:]
        print(job.output())
        return workdir, [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    return run


def params(weights):
    return flatten_dict(load_weights(weights)[0]["params"], sep="/")


def test_first_step_is_the_same_on_eight_devices(train):
    """Loss and gradients to 1e-9. Plain SGD without decay moves a parameter by the learning rate times its gradient."""
    stage = (f"stages.representation.{item}" for item in ("max_steps=1", "momentum=0.0", "weight_decay=0.0"))
    changes = "dtype=float64", "run=('representation',)", "train.log_every_steps=1", *stage
    (one, lines), (eight, others) = train(1, *changes), train(8, *changes)
    first, other = ([line[0][term] for term in ("loss", "ce", "nt", "mu")] for line in (lines, others))
    np.testing.assert_allclose(other, first, rtol=1e-9)

    a, b = params(one / "weights" / "representation"), params(eight / "weights" / "representation")
    with jax.enable_x64(True):
        config, _ = parse_config([CONFIG])
        start = init_variables(build_model(config.model, 100, dtype=np.float64), config.seed, 32)
    start = flatten_dict(start["params"], sep="/")
    moved = [path for path in start if np.any(a[path] != start[path])]
    assert len(moved) > 150
    differences = {path: np.abs(a[path] - b[path]).max() / np.abs(a[path] - start[path]).max() for path in moved}
    print("first losses", first, "largest relative difference of a gradient", max(differences.values()))
    assert max(differences.values()) < 1e-9


def test_eight_devices_train_like_one(train):
    """2 + 1 epochs in float32: losses of the epochs within 3 percent (rounding grows from step to step)."""
    changes = "stages.representation.epochs=2", "stages.classifier.epochs=1"
    (one, lines), (eight, others) = train(1, *changes), train(8, *changes)
    found, other = ([line["epoch_loss"] for line in kind if "epoch_loss" in line] for kind in (lines, others))
    print("epoch losses", found, other)
    assert len(found) == 3
    np.testing.assert_allclose(other, found, rtol=0.03)
    for workdir in (one, eight):
        results = json.loads((workdir / "results.json").read_text())
        assert results["split"]["sizes"] == {"train": 10_847, "test": 10_000}
        assert results["num_parameters"] == 1_277_008
