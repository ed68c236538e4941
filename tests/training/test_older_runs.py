"""What older code wrote is still read: a stopped run goes on, a finished one is evaluated and reported.

tests/golden/version_0_1 holds a run of that code, stopped by SIGTERM at step 6 of its first stage, and the same run
undisturbed: digits, one expert, width 4, 2 + 1 epochs. version_0_1_switches holds the same of later code (commit
90df42b), with averaged weights in its second stage and speed switches that exist no more.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import GOLDEN, ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

OLD = GOLDEN / "version_0_1"
SWITCHES = GOLDEN / "version_0_1_switches"
FLAGS = [
    "--config=configs/digits_lt.py:width=4,epochs=2,classifier_epochs=1",
    "--config.model.depths=(2,)",
    "--config.data.test_per_class=100",
    "--config.train.log_every_steps=1",
]


LATER = [
    "--config.stages.classifier.average=uniform",
    "--config.model.bn_together=True",
    "--config.train.backend=shard_map",
]


def run(command, *arguments):
    command = [sys.executable, "-m", "shike_jax", command, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(workdir, key):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.mark.parametrize(("old", "flags"), [(OLD, []), (SWITCHES, LATER)], ids=["first", "switches"])
def test_a_stopped_run_goes_on_as_if_nothing_had_changed(tmp_path, old, flags):
    workdir = tmp_path / "run"
    shutil.copytree(old / "stopped", workdir)
    text = run("train", *FLAGS, *flags, f"--workdir={workdir}")
    assert ("model.bn_together: a speed switch of version 0.1" in text) == bool(flags)
    assert "continuing in stage representation at step 6" in text
    losses, expected = records(workdir, "loss"), records(old / "whole", "loss")
    assert len(losses) == len(expected) > 20
    np.testing.assert_allclose(losses, expected, rtol=2e-3)  # float32 on another processor drifts
    rates = records(workdir, "learning_rate")
    np.testing.assert_allclose(rates, records(old / "whole", "learning_rate"), rtol=1e-6)
    results = json.loads((workdir / "results.json").read_text())
    assert results["num_parameters"] == json.loads((old / "whole" / "results.json").read_text())["num_parameters"]


@pytest.mark.parametrize("old", [OLD, SWITCHES], ids=["first", "switches"])
def test_weights_of_a_finished_run_score_as_they_did(tmp_path, old):
    output = tmp_path / "scores.json"
    text = run("evaluate", f"--checkpoint={old / 'whole'}", f"--output={output}")
    assert "representation heads are scored on the network as stage classifier left" in " ".join(text.split())
    found = json.loads(output.read_text())["heads"]["classifier"]
    expected = json.loads((old / "whole" / "results.json").read_text())
    for score in ("top1", "medium", "few"):
        assert found[score] == pytest.approx(expected[score], abs=0.2)  # of 1,000 images, two on the edge


def test_a_report_of_older_runs(tmp_path):
    run("report", f"--runs={GOLDEN}", f"--output={tmp_path / 'report'}", "--no-evaluate")
    page = (tmp_path / "report" / "report.md").read_text()
    for old in (OLD, SWITCHES):
        top1 = json.loads((old / "whole" / "results.json").read_text())["top1"]
        assert f"{top1:.2f}" in page
