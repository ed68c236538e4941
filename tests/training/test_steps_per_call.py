"""Many steps in one compiled call (a scan) end where as many single calls end."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax import config as schema
from shike_jax.config.loading import parse_config
from shike_jax.storage.weights import load_weights
from shike_jax.training import loop
from shike_jax.training.epoch import steps_per_call
from tests.conftest import ROOT
from tests.jobs import digits

pytestmark = pytest.mark.usefixtures("quickly_compiled")

EXACT = 1e-8
RUNS = {"one": 1, "three": 3, "four": 4}  # steps per call


def test_many_steps_per_call_change_nothing_but_speed(tmp_path, monkeypatch):
    """A stage in float64: four steps one by one, three together (a rest of one remains), four together."""
    monkeypatch.chdir(ROOT)
    small = ("dtype=float64", "data.test_per_class=10", "model.depths=(1,)", "log=quiet", "run=('representation',)")
    with jax.enable_x64(True):
        for name, steps in RUNS.items():
            changes = (*small, "stages.representation.max_steps=4", f"train.steps_per_call={steps}")
            loop.train(parse_config(digits(1, 1, *changes))[0], tmp_path / name)
    one, *others = (_weights(tmp_path / name, "representation") for name in RUNS)
    for other in others:
        assert one.keys() == other.keys()
        for path, value in one.items():
            assert value.dtype == np.float64
            assert np.abs(other[path] - value).max() <= EXACT * np.abs(value).max(), path
    assert _results(tmp_path / "one") == _results(tmp_path / "three") == _results(tmp_path / "four")


def _weights(workdir, stage):
    return flatten_dict(load_weights(workdir / "weights" / stage)[0], sep="/")


def _results(workdir):
    """Everything but the times and the setting itself."""
    found = json.loads((workdir / "results.json").read_text())
    found.pop("seconds")
    found.pop("starts")
    assert found["config"]["train"].pop("steps_per_call") == RUNS[workdir.name]
    return found


def test_a_call_is_as_long_as_asked_and_an_epoch_on_accelerators(monkeypatch):
    config = schema.base()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert steps_per_call(config, True, 85) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert steps_per_call(config, True, 85) == 85
    config.train.steps_per_call = 10
    assert steps_per_call(config, True, 85) == 10
    assert steps_per_call(config, False, 85) == 1  # images from the host come one batch at a time


@pytest.mark.slow
def test_full_network_on_an_accelerator():
    """One call of four steps and four calls of one, ResNet-32 with three experts, to rounding."""
    if jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator: scanned convolutions take minutes on the CPU")
    from shike_jax.benchmark import workload
    from shike_jax.benchmark.ours import Ours

    single = workload.make("shike_resnet32_cifar")
    together = dataclasses.replace(single, steps=4, index=np.tile(single.index, (4, 1)))
    one = Ours(single)
    assert Ours(together).run() == pytest.approx(np.mean([one.run() for _ in range(4)]), rel=1e-3)
