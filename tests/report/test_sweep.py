"""Sweeps: which commands they are, what is skipped, how they end. Runs are stood in for by small programs."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from shike_jax.errors import UserError
from tests.conftest import ROOT

DIGITS = f"--config={ROOT}/configs/digits_lt.py"


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "launch" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def commands(sweep, capsys, *arguments):
    """{directory below the work directory: arguments} of a dry run."""
    assert sweep.main([*arguments, "--workdir=w", "--dry-run"]) == 0
    found = {}
    for line in capsys.readouterr().out.splitlines():
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "shike_jax.main"]
        [place] = [word.partition("=")[2] for word in words if word.startswith("--workdir=")]
        found[place.removeprefix("w/")] = words[3:]
    return found


def test_table_4_has_seven_rows_for_each_seed(sweep, capsys):
    found = commands(sweep, capsys, "table4", DIGITS, "--seeds=0,3", "--", "--config.stages.representation.epochs=1")
    names = ["plain", "moe", "moe_dkf", "moe_dkf_mu", "moe_dkf_nt", "moe_mu_nt", "shike"]
    assert list(found) == [f"{name}/seed{seed}" for name in names for seed in (0, 3)]
    off = {"mu": "--config.stages.representation.loss.mu=0.0", "nt": "--config.stages.representation.loss.nt=0.0"}
    no_fusion, single = "--config.model.fusion=False", "--config.model.depths=(1,)"
    expected = {
        "plain": {single, no_fusion, *off.values()}, "moe": {no_fusion, *off.values()}, "moe_dkf": {*off.values()},
        "moe_dkf_mu": {off["nt"]}, "moe_dkf_nt": {off["mu"]}, "moe_mu_nt": {no_fusion}, "shike": set(),
    }  # fmt: skip
    for name, changes in expected.items():
        given = set(found[f"{name}/seed3"])
        assert given - {DIGITS, f"--workdir=w/{name}/seed3"} == {
            *changes, "--config.seed=3", "--config.stages.representation.epochs=1"
        }  # fmt: skip


def test_table_5_has_ten_rows(sweep, capsys):
    found = commands(sweep, capsys, "table5", f"--config={ROOT}/configs/imagenet_lt.py")
    assert len(found) == 10
    assert "--config.model.depths=(1,2,3,2)" in found["ABCB/seed0"]
    assert "--config.model.depths=(3,)" in found["C/seed0"]
    assert "--config.stages.representation.loss.nt=0.0" in found["C/seed0"]
    assert "--config.stages.representation.loss.nt=0.0" not in found["AC/seed0"]
    with pytest.raises(UserError, match="'resnet20' has 2 shared stages; expected 3"):
        sweep.main(["table5", DIGITS, "--workdir=w", "--dry-run"])


def test_a_grid_and_a_choice_of_rows(sweep, capsys):
    axes = ["--set=stages.representation.lr=0.1,0.2", "--set=config.stages.classifier.lr=0.3",
            "--set=model.depths=(1,2,1),(1,2)"]  # fmt: skip
    found = commands(sweep, capsys, "grid", DIGITS, *axes)
    assert list(found) == [
        f"representation.lr={lr}_classifier.lr=0.3_model.depths={depths}/seed0"
        for lr in (0.1, 0.2) for depths in ("1-2-1", "1-2")
    ]  # fmt: skip
    assert "--config.model.depths=(1,2)" in list(found.values())[-1]
    assert len(commands(sweep, capsys, "grid", DIGITS, *axes, "--rows=*lr=0.2*1-2-1,nothing")) == 1
    assert list(commands(sweep, capsys, "seeds", DIGITS, "--seeds=4,5")) == ["seed4", "seed5"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table4", DIGITS, "--seeds=0,x"], "--seeds=0,x"),
        (["table4", DIGITS, "--rows=nope"], "--rows=nope"),
        (["table4", DIGITS, "--config.model.fusion=False"], "table4: expected a configuration with all components"),
        (["table4", DIGITS, "--config.seeed=1"], "no field 'seeed'"),
        (["grid", DIGITS], "at least one --set"),
        (["grid", DIGITS, "--set=seed"], "--set=seed: expected FIELD=VALUE"),
        (["grid", DIGITS, "--set=seed=0", "--set=seed=1"], "name a field twice"),
        (["seeds", DIGITS, "--set=seed=1"], "belongs to the sweep `grid`"),
        (["seeds", DIGITS, "--jobs=0"], "--jobs=0"),
    ],
)
def test_mistakes_are_named(sweep, arguments, expected):
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        sweep.main([*arguments, "--workdir=w", "--dry-run"])


def test_a_directory_of_another_configuration_stops_before_anything_runs(sweep, tmp_path):
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "config.json").write_text('{"seed": 0}')
    with pytest.raises(UserError, match="belongs to another configuration"):
        sweep.main(["seeds", DIGITS, f"--workdir={tmp_path}"])


def stand_in(sweep, folder, name, program):
    """A job that runs `program` instead of training; {results} is where its results go."""
    job = sweep.Job(name, folder / name, [])
    job.workdir.mkdir(parents=True)
    text = program.format(results=str(job.workdir / "results.json"))
    job.__class__ = type("StandIn", (sweep.Job,), {"command": [sys.executable, "-c", text]})
    return job


FINISH = "import json; json.dump({{'top1': 55.5}}, open({results!r}, 'w'))"
FAIL = "import sys; print('error: no such data', file=sys.stderr); sys.exit(2)"
WAIT = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        "open({results!r} + '.started', 'w'); time.sleep(60)")  # fmt: skip


def test_failures_are_told_and_the_others_finish(sweep, tmp_path, capsys):
    jobs = [stand_in(sweep, tmp_path, "a", FAIL), stand_in(sweep, tmp_path, "b", FINISH)]
    assert sweep.run_local(jobs, 1, tmp_path / "logs") == 1
    text = capsys.readouterr().out
    assert "a: failed with status 2: error: no such data" in text
    assert "b: top-1 55.50 %" in text
    assert "b   55.50" in text
    assert "a  unfinished" in text


def test_finished_runs_are_skipped(sweep, tmp_path, capsys):
    jobs = [stand_in(sweep, tmp_path, "a", FAIL), stand_in(sweep, tmp_path, "b", FINISH)]
    (jobs[0].workdir / "results.json").write_text(json.dumps({"top1": 1.0}))
    assert sweep.run_local(jobs, 2, tmp_path / "logs") == 0
    assert "2 runs, 1 finished already" in capsys.readouterr().out


def test_a_signal_stops_all_and_says_so(sweep, tmp_path, capsys):
    jobs = [stand_in(sweep, tmp_path, name, WAIT) for name in ("a", "b", "c")]

    def stop_when_both_run():
        while len(list(tmp_path.glob("*/*.started"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_both_run, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    assert sweep.run_local(jobs, 2, tmp_path / "logs") == sweep.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) == before
    text = capsys.readouterr().out
    assert "a: interrupted" in text
    assert "c: started" not in text


def test_only_unfinished_runs_are_submitted(sweep, tmp_path, monkeypatch, capfd):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "got $@"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sweep, "array_script", lambda jobs, at_once: "\n".join(job.name for job in jobs))
    jobs = [stand_in(sweep, tmp_path, "a", FAIL), stand_in(sweep, tmp_path, "b", FAIL)]
    (jobs[0].workdir / "results.json").write_text('{"top1": 1.0}')
    assert sweep.submit(jobs, 1, tmp_path, ["--nodes=2"]) == 0
    script = tmp_path / "array.sbatch"
    assert capfd.readouterr().out == f"got --nodes=2 {script}\n"
    assert script.read_text() == "b"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch was not found"):
        sweep.submit(jobs, 1, tmp_path, [])


def test_the_job_array_hands_each_task_its_run(sweep, tmp_path, monkeypatch):
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "gpu_slurm.sbatch").write_text('#!/bin/bash\n#SBATCH --gres=gpu:1\nprintf "%s\\n" "$@"\n')
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    jobs = [sweep.Job(str(i), tmp_path, ["--config=a b.py", f"--config.model.depths=({i},)"]) for i in range(3)]
    script = tmp_path / "array.sbatch"
    script.write_text(sweep.array_script(jobs, 2))
    assert "#SBATCH --gres=gpu:1\n#SBATCH --array=0-2%2\n" in script.read_text()
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    found = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["--config=a b.py", "--config.model.depths=(1,)"]
