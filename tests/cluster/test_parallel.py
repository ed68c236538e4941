"""One computation on any number of devices and processes: equal in float64 to 1e-8, equal counts, clear failures."""

import json
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax.cluster import joining, parallel
from shike_jax.errors import UserError
from shike_jax.storage.weights import load_weights
from tests.jobs import Job, digits, recorded_steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# 489 training images in batches of 32 and 300 test images in batches of 56: both end with a partial batch, of 9 and 20
# images: of 8 devices two get a full share (of 4 and 7), one a part of it, and five get nothing.
FLOAT64 = ("dtype=float64", "eval.batch_size=56")
LAYOUTS = {"8 devices": (1, 8), "2 x 4": (2, 4), "4 x 2": (4, 2)}


def test_processes_without_a_coordinator_are_refused(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    joining.start_distributed(None, None, None, 60)
    joining.start_distributed(None, 1, 0, 60)
    with pytest.raises(UserError, match=r"--processes=2, --process=1.*expected --coordinator=HOST:PORT"):
        joining.start_distributed(None, 2, 1, 60)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    with pytest.raises(UserError, match=r"--processes=4"):
        joining.start_distributed(None, None, None, 60)


def losses(workdir) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["epoch_loss"] for line in lines if "epoch_loss" in line]


def finish(workdir, flags, processes=1, devices=1) -> Job:
    job = Job(workdir, flags, processes, devices)
    assert job.wait(1800) == [0] * processes, job.output()[-2000:]
    return job


def assert_same_training(one, other, test_images=300, stages=("representation", "classifier")) -> None:
    """Losses and all variables within 1e-8, relative to the largest of each array; evaluation counts equal."""
    np.testing.assert_allclose(losses(other), losses(one), rtol=1e-8)
    worst = 0.0
    for stage in stages:
        a, b = (flatten_dict(load_weights(w / "weights" / stage)[0], sep="/") for w in (one, other))
        assert a.keys() == b.keys()
        for path in a:
            assert a[path].dtype == np.float64
            difference, largest = np.abs(a[path] - b[path]).max(), np.abs(a[path]).max()
            assert difference <= 1e-8 * largest, path
            worst = max(worst, difference / largest if largest else 0.0)
    off = np.max(np.abs(np.divide(losses(other), losses(one)) - 1))
    print(f"\n{other.name}: variables within {worst:.1e}, losses of {len(losses(one))} epochs within {off:.1e}")
    assert counts(one, test_images) == counts(other, test_images)


def counts(workdir, test_images=300) -> dict:
    """Whole numbers of test images that were classified rightly: of all, and of the tenth that each class has."""
    results = json.loads((workdir / "results.json").read_text())
    each = test_images // 10
    of = dict.fromkeys(("top1", "top5", "experts"), test_images) | dict.fromkeys(
        ("per_class", "experts_per_class"), each
    )
    found = {key: np.array(results[key]) * number / 100 for key, number in of.items()}
    for key, value in found.items():
        np.testing.assert_allclose(value, np.rint(value), atol=1e-2, err_msg=key)  # the file keeps four decimals
    return {key: np.rint(value).astype(int).tolist() for key, value in found.items()}


@pytest.mark.parametrize("backend", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)])
def test_two_processes_train_like_one_however_steps_are_compiled(tmp_path, backend):
    """Large batches and one stage, so that the last partial batch (9 of 120, 20 of 280 to test) comes soon."""
    few = ("eval.batch_size=280", "stages.representation.batch_size=120", "run=('representation',)")
    flags = digits(1, 1, *FLOAT64, "model.depths=(2,)", *few)
    finish(tmp_path / "one", flags)
    job = finish(tmp_path / "two", [*flags, f"--config.train.backend={backend}"], processes=2, devices=2)
    assert_same_training(tmp_path / "one", tmp_path / "two", stages=("representation",))
    assert re.search(r"2 processes, coordinator 127.0.0.1:\d+, 4 x cpu \(2 here\)", job.output())
    assert job.output(1).count("top-1") == 0  # one process speaks


@pytest.mark.slow
def test_every_layout_trains_alike(tmp_path):
    flags = digits(2, 1, *FLOAT64)
    finish(tmp_path / "one", flags)
    for name, (processes, devices) in LAYOUTS.items():
        finish(tmp_path / name, flags, processes, devices)
        assert_same_training(tmp_path / "one", tmp_path / name)


@pytest.mark.slow
def test_one_checkpoint_counts_alike_on_every_layout(tmp_path):
    """Weights are loaded, left as they are for one step, and evaluated: to the same counts, exactly."""
    finish(tmp_path / "source", digits(1, 1, "stages.representation.max_steps=4", *FLOAT64))
    still = (
        f"stages.classifier.{field}"
        for field in (
            "max_steps=1",
            "lr=0.0",
            "warmup_lr=0.0",
            "weight_decay=0.0",
            "bn_trunk=running",
            "bn_experts=running",
        )
    )
    flags = digits(1, 1, *FLOAT64, *still, "run=('classifier',)", f"init_from={tmp_path / 'source'}")
    found = {}
    for name, (processes, devices) in {"1 device": (1, 1), **LAYOUTS}.items():
        finish(tmp_path / name, flags, processes, devices)
        found[name] = counts(tmp_path / name)
        print(f"\n{name}: {found[name]}")
    assert 0 < found["1 device"]["top1"] < 300  # neither nothing nor everything is right
    assert all(value == found["1 device"] for value in found.values())


@pytest.mark.slow
def test_checkpoint_moves_between_layouts(tmp_path):
    """2 x 4 devices, stopped; 1 device, stopped; 2 x 4 again to the end: as if nothing had happened."""
    flags = digits(2, 1, *FLOAT64, "train.checkpoint_every_steps=2", "train.log_every_steps=1")
    finish(tmp_path / "one", flags)
    moved = tmp_path / "moved"
    for processes, devices in ((2, 4), (1, 1)):
        job = Job(moved, flags, processes, devices)
        before = recorded_steps(moved)
        while recorded_steps(moved) < before + 4:
            time.sleep(0.05)
        for process in job.processes:
            process.terminate()
        assert job.wait() == [75] * processes, job.output()[-2000:]
    job = finish(moved, flags, 2, 4)
    assert "continuing in stage" in job.output()
    for stage in ("representation", "classifier"):
        a, b = (flatten_dict(load_weights(w / "weights" / stage)[0], sep="/") for w in (tmp_path / "one", moved))
        assert all(np.abs(a[k] - b[k]).max() <= 1e-8 * np.abs(a[k]).max() for k in a)


# --- two processes, one of which is killed, told to stop, or stuck --------------------------------------------------

PEER_TIMEOUT = 20  # seconds, config.train.peer_timeout
LOST = digits(
    4,
    1,
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=4",
    f"train.peer_timeout={PEER_TIMEOUT}",
    "train.eval_every_epochs=0",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pathlib.Path:
    """A run of two processes to its end; runs beside it share what is compiled."""
    return finish(tmp_path_factory.mktemp("two") / "undisturbed", LOST, processes=2).workdir


def signalled(workdir, victim: int, sign: str) -> tuple[Job, float]:
    """Starts a run and sends a signal to one process in its midst; returns the job and when that was."""
    job = Job(workdir, LOST, processes=2)
    while recorded_steps(workdir) < 10:
        assert all(process.poll() is None for process in job.processes), job.output()[-2000:]
        time.sleep(0.05)
    job.processes[victim].send_signal(getattr(signal, f"SIG{sign}"))
    return job, time.time()


def assert_same_end(one, other) -> None:
    """Weights and running averages after each stage equal bit for bit, and so the evaluation."""
    for stage in ("representation", "classifier"):
        a, b = (flatten_dict(load_weights(w / "weights" / stage)[0], sep="/") for w in (one, other))
        assert a.keys() == b.keys()
        assert [path for path in a if not np.array_equal(a[path], b[path])] == []
    a, b = (json.loads((w / "results.json").read_text()) for w in (one, other))
    assert (a["per_class"], a["experts_per_class"]) == (b["per_class"], b["experts_per_class"])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("sign", ["KILL", "STOP"])
def test_lost_process_stops_the_other_and_nothing_is_lost(undisturbed, victim, sign):
    workdir = undisturbed.parent / f"{sign}{victim}"
    job, began = signalled(workdir, victim, sign)
    try:
        status, seconds = job.processes[1 - victim].wait(60), time.time() - began
    finally:
        job.kill()
    said = [line for line in job.output(1 - victim).splitlines() if f"[process {1 - victim}] error: " in line][-1]
    print(f"\n{sign} of process {victim}, peer_timeout {PEER_TIMEOUT}: status {status} after {seconds:.1f} s\n  {said}")
    assert status == 76
    if sign == "STOP":
        assert seconds > PEER_TIMEOUT - 3
        silent = rf"process {victim}( \(the coordinator\))? has given no sign of life for {PEER_TIMEOUT} s:"
        assert re.search(silent, said)
    else:
        assert re.search(r"lost contact with another process|process 0 \(the coordinator\) is gone", said)
    assert said.endswith("start all processes again to continue")
    assert "continuing in stage representation at step " in finish(workdir, LOST, processes=2).output()
    assert_same_end(undisturbed, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(undisturbed, victim):
    workdir = undisturbed.parent / f"TERM{victim}"
    job, began = signalled(workdir, victim, "TERM")
    assert job.wait() == [75, 75], job.output()[-2000:]
    said = [re.search(r"stopped in stage (\w+) at step (\d+); start again", job.output(i)).group() for i in (0, 1)]
    print(f"\nTERM to process {victim}: both ended with 75 after {time.time() - began:.1f} s: {said}")
    assert said[0] == said[1]
    step = int(re.search(r"\d+", said[0]).group())
    assert step == max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert step == json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"continuing in stage representation at step {step}" in finish(workdir, LOST, processes=2).output()
    assert_same_end(undisturbed, workdir)


def test_processes_with_other_settings_are_refused(tmp_path):
    """Process 1 is started with another seed: both stop before the first step, and say what differs."""
    job = Job(tmp_path / "w", digits(1, 1), processes=2, own=([], ["--config.seed=1"]))
    statuses = job.wait()
    assert statuses[0] == 2 and statuses[1] in (2, -signal.SIGABRT), job.output()[-2000:]
    assert "processes disagree on the configuration: process(es) [1] differ" in job.output()
    assert not (tmp_path / "w" / "checkpoints").exists()


# --- within this process --------------------------------------------------------------------------------------------


def test_batches_are_split_by_process_and_device(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert parallel.split_batch({"x": np.arange(8)})["x"].tolist() == [[4, 5], [6, 7]]
    assert parallel.split_batch({"x": np.arange(4)}, per_process=True)["x"].tolist() == [[0, 1], [2, 3]]


def test_one_process_needs_no_agreement():
    parallel.assert_equal_everywhere("anything", "text")
    parallel.barrier("nobody else")
    value = {"a": [1]}
    assert parallel.from_main(value) is value
    assert parallel.describe().startswith("1 process, ")


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_bad_environment_is_named(monkeypatch, variable):
    monkeypatch.setenv(variable, "two")
    with pytest.raises(UserError, match=f"{variable}='two'"):
        joining.start_distributed("127.0.0.1:1", None, None, 60)
