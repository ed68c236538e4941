"""A run from the outside: its results, its directory, and what must not be overwritten."""

import json

import jax
import numpy as np
import pytest

from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.models import build_model, init_variables
from shike_jax.storage.weights import load_weights
from shike_jax.training import loop
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = f"--config={ROOT}/configs/digits_lt.py:width=4,epochs=2,classifier_epochs=2"
SMALL = ["--config.model.depths=(1, 2)", "--config.log=quiet"]


def config(*changes):
    return parse_config([CONFIG, *SMALL, *changes])[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "run"
    return loop.train(config(), workdir), workdir


def test_results_have_what_readers_rely_on(finished):
    results, workdir = finished
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [stage["name"] for stage in results["stages"]] == ["representation", "classifier"]
    assert results["stages"][-1]["top1"] == results["top1"] and len(results["experts"]) == 2
    assert set(results["seconds"]) == {"start_up", "compile", "train", "evaluate"}
    [start] = results["starts"]
    assert start["convolutions"] == {"representation": "XLA", "classifier": "XLA"}  # too small for oneDNN to pay
    counts = results["split"]["class_counts"]
    assert sum(counts) == results["split"]["sizes"]["train"] and results["split"]["sizes"]["test"] == 300
    # top-1 is the mean of the per-class accuracies on a balanced test set
    assert results["top1"] == pytest.approx(np.mean(results["per_class"]), abs=0.01)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"representation", "classifier"} == {line["stage"] for line in lines}


def test_classifier_stage_moves_the_classifiers_and_bn_statistics_only(finished):
    _, workdir = finished
    before, _ = load_weights(workdir / "weights" / "representation")
    after, meta = load_weights(workdir)
    assert meta["stage"] == "classifier"
    for part in ("trunk", "expert0", "expert1"):
        np.testing.assert_equal(before["params"][part], after["params"][part])
    heads = before["params"]["heads"], after["params"]["heads"]
    np.testing.assert_equal(heads[0]["representation"], heads[1]["representation"])
    moved = [
        np.abs(a["kernel"] - b["kernel"]).max()
        for a, b in zip(heads[0]["classifier"].values(), heads[1]["classifier"].values(), strict=True)
    ]
    assert min(moved) > 1e-3
    mean = [v["batch_stats"]["trunk"]["bn1"]["mean"] for v in (before, after)]
    assert np.abs(mean[0] - mean[1]).max() > 0


def test_representation_stage_leaves_the_second_classifiers_at_their_start(finished):
    """They have no gradient there; were weight decay to shrink them, the classifier stage would start elsewhere."""
    _, workdir = finished
    before, meta = load_weights(workdir / "weights" / "representation")
    fresh = init_variables(build_model(meta["model"], meta["num_classes"]), 0, meta["image_size"])
    jax.tree.map(
        np.testing.assert_array_equal, before["params"]["heads"]["classifier"], fresh["params"]["heads"]["classifier"]
    )
    used = before["params"]["heads"]["representation"]["expert0"]["kernel"]
    assert np.abs(used - fresh["params"]["heads"]["representation"]["expert0"]["kernel"]).max() > 1e-3


def test_a_finished_run_is_left_alone(finished, capsys):
    results, workdir = finished
    stamps = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert loop.train(config(), workdir)["top1"] == results["top1"]
    assert "nothing to do" in capsys.readouterr().out
    assert stamps == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_a_directory_of_another_configuration_is_refused(finished):
    _, workdir = finished
    stamps = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="belongs to another configuration: seed"):
        loop.train(config("--config.seed=1"), workdir)
    assert stamps == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quickstart_learns_and_the_classifier_stage_helps_the_few(seed, tmp_path):
    """The configuration that the quickstart runs, at full length."""
    settings, _ = parse_config([f"--config={ROOT}/configs/digits_lt.py", f"--config.seed={seed}", "--config.log=quiet"])
    results = loop.train(settings, tmp_path / "run")
    first, last = results["stages"]
    assert results["top1"] > 85
    assert last["few"] > first["few"]
