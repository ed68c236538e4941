"""Kills, signals, damage and warm starts: nothing lost, nothing started over in silence."""

import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax import models
from shike_jax.config import to_plain
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.storage.weights import load_weights, save_weights
from shike_jax.storage.workdir import claimed, examine, opened
from shike_jax.training import loop
from tests.jobs import digits
from tests.restart_drill import Drill

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_kill_while_saving_and_sigterm_change_nothing(tmp_path):
    """With the device that a user has: one that computes with all cores."""
    drill = Drill(tmp_path, epochs=2, seed=0, devices=0)
    drill.kill("interrupted", "saving")
    drill.terminate("interrupted")
    drill.finish("interrupted")
    drill.finish("uninterrupted")
    drill.same_end("uninterrupted", "interrupted")
    assert json.loads((tmp_path / "interrupted" / "results.json").read_text())["devices"]["count"] == 1


@pytest.mark.slow
def test_twenty_kills_and_five_sigterms_change_nothing(tmp_path):
    drill = Drill(tmp_path, epochs=12, seed=1)
    drill.run(kills=20, terms=5)


# --- within this process --------------------------------------------------------------------------------------------

# One expert and one loss term compile in a fraction of the time.
SHORT = (
    "stages.representation.max_steps=2",
    "stages.classifier.max_steps=1",
    "log=quiet",
    "model.depths=(1,)",
    "stages.representation.loss.nt=0.0",
    "stages.representation.loss.mu=0.0",
)


def configured(*changes: str):
    return parse_config(digits(1, 1, *SHORT, *changes))[0]


def test_loss_that_is_not_finite_stops_with_all_that_matters(tmp_path):
    config = configured(
        "stages.representation.max_steps=8",
        "stages.representation.lr=1e30",
        "stages.representation.warmup_lr=0.0",
        "stages.representation.warmup_epochs=0",
        "train.checkpoint_every_steps=1",
    )
    with pytest.raises(UserError) as stopped:
        loop.train(config, tmp_path / "w")
    said = str(stopped.value)
    assert "the loss is not finite in stage representation, epoch 0, by step" in said
    assert "loss nan" in said and "ce nan" in said
    newest = max(int(p.name) for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdigit())
    assert f"last good checkpoint: {tmp_path / 'w' / 'checkpoints' / str(newest)}" in said


def test_warm_start_with_other_classes_then_resume_wins(tmp_path):
    """From weights of 7 classes: all but the heads is taken over; once there is a checkpoint, it is what counts."""
    config = configured("train.checkpoint_every_steps=1")
    seven = models.init_variables(models.build_model(config.model, 7), 5, config.data.image_size)
    save_weights(tmp_path / "elsewhere" / "seven", seven, {"num_classes": 7})
    config.init_from = str(tmp_path / "elsewhere" / "seven")
    for name in config.run:  # nothing moves
        config.stages[name].update({"lr": 0.0, "warmup_lr": 0.0, "weight_decay": 0.0})
    loop.train(config, tmp_path / "w")
    found = flatten_dict(load_weights(tmp_path / "w" / "weights" / "representation")[0]["params"], sep="/")
    want = flatten_dict(seven["params"], sep="/")
    assert found.keys() == want.keys()
    for path, value in found.items():
        if path.startswith("heads/"):
            assert value.shape[-1] == 10
        else:
            assert np.array_equal(value, want[path]), path

    # Rates count the images of the steps that were made, here two and one, not those of a whole epoch.
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    images = [2 * config.stages.representation.batch_size, config.stages.classifier.batch_size]
    took = json.loads((tmp_path / "w" / "results.json").read_text())["seconds"]["train"]
    assert sum(np.divide(images, rates)) == pytest.approx(took, abs=0.011)

    (tmp_path / "w" / "results.json").unlink()
    config.init_from = str(tmp_path / "nowhere")  # not looked at any more
    loop.train(config, tmp_path / "w")
    assert "continuing in stage" in (tmp_path / "w" / "log.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "epoch_loss" in line] == [2, 3]  # no step comes twice
    with pytest.raises(UserError, match="no such folder"):
        loop.train(config, tmp_path / "new")


def test_two_processes_do_not_share_a_work_directory(tmp_path, capsys):
    """The second waits, and is refused while the first lives, with nothing changed; a killed one leaves no lock."""
    workdir = tmp_path / "w"
    with opened(workdir, to_plain(configured())):
        pass
    hold = f"""
from pathlib import Path
from shike_jax.storage.workdir import claimed
with claimed(Path({str(workdir)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use by another process"), claimed(workdir, patience=0):
        pass
    assert [p.name for p in workdir.iterdir()] == ["config.json"]

    # It ends while the second waits, having finished the run: there is nothing left to do.
    def finish():
        (workdir / "results.json").write_text('{"top1": 12.5}')
        holder.kill()

    threading.Timer(1.5, finish).start()
    assert loop.train(configured(), workdir) == {"top1": 12.5}
    assert re.search("waiting for its end.*nothing to do", capsys.readouterr().out, re.DOTALL)
    holder.wait()


# --- damaged files of the work directory ----------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    config = to_plain(configured())
    with opened(tmp_path, config):
        pass
    (tmp_path / "results.json").write_text(json.dumps({"top1": 50.0}))
    return tmp_path, config


def test_finished_run_is_recognised(finished):
    assert examine(*finished) == {"top1": 50.0}


@pytest.mark.parametrize("text", ["", '{"top1": 50', "[]", '{"top5": 1}', '{"top1": "x"}', "\x00\x00"])
def test_damaged_results_are_set_aside(finished, capsys, text):
    workdir, config = finished
    (workdir / "results.json").write_text(text)
    assert examine(workdir, config) is None
    assert "results.json is damaged" in capsys.readouterr().err
    assert (workdir / "damaged-results.json").read_text() == text


@pytest.mark.parametrize("text", ["", '{"seed": ', "[]", "\x00\x00", '{"seed": 0}'])
def test_damaged_config_stops(finished, text):
    workdir, config = finished
    (workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json|another configuration"):
        examine(workdir, config)
    assert (workdir / "config.json").read_text() == text


def test_lost_config_stops(finished):
    workdir, config = finished
    os.remove(workdir / "config.json")
    with pytest.raises(UserError, match="not empty and not a run of this program"):
        examine(workdir, config)
