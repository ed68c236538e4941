"""Sweeps: which commands they are, what is skipped, how they end. Runs are stood in for by small programs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from shike_jax.commands import sweep
from shike_jax.errors import UserError
from tests.conftest import ROOT

DIGITS = f"--config={ROOT}/configs/digits_lt.py"


def commands(capsys, *arguments):
    """{directory below the work directory: arguments} of a dry run."""
    assert sweep.main([*arguments, "--workdir=w", "--dry-run"]) == 0
    found = {}
    for line in capsys.readouterr().out.splitlines():
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "shike_jax", "train"]
        [place] = [word.partition("=")[2] for word in words if word.startswith("--workdir=")]
        found[place.removeprefix("w/")] = words[4:]
    return found


def test_table_4_has_seven_rows_for_each_seed(capsys):
    found = commands(capsys, "table4", DIGITS, "--seeds=0,3", "--", "--config.stages.representation.epochs=1")
    names = ["plain", "moe", "moe_dkf", "moe_dkf_mu", "moe_dkf_nt", "moe_mu_nt", "shike"]
    assert list(found) == [f"{name}/seed{seed}" for name in names for seed in (0, 3)]
    off = {"mu": "--config.stages.representation.loss.mu=0.0", "nt": "--config.stages.representation.loss.nt=0.0"}
    no_fusion, single = "--config.model.fusion=False", "--config.model.depths=(1,)"
    expected = {
        "plain": {single, no_fusion, *off.values()},
        "moe": {no_fusion, *off.values()},
        "moe_dkf": {*off.values()},
        "moe_dkf_mu": {off["nt"]},
        "moe_dkf_nt": {off["mu"]},
        "moe_mu_nt": {no_fusion},
        "shike": set(),
    }
    for name, changes in expected.items():
        given = set(found[f"{name}/seed3"])
        assert given - {DIGITS, f"--workdir=w/{name}/seed3"} == {
            *changes,
            "--config.seed=3",
            "--config.stages.representation.epochs=1",
        }


def test_table_5_has_ten_rows(capsys):
    found = commands(capsys, "table5", f"--config={ROOT}/configs/imagenet_lt.py")
    assert len(found) == 10
    assert "--config.model.depths=(1,2,3,2)" in found["ABCB/seed0"]
    assert "--config.model.depths=(3,)" in found["C/seed0"]
    assert "--config.stages.representation.loss.nt=0.0" in found["C/seed0"]
    assert "--config.stages.representation.loss.nt=0.0" not in found["AC/seed0"]
    with pytest.raises(UserError, match="'resnet20' has 2 shared stages; expected 3"):
        sweep.main(["table5", DIGITS, "--workdir=w", "--dry-run"])


def test_a_grid_and_a_choice_of_rows(capsys):
    axes = [
        "--set=stages.representation.lr=0.1,0.2",
        "--set=config.stages.classifier.lr=0.05",
        "--set=model.depths=(1,2,1),(1,2)",
    ]
    found = commands(capsys, "grid", DIGITS, *axes)
    assert list(found) == [
        f"representation.lr={lr}_classifier.lr=0.05_model.depths={depths}/seed0"
        for lr in (0.1, 0.2)
        for depths in ("1-2-1", "1-2")
    ]
    assert "--config.model.depths=(1,2)" in list(found.values())[-1]
    assert len(commands(capsys, "grid", DIGITS, *axes, "--rows=*lr=0.2*1-2-1,nothing")) == 1
    assert list(commands(capsys, "seeds", DIGITS, "--seeds=4,5")) == ["seed4", "seed5"]
    signs = commands(capsys, "grid", DIGITS, "--set=stages.representation.loss.sade_tau=-1,1")
    assert list(signs) == ["sade_tau=-1/seed0", "sade_tau=1/seed0"]


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
        (["grid", DIGITS, "--set=init_from=a b,a-b"], "init_from: a b and a-b are one directory init_from=a-b"),
        (["grid", DIGITS, "--set=seed=1,1"], "--set=seed: 1 and 1 are one directory seed=1"),
        (["seeds", DIGITS, "--seeds=0,1,0"], "--seeds=0,1,0: expected each seed once"),
        (["seeds", DIGITS, "--jobs=0"], "--jobs=0"),
    ],
)
def test_mistakes_are_named(arguments, expected):
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        sweep.main([*arguments, "--workdir=w", "--dry-run"])


def test_a_directory_of_another_configuration_stops_before_anything_runs(tmp_path):
    (tmp_path / "seed0" / "weights" / "representation").mkdir(parents=True)
    (tmp_path / "seed0" / "config.json").write_text('{"seed": 0}')
    with pytest.raises(UserError, match="belongs to another configuration"):
        sweep.main(["seeds", DIGITS, f"--workdir={tmp_path}"])


def stand_in(folder, name, program):
    """A job that runs `program` instead of training; {results} is where its results go."""
    job = sweep.Job(name, folder / name, [])
    job.workdir.mkdir(parents=True)
    text = program.format(results=str(job.workdir / "results.json"))
    job.__class__ = type("StandIn", (sweep.Job,), {"command": [sys.executable, "-c", text]})
    return job


FINISH = "import json; json.dump({{'top1': 55.5}}, open({results!r}, 'w'))"
FAIL = "import sys; print('error: no such data', file=sys.stderr); sys.exit(2)"
WAIT = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "open({results!r} + '.started', 'w'); time.sleep(60)"
)


def test_failures_are_told_and_the_others_finish(tmp_path, capsys):
    jobs = [stand_in(tmp_path, "a", FAIL), stand_in(tmp_path, "b", FINISH)]
    assert sweep.run_local(jobs, 1, tmp_path / "logs") == 1
    text = capsys.readouterr().out
    assert "a: failed with status 2: error: no such data" in text
    assert "b: top-1 55.50 %" in text
    assert "b   55.50" in text
    assert "a  unfinished" in text


def test_finished_runs_are_skipped(tmp_path, capsys):
    jobs = [stand_in(tmp_path, "a", FAIL), stand_in(tmp_path, "b", FINISH)]
    (jobs[0].workdir / "results.json").write_text(json.dumps({"top1": 1.0}))
    assert sweep.run_local(jobs, 2, tmp_path / "logs") == 0
    assert "2 runs, 1 finished already" in capsys.readouterr().out


def test_a_signal_stops_all_and_says_so(tmp_path, capsys):
    jobs = [stand_in(tmp_path, name, WAIT) for name in ("a", "b", "c")]

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


def test_only_unfinished_runs_are_submitted(tmp_path, monkeypatch, capfd):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "got $@"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sweep, "array_script", lambda jobs, at_once: "\n".join(job.name for job in jobs))
    jobs = [stand_in(tmp_path, "a", FAIL), stand_in(tmp_path, "b", FAIL)]
    (jobs[0].workdir / "results.json").write_text('{"top1": 1.0}')
    assert sweep.submit(jobs, 1, tmp_path, ["--nodes=2"]) == 0
    script = tmp_path / "array.sbatch"
    assert capfd.readouterr().out == f"got --nodes=2 {script}\n"
    assert script.read_text() == "b"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="sbatch was not found"):
        sweep.submit(jobs, 1, tmp_path, [])


def test_the_job_array_hands_each_task_its_run(tmp_path, monkeypatch):
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "gpu_slurm.sbatch").write_text('#!/bin/bash\n#SBATCH --gres=gpu:1\nprintf "%s\\n" "$@"\n')
    monkeypatch.setattr(sweep, "HOME", tmp_path)
    jobs = [sweep.Job(str(i), tmp_path, ["--config=a b.py", f"--config.model.depths=({i},)"]) for i in range(3)]
    script = tmp_path / "array.sbatch"
    script.write_text(sweep.array_script(jobs, 2))
    assert "#SBATCH --gres=gpu:1\n#SBATCH --array=0-2%2\n" in script.read_text()
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    found = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["--config=a b.py", "--config.model.depths=(1,)"]


# --- from one command to the report, with real runs ------------------------------------------------------------------

# One epoch of a few steps for each stage: what is tested is that every row starts, ends and lands in its place.
TINY = [
    DIGITS + ":width=4,epochs=1,classifier_epochs=1",
    "--config.train.eval_every_epochs=0",
    "--config.stages.representation.max_steps=4",
    "--config.stages.classifier.max_steps=2",
]
# Table 5 needs a backbone with three shared stages.
TINY5 = ["--config.model.backbone=resnet50", "--config.model.blocks=(1,1,1,1)", "--config.data.image_size=32"]


def start(folder, *arguments):
    """Starts the sweep of a folder as a user would; what it prints goes to FOLDER/sweep.txt."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "shike_jax", "sweep", *arguments, *TINY, f"--workdir={folder / 'runs'}"]
    with (folder / "sweep.txt").open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)


def reported(folder, title):
    """The rows of the report's table of that title: {first cell: other cells}, in order."""
    command = [
        sys.executable,
        "-m",
        "shike_jax",
        "report",
        f"--runs={folder / 'runs'}",
        f"--output={folder / 'report'}",
        "--no-evaluate",
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    text = (folder / "report" / "report.md").read_text()
    table = text[text.index(f"### {title}") :].split("\n\n")[1]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len(rows) > 2, table
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


@pytest.mark.slow
def test_table_4_is_interrupted_fails_in_a_row_and_ends_in_the_report(tmp_path):
    # The paper's table 4, top to bottom, with what the row switches on.
    published = [
        ("plain", 50.04, ""),
        ("moe", 54.23, "E"),
        ("moe_dkf", 55.26, "EF"),
        ("moe_dkf_mu", 55.59, "EFM"),
        ("moe_dkf_nt", 55.79, "EFN"),
        ("moe_mu_nt", 54.82, "EMN"),
        ("shike", 56.34, "EFMN"),
    ]
    runs = tmp_path / "runs"
    blocked = runs / "moe_dkf" / "seed0" / "something"  # the third row cannot start
    blocked.parent.mkdir(parents=True)
    blocked.touch()

    sweep = start(tmp_path, "table4")
    while not (runs / "moe" / "seed0" / "metrics.jsonl").exists():
        assert sweep.poll() is None, (tmp_path / "sweep.txt").read_text()
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(600) == 75
    said = (tmp_path / "sweep.txt").read_text()
    assert "moe/seed0: interrupted" in said
    assert "moe_dkf/seed0: started" not in said

    assert start(tmp_path, "table4").wait(3600) == 1
    said = (tmp_path / "sweep.txt").read_text()
    assert "7 runs, 1 finished already" in said
    assert "plain/seed0: started" not in said
    [line] = [line for line in said.splitlines() if "failed" in line]
    assert line.startswith("moe_dkf/seed0: failed with status 2: error: ") and "not empty" in line
    assert sorted(p.parent.parent.name for p in runs.glob("*/*/results.json")) == sorted(
        name for name, _, _ in published if name != "moe_dkf"
    )
    rows = reported(tmp_path, "Table 4")
    assert (rows["MoE + DKF"]["paper"], rows["MoE + DKF"]["top-1"]) == ("55.26", "-")

    blocked.unlink()
    assert start(tmp_path, "table4").wait(3600) == 0
    assert "7 runs, 6 finished already" in (tmp_path / "sweep.txt").read_text()
    rows = reported(tmp_path, "Table 4")
    assert [float(cells["paper"]) for cells in rows.values()] == [top1 for _, top1, _ in published]
    for (name, _, on), cells in zip(published, rows.values(), strict=True):
        results = json.loads((runs / name / "seed0" / "results.json").read_text())
        assert float(cells["top-1"]) == pytest.approx(results["top1"], abs=0.005)
        components = {"E": "MoE", "F": "DKF", "M": "L_mu", "N": "L_nt"}
        assert "".join(letter for letter, key in components.items() if cells[key]) == on
    print("\n" + (tmp_path / "sweep.txt").read_text(), json.dumps(rows, indent=1))


@pytest.mark.slow
def test_table_5_from_one_command_to_the_report(tmp_path):
    published = {
        "A": 54.10,
        "B": 54.75,
        "C": 55.84,
        "AB": 57.39,
        "BC": 58.79,
        "AC": 58.62,
        "ABC": 59.72,
        "ABCA": 59.83,
        "ABCB": 59.90,
        "ABCC": 59.77,
    }
    assert start(tmp_path, "table5", *TINY5).wait(3600) == 0, (tmp_path / "sweep.txt").read_text()
    rows = reported(tmp_path, "Table 5")
    assert {name: float(cells["paper"]) for name, cells in rows.items()} == published
    assert list(rows) == list(published)
    for name, cells in rows.items():
        results = json.loads((tmp_path / "runs" / name / "seed0" / "results.json").read_text())
        assert len(results["experts"]) == len(name)
        assert float(cells["top-1"]) == pytest.approx(results["top1"], abs=0.005)
    print("\n" + (tmp_path / "sweep.txt").read_text())
