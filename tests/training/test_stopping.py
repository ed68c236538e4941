"""Ctrl-C, SIGTERM before the first step, a full disk and a work directory that disappears: one line, nothing lost."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from shike_jax.storage.trouble import disk_trouble
from tests.jobs import ROOT, Job, digits, recorded_steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")

LONG = ("train.checkpoint_every_epochs=0", "train.eval_every_epochs=0", "train.log_every_steps=1")


def until(condition, seconds=300):
    limit = time.time() + seconds
    while not condition():
        assert time.time() < limit, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_before_the_first_step_it_leaves_at_once_and_leaves_nothing(tmp_path, number, status, monkeypatch):
    """The network is large enough to compile for many seconds, during which no Python handler runs."""
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    job = Job(tmp_path / "run", ["--config=configs/digits_lt.py", "--config.model.blocks=(5, 5, 5)"])
    until(lambda: "1 process" in job.output())
    time.sleep(3)
    began = time.time()
    job.processes[0].send_signal(number)
    assert job.wait(60) == [status]
    assert time.time() - began < 5
    assert "nothing was trained" in job.output()
    assert recorded_steps(tmp_path / "run") == 0
    assert not (tmp_path / "run").exists()  # so that a corrected command may begin there


def test_a_run_that_failed_to_start_leaves_the_caller_alone(tmp_path):
    """In a program of the user's own: once `train` has raised, SIGTERM is again a request and ends nothing."""
    script = f"""
import os, pathlib, signal, time
from shike_jax.config.loading import parse_config
from shike_jax.cluster import preemption
from shike_jax.errors import UserError
from shike_jax.training import loop
preemption.listen()
config, _ = parse_config(["--config=configs/digits_lt.py", "--config.init_from=/nowhere", "--config.log=quiet"])
try:
    loop.train(config, pathlib.Path({str(tmp_path / "run")!r}))
except UserError as error:
    print("refused:", error)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused:" in done.stdout and done.stdout.endswith("still here\n")


def test_ctrl_c_saves_and_says_how_to_continue(tmp_path):
    job = Job(tmp_path / "run", digits(500, 1, "model.depths=(1,)", *LONG))
    until(lambda: recorded_steps(tmp_path / "run") > 20)
    job.processes[0].send_signal(signal.SIGINT)
    assert job.wait(60) == [130]
    last = job.output().splitlines()[-1]
    assert last.startswith("stopped in stage representation at step") and last.endswith("start again to continue")
    [checkpoint] = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert f"at step {checkpoint};" in last
    assert "Traceback" not in job.output()


def test_a_work_directory_that_disappears_stops_the_run(tmp_path):
    job = Job(tmp_path / "run", digits(500, 1, "model.depths=(1,)", *LONG))
    until(lambda: recorded_steps(tmp_path / "run") > 20)
    shutil.rmtree(tmp_path / "run")
    assert job.wait(60) == [2]
    assert "was removed while training" in job.output().splitlines()[-1]
    assert "Traceback" not in job.output() and not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_and_names_the_last_good_checkpoint(tmp_path):
    """The system refuses files beyond 20 KiB: a checkpoint of this network is larger, everything else is smaller."""
    short = ("model.depths=(1,)", "stages.representation.loss.nt=0.", "stages.representation.loss.mu=0.")
    flags = digits(2, 1, *short, "train.checkpoint_every_steps=4", "data.test_per_class=100")
    command = [sys.executable, "-m", "shike_jax", "train", f"--workdir={tmp_path / 'run'}", *flags]
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command]  # in units of 1024 bytes
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "File too large; last good checkpoint: none; make room and start again" in line
    assert "Traceback" not in done.stderr


def test_other_errors_are_not_taken_for_the_disk():
    assert disk_trouble(ValueError("a space left")) == ""
    assert disk_trouble(OSError(28, "No space left on device")) == "No space left on device"
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = ValueError("RESOURCE_EXHAUSTED: write: No space left on device [OS error 28]")
    assert disk_trouble(wrapped) == "No space left on device"
