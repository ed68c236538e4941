"""The model card says what its numbers say, and reads without any other file."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from shike_jax.config import base, shike_stages, to_plain
from shike_jax.config.loading import parse_config
from shike_jax.data.splits import Part, Split
from shike_jax.methods.loss_registry import describe_losses
from shike_jax.methods.scores import describe_scores
from shike_jax.storage import card
from shike_jax.training import loop


def made_results():
    labels = np.repeat([0, 1, 2], [150, 40, 3]).astype(np.int32)
    test = np.array([0, 0, 1], np.int32)
    parts = {"train": Part(np.arange(193), labels), "test": Part(np.arange(3), test)}
    split = Split("zoo", "folder, natural counts", 0, ("ant", "bee", "cat"), parts)
    config = base()
    shike_stages(config, "official", (180, 20))
    scores = {"top1": 66.6667, "top5": 100.0, "many": 50.0, "medium": 100.0, "few": None, "ece": 12.345, "loss": 0.75}
    stages = [
        {"name": "representation", "epochs": 180, "steps": 9, **scores, "top1": 33.3333},
        {"name": "classifier", "epochs": 20, "steps": 5, **scores},
    ]
    results = {
        "name": "zoo",
        **scores,
        "experts": [60.0, 70.0, 80.0],
        "stages": stages,
        "per_class": [50.0, 100.0, None],
        "num_parameters": 1234567,
        "seed": 4,
        "seconds": {"start_up": 3.0, "train": 1500.4},
        "config": to_plain(config),
        "part": "test",
        "versions": {"shike_jax": "0.1.0", "jax": "1.2.3"},
        "bad_images": {"count": 2, "limit": 0.01, "list": [{"part": "train", "name": "train/ant/7.jpg"}]},
        "split": split.summary(),
        "scores": describe_scores(),
        "losses": {name: describe_losses(config.stages[name].loss) for name in config.run},
        "macro_f1": 61.2,
        "devices": {"kind": "cpu", "platform": "cpu", "count": 2, "processes": 1},
    }
    return results


def test_names_from_outside_neither_write_markup_nor_reach_the_shell(tmp_path):
    results = made_results()
    results["name"] = "<script>alert(1)</script>"
    results["split"]["class_names"] = ["a|b", "\x1b[2Jbee", "`c`"]
    workdir = tmp_path / "my run; rm -rf x"
    workdir.mkdir()
    card.write_card(workdir / "card.md", results)
    text = (workdir / "card.md").read_text()
    written = text.partition("```json")[0]
    assert "<script" not in written
    assert "from a\\|b (150) down to \\`c\\` (3)" in written
    assert "\x1b" not in text
    [command] = [line for line in text.splitlines() if "shike_jax evaluate" in line]
    assert shlex.split(command) == ["python", "-m", "shike_jax", "evaluate", "--checkpoint=my run; rm -rf x"]


def test_card_of_a_single_network_with_averaged_weights(tmp_path):
    results = made_results()
    results["config"]["model"].update(depths=[1], fusion=False)
    results["config"]["stages"]["classifier"]["average"] = "ema"
    results["stages"][-1]["examples"] = 2
    card.write_card(tmp_path / "card.md", results)
    text = (tmp_path / "card.md").read_text()
    assert "A single resnet32 (1,234,567 parameters), trained on zoo" in text and "averages the experts" not in text
    assert "On 2 images of part `test`" in text and "these are the exponential average of the weights" in text


def test_card_of_a_network_of_arrays(tmp_path):
    file = tmp_path / "features.npz"
    labels = np.repeat([0, 1, 2], [8, 4, 3])
    np.savez(file, features=np.random.default_rng(0).normal(size=(15, 6)).astype(np.float32), labels=labels)
    changes = ("stages.classifier.max_steps=1", "log=quiet", "train.tensorboard=False")
    config, _ = parse_config([f"--config=features_lt:train={file},test={file}", *(f"--config.{c}" for c in changes)])
    loop.train(config, tmp_path / "run")
    written = (tmp_path / "run" / "card.md").read_text().partition("```json")[0]
    assert "input arrays float32 [6]." in written and "--images=ARRAYS.npy" in written
    assert "RGB" not in written and "picture" not in written.lower()


def test_a_card_that_cannot_be_written_loses_no_results(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no card")

    monkeypatch.setattr(loop.outcome, "share_bad_images", lambda run: None)
    monkeypatch.setattr(loop.outcome, "results", lambda run, variables: made_results())
    monkeypatch.setattr(loop, "write_card", fail)
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="no card"):
        loop.finish(SimpleNamespace(checkpoints=SimpleNamespace(close=lambda: None), workdir=tmp_path), None)
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == 4


def test_card_holds_scores_data_training_use_and_limits(tmp_path):
    results = made_results()
    (tmp_path / "run").mkdir()
    card.write_card(tmp_path / "run" / "card.md", results)
    text = (tmp_path / "run" / "card.md").read_text()
    for fact in (
        "# zoo: a classifier of 3 classes",
        "1,234,567 parameters",
        "| top-1 accuracy, % | 66.67 |",
        "| many-shot classes, mean accuracy, % | 50.00 |",
        "| few-shot classes, mean accuracy, % | - |",
        "| expert 3 alone, top-1, % | 80.00 |",
        "| expected calibration error (15 bins), % | 12.35 |",
        "| representation | 33.33 | 50.00 | 100.00 | - |",
        "images: train 193, test 3",
        "from ant (150) down to cat (3)",
        "left out because they could not be read: 2, the first train/ant/7.jpg; all in results.json",
        results["split"]["hash"],
        "| representation | 180 | 128 | 0.15 | 1 ce + 10 nt (form official) + 1 mu (form official) | `.*` |",
        "Each row was measured at the end of its stage.",
        "| classifier | 20 | 128 | 0.1 | 1 balanced | `heads/classifier/.*` |",
        "2 x cpu, seed 4; start-up 3 s, train 1,500 s",
        "predict --checkpoint=run ",
        "Not measured, for want of test images: cat.",
        "jax 1.2.3",
        '"imbalance_factor": 1.0',
    ):
        assert fact in text, fact
