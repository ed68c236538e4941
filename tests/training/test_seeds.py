"""Several seeds in one program: each equals its run alone, stopped and continued or not; clear refusals."""

import itertools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax.cluster.preemption import Preempted, StopRequest
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.storage.weights import load_weights
from shike_jax.training import loop
from tests.conftest import ROOT
from tests.jobs import digits

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def config(*changes, epochs=(1, 1)):
    """A tiny network on 218 images, 7 steps an epoch."""
    tiny = digits(*epochs, "dtype=float64", "model.depths=(1,)", "data.test_per_class=100", "log=quiet", *changes)
    return parse_config([tiny[0].replace("configs/", f"{ROOT}/configs/"), *tiny[1:]])[0]


def stop_after(monkeypatch, calls):
    """The request to stop comes with that compiled call."""
    counter = itertools.count(1)
    monkeypatch.setattr(StopRequest, "requested", lambda self: next(counter) == calls)


def assert_same_run(one, other, stages):
    """Evaluation, losses of the epochs that both have from their beginning, and the weights of every stage."""
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert a["seed"] == b["seed"] and a["top1"] == b["top1"] and a["per_class"] == b["per_class"]
    losses = [
        [line["epoch_loss"] for line in map(json.loads, (folder / "metrics.jsonl").open()) if "epoch_loss" in line]
        for folder in (one, other)
    ]
    np.testing.assert_allclose(losses[0][-1], losses[1][-1], rtol=1e-9)
    for stage in stages:
        left, right = (flatten_dict(load_weights(f / "weights" / stage)[0], sep="/") for f in (one, other))
        assert left.keys() == right.keys()
        for path in left:
            assert left[path].dtype == right[path].dtype == np.float64
            largest = np.abs(left[path]).max()
            np.testing.assert_allclose(left[path], right[path], rtol=0, atol=1e-9 * largest, err_msg=path)


@pytest.mark.parametrize(
    ("seeds", "compared"), [((1, 2), (2,)), pytest.param((1, 2, 3), (1, 2, 3), marks=pytest.mark.slow)]
)
def test_each_seed_equals_its_run_alone(tmp_path, seeds, compared, capsys):
    """Together in calls of two steps; alone step by step."""
    only = ("run=('representation',)", "stages.representation.max_steps=4", "data.test_per_class=10")
    results = loop.train(config(*only, "train.steps_per_call=2", f"seeds={seeds}", "log=info"), tmp_path / "all")
    assert [result["seed"] for result in results] == list(seeds)
    lines = [line for line in capsys.readouterr().out.splitlines() if "img/s" in line]
    assert {line.partition(":")[0] for line in lines} == {f"seed {seed}" for seed in seeds}
    for seed in compared:
        loop.train(config(*only, f"seed={seed}"), tmp_path / f"alone{seed}")
        assert_same_run(tmp_path / f"alone{seed}", tmp_path / "all" / f"seed{seed}", ["representation"])


@pytest.mark.slow
def test_stopped_and_continued_seeds_equal_their_runs_alone(tmp_path, monkeypatch, capsys):
    """Seed 1 begins alone and stands ahead; both stop in the middle of an epoch, and again in the second stage."""
    folder, both = tmp_path / "both", config("seeds=(1,2)", epochs=(2, 1))
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Preempted):
            loop.train(config("seed=1", epochs=(2, 1)), folder / "seed1")
        for calls in (12, 6):  # seed 2 makes 7 steps, seed 1 three, both two; then five, and one of the second stage
            stop_after(patch, calls)
            with pytest.raises(Preempted):
                loop.train(both, folder)
    assert len(loop.train(both, folder)) == 2
    for seed in (1, 2):
        loop.train(config(f"seed={seed}", epochs=(2, 1)), tmp_path / f"alone{seed}")
        assert_same_run(tmp_path / f"alone{seed}", folder / f"seed{seed}", ["representation", "classifier"])
    capsys.readouterr()
    assert [result["seed"] for result in loop.train(both, folder)] == [1, 2]
    assert capsys.readouterr().out.count("is finished") == 2


def test_seeds_must_differ_and_need_images_on_the_device(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"config.seeds=\(1, 1\): expected different whole numbers"):
        config("seeds=(1,1)")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"alone: holds a run of one seed; expected a new folder"):
        loop.train(config("seeds=(1,2)"), tmp_path / "alone")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config.seeds=\(1, 2\): expected one process, not 2"):
        loop.train(config("seeds=(1,2)"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
