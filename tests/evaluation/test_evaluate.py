"""Evaluation of a checkpoint against the network applied by hand."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from shike_jax import models
from shike_jax.commands import evaluate
from shike_jax.config import to_plain
from shike_jax.config.loading import checkpoint_config, parse_config
from shike_jax.data import sources
from shike_jax.data.datasets import load_data
from shike_jax.errors import UserError
from shike_jax.evaluation import functions, post_hoc
from shike_jax.evaluation.checkpoint import evaluate as score_part
from shike_jax.evaluation.checkpoint import trained_sets
from shike_jax.evaluation.classifier import load
from shike_jax.storage.weights import save_weights
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = f"--config={ROOT}/configs/digits_lt.py:width=4"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A fresh network on digits, saved as a run would; 170 does not divide the 300 test images."""
    config, _ = parse_config([CONFIG, "--config.eval.batch_size=170"])
    network = models.build_model(config.model, 10)
    variables = models.init_variables(network, 0, config.data.image_size)
    folder = tmp_path_factory.mktemp("evaluate") / "weights"
    split = sources.load(config.data).split
    meta = {
        "model": to_plain(config.model),
        "num_classes": 10,
        "class_names": list(split.class_names),
        "image_size": 16,
        "resize": 0,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "heads": "classifier",
        "stage": "classifier",
        "split_hash": split.hash,
        "config": to_plain(config),
    }
    save_weights(folder, variables, meta)
    return folder, config, network, variables


@pytest.fixture(scope="module")
def written(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "evaluation.npz"
    evaluate.main([f"--checkpoint={checkpoint[0]}", f"--output={path}", "--logits"])
    with np.load(path) as file:
        return dict(file)


def test_scores_are_those_of_the_network(checkpoint, written):
    _, config, network, variables = checkpoint
    source = sources.load(config.data)
    images, labels = source.images["test"], source.split.parts["test"].labels
    x = (images / 255.0 - np.array(config.data.mean)) / np.array(config.data.std)
    summary = json.loads(str(written["summary"]))
    assert written["label"].tolist() == labels.tolist()
    for heads in ("representation", "classifier"):
        logits = np.asarray(network.apply(variables, jnp.asarray(x, jnp.float32), heads))
        np.testing.assert_allclose(written[f"{heads}/logits"], logits, atol=2e-3)
        mean = written[f"{heads}/logits"].mean(0)
        found = summary["heads"][heads]
        assert found["top1"] == pytest.approx(100 * sk.accuracy_score(labels, mean.argmax(1)), abs=1e-3)
        assert found["top5"] == pytest.approx(100 * sk.top_k_accuracy_score(labels, mean, k=5), abs=1e-3)
        assert found["experts"] == pytest.approx(
            [100 * np.mean(z.argmax(1) == labels) for z in written[f"{heads}/logits"]], abs=1e-3
        )
    assert summary["data"]["same_split"]
    assert summary["data"]["class_counts"] == source.split.class_counts.tolist()


@pytest.mark.parametrize(("trained", "shown"), [("representation", "representation"), (None, "classifier")])
def test_classes_are_listed_with_the_classifiers_that_were_trained(written, trained, shown):
    """A run of one stage trains the first set; of weights from elsewhere nothing is known."""
    summary = json.loads(str(written["summary"]))
    summary["checkpoint"]["heads"] = trained
    rows = evaluate.describe(summary).splitlines()
    header = next(i for i, row in enumerate(rows) if "accuracy" in row and "expert 1" in row)
    assert rows[header].startswith(f"{shown} ")
    largest = int(np.argmax(summary["data"]["class_counts"]))
    assert rows[header + 1].split()[3] == f"{summary['heads'][shown]['per_class'][largest]:.2f}"


def test_other_parts_and_one_set_of_classifiers(checkpoint, tmp_path, capsys):
    path = tmp_path / "train.json"
    evaluate.main([f"--checkpoint={checkpoint[0]}", "--part=train", "--heads=representation", f"--output={path}"])
    summary = json.loads(path.read_text())
    assert list(summary["heads"]) == ["representation"]
    assert summary["data"]["examples"] == sum(summary["data"]["class_counts"])
    table = capsys.readouterr().out
    assert "  expert 3  " in table
    assert f"{summary['heads']['representation']['top1']:.2f}" in table


def test_other_data_are_seen_as_the_network_was_trained(checkpoint):
    classifier = load(str(checkpoint[0]))
    other = [
        CONFIG,
        "--config.data.image_size=24",
        "--config.data.mean=(0.1,0.1,0.1)",
        "--config.data.test_per_class=40",
    ]
    config = checkpoint_config(classifier.meta, other)
    assert (config.data.image_size, tuple(config.data.mean)) == (16, (0.3, 0.3, 0.3))
    summary, _ = score_part(classifier, config, sources.load(config.data), "test", ("classifier",))
    assert summary["data"]["examples"] == 400
    assert not summary["data"]["same_split"]


def test_the_number_of_devices_changes_nothing(checkpoint, written, tmp_path):
    path = tmp_path / "devices.npz"
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shike_jax", "evaluate", f"--checkpoint={checkpoint[0]}", f"--output={path}"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    with np.load(path) as several:
        assert several["label"].tolist() == written["label"].tolist()
        for heads in ("representation", "classifier"):
            np.testing.assert_array_equal(several[f"{heads}/expert_predicted"], written[f"{heads}/expert_predicted"])
            np.testing.assert_allclose(several[f"{heads}/confidence"], written[f"{heads}/confidence"], rtol=1e-3)


def test_adjusted_to_a_prior_from_the_saved_logits(checkpoint, written, tmp_path, capsys):
    """The command against the written logits: digits are balanced in the test, 144 down to 7 in training."""
    path = tmp_path / "adjusted.json"
    evaluate.main([f"--checkpoint={checkpoint[0]}", "--adjust=train_prior", "--tau=0.5", f"--output={path}"])
    said, summary = capsys.readouterr().out, json.loads(path.read_text())
    counts, labels = np.array(summary["data"]["class_counts"]), written["label"]
    for heads in ("representation", "classifier"):
        mean = written[f"{heads}/logits"].astype(np.float64).mean(0) - 0.5 * np.log(counts / counts.sum())
        found = summary["heads"][heads]["post_hoc"]
        assert found["adjusted"] == pytest.approx(100 * np.mean(mean.argmax(1) == labels), abs=1e-3)
        assert found["plain"] == pytest.approx(summary["heads"][heads]["top1"], abs=1e-3)
        assert f"{found['distributions']['backward 50']['adjusted']:.2f}" in said
    assert "images weighted by the share of their class; prior uniform" in said
    evaluate.main([f"--checkpoint={checkpoint[0]}", "--heads=classifier", "--prior=train", "--tune=test"])
    assert "prior train, tau chosen on test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--adjust=nope"], "unknown adjustment 'nope'"),
        (["--tune"], "--tune=val: digits.* has no such part; expected one of train, test"),
        (["--tune=test", "--tau=1"], "--tau=1 with --tune: expected one of them"),
        (["--tau=nan"], "--tau=nan: expected a finite number"),
        (["--prior=absent.json"], "--prior=absent.json: No such file"),
        (["--adjust=tau_norm"], "adjustment tau_norm: expected linear classifiers"),
        (["--part=nope"], "--part=nope: expected one of train, test"),
        (["--output=scores.txt"], "--output=scores.txt: expected a name ending in .json or .npz"),
        (["--logits"], "--logits: expected --output=FILE.npz"),
        (["--config.data.nope=1"], "no field 'nope'"),
    ],
)
def test_mistakes_are_named(checkpoint, arguments, expected):
    with pytest.raises(UserError, match=expected):
        evaluate.main([f"--checkpoint={checkpoint[0]}", *arguments])


@pytest.mark.parametrize(
    "shares", [f"[1{400 * '0'}, 1]", "[NaN, 1]", "[1e999, 1]", "[1e308, 1e308]", "[0, 0]", "[-1, 2]"]
)
def test_shares_that_are_no_numbers_are_one_line(shares, tmp_path):
    (tmp_path / "shares.json").write_text(shares)
    with pytest.raises(UserError, match=r"shares\.json: expected numbers of at least 0, not all of them 0"):
        post_hoc.read_prior(str(tmp_path / "shares.json"), ("a", "b"), np.array([3, 1]))


@pytest.mark.parametrize("returned", [None, {"logits": 1}, [[1.0], [1.0, 2.0]]], ids=["None", "dict", "ragged"])
def test_a_function_that_returns_no_logits_is_one_line(returned):
    with pytest.raises(UserError, match=rf"logits of type {type(returned).__name__}, expected \(128, 10\)"):
        functions.evaluate(lambda images: returned, load_data("digits_lt").test)


def test_another_number_of_classes_is_named(checkpoint):
    classifier = load(str(checkpoint[0]))
    classifier.meta.update({"num_classes": 12, "class_names": None})
    config = checkpoint_config(classifier.meta)
    with pytest.raises(UserError, match=r"has 10 classes; expected the checkpoint's 12"):
        score_part(classifier, config, sources.load(config.data), "test")


def test_converted_weights_need_a_configuration(checkpoint):
    classifier = load(str(checkpoint[0]))
    del classifier.meta["config"]
    with pytest.raises(UserError, match="expected --config=FILE"):
        checkpoint_config(classifier.meta)


def test_only_sets_that_were_trained_are_scored_and_training_fields_are_refused(checkpoint, capsys):
    meta = load(str(checkpoint[0])).meta
    stages = {"one": {"heads": "representation"}, "two": {"heads": "classifier"}}
    run = {"run": ["one", "two"], "stages": stages, "init_from": ""}
    for index, sets in ((0, ("representation",)), (1, ("representation", "classifier"))):
        assert trained_sets({**meta, "config": run, "stage_index": index}) == sets
    assert len(trained_sets({**meta, "config": {**run, "init_from": "elsewhere"}, "stage_index": 0})) == 2
    assert len(trained_sets({"config": None})) == 2  # converted weights
    with pytest.raises(UserError, match=r"--config.model.depths=\(1,\): has no effect on a network that is trained"):
        evaluate.main([f"--checkpoint={checkpoint[0]}", "--config.model.depths=(1,)"])
