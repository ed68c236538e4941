"""What is shown while it works: a bar on terminals, a line in half a minute elsewhere, nothing when quiet."""

import io
import json
import math
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax.common import buckets, progress
from shike_jax.config.fields import FIELDS
from shike_jax.errors import UserError
from shike_jax.storage.logs import Progress, RunLog
from shike_jax.training.overview import parameter_table
from shike_jax.training.plan import examples_left, plan_stages
from shike_jax.training.profile import Profile
from tests import events
from tests.conftest import ROOT
from tests.jobs import digits
from tests.storage.object_store import in_place_of_gcsfs

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test moves on itself."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_lines_come_twice_a_minute(clock):
    told, asked = [], []

    def beside():
        asked.append(clock.now)
        return "loss 1.5", 75.0

    with progress.lines("work", 100, told.append) as update:
        for done in range(1, 101):
            clock.now += 1.0
            update(done, beside)
    assert told == [
        "work: 30 of 100, loss 1.5, 0:01:15 left",
        "work: 60 of 100, loss 1.5, 0:01:15 left",
        "work: 90 of 100, loss 1.5, 0:01:15 left",
    ]
    assert len(asked) == 3  # what costs a look at the device is asked for only when it is shown


def test_time_left_follows_the_pace(clock):
    told = []
    with progress.lines("work", 4000, told.append) as update:
        clock.now += 40.0
        update(1000)
    assert told == ["work: 1,000 of 4,000, 0:02:00 left"]


def test_what_is_no_terminal_gets_no_bar():
    stream = io.StringIO()
    assert not progress.is_terminal(stream)
    with progress.meter("work", 3, stream) as update:
        for done in (1, 2, 3):
            update(done)
    assert stream.getvalue() == ""


def test_time_left_of_a_run():
    run = Progress(1000)
    assert math.isnan(run.left_after(100, 10.0))  # most of the first seconds may be warming up
    assert run.left_after(100, 30.0) == 270.0
    rate, left = run.advance(500, 25.0)
    assert rate == 20.0 and math.isnan(left)
    assert run.left_after(100, 35.0) == 400 * 60 / 600
    assert run.advance(100, 35.0) == (100 / 35, 400 * 60 / 600)


def test_a_quiet_log_shows_nothing_but_keeps_its_file(tmp_path, capsys, clock):
    log = RunLog(tmp_path, "quiet", True)
    with log.meter("work", 10) as update:
        clock.now += 60
        update(5)
    with log.compiling("the step"):
        clock.now += 2
    log.close()
    assert capsys.readouterr().out == ""
    assert "compiled the step in 2.0 s" in (tmp_path / "log.txt").read_text()


def test_the_profiler_traces_the_calls_that_make_the_steps_asked_for(tmp_path, monkeypatch):
    """Steps 20 to 24 in calls of 85 steps, in calls of one, and in a run that begins behind them."""
    traced = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: traced.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stop"))
    for first, each, expected in (
        (0, 85, [("start", 0), ("stop", 85)]),
        (0, 1, [("start", 20), ("stop", 25)]),
        (1000, 1, []),
    ):
        profile, seen = Profile("20:5", tmp_path, True), []
        for step in range(first, first + 170, each):
            traced.clear()
            profile.before(step, each)
            seen += [("start", step)] if traced else []
            traced.clear()
            profile.after(step + each, 0)
            seen += [("stop", step + each)] if traced else []
        assert seen == expected


def test_nothing_is_left_at_the_end_of_a_run():
    """489 images in batches of 32: the last batch of each epoch is partial; two stages of 2 and 1 epochs."""
    config = schema.base()
    config.run, stages = ("one", "two"), {"one": 2, "two": 1}
    for name, epochs in stages.items():
        config.stages[name] = schema.stage(epochs=epochs, batch_size=32)
    plans = plan_stages(config, 489)
    assert examples_left(plans, 0, 0) == 3 * 489
    assert examples_left(plans, 0, 17) == 3 * 489 - 489 - 32
    assert examples_left(plans, 1, 16) == 0
    config.stages.two.keep_last = False
    assert examples_left(plan_stages(config, 489), 1, 0) == 480


@pytest.mark.parametrize("text", ["5", "5:0", "a:b", "-1:2", "1:2:3"])
def test_profiles_that_make_no_sense(text):
    with pytest.raises(UserError, match=r"config\.train\.profile=.*expected STEP:COUNT"):
        FIELDS["train.profile"].check("train.profile", text)


def test_parameters_are_counted_by_part():
    params = {
        "trunk": {"conv1": {"kernel": np.zeros((3, 3, 3, 8))}},
        "heads": {"a": {"k": np.zeros(5), "b": np.zeros(2)}},
    }
    trained = {
        "first": {"trunk": {"conv1": {"kernel": True}}, "heads": {"a": {"k": True, "b": False}}},
        "second": {"trunk": {"conv1": {"kernel": False}}, "heads": {"a": {"k": False, "b": True}}},
    }
    assert parameter_table(params, trained) == [
        "parameters of  arrays  parameters  trains in",
        "trunk/conv1         1         216  first",
        "heads/a             2           7  first, second",
        "all                 3         223",
    ]


# --- a whole run ----------------------------------------------------------------------------------------------------


def command(workdir, *more):
    flags = [*digits(2, 1, "model.depths=(1,)", "train.tensorboard=True"), f"--workdir={workdir}", *more]
    return [sys.executable, "-m", "shike_jax", "train", *flags]


def environment():
    return {**os.environ, "JAX_PLATFORMS": "cpu", "TERM": "xterm-256color", "COLUMNS": "80"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run into a file, with a profile; its work directory and what it printed."""
    folder = tmp_path_factory.mktemp("plain")
    done = subprocess.run(
        command(folder / "run", "--config.train.profile=2:3"), cwd=ROOT, env=environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout.decode()


def test_a_file_gets_no_control_characters(plain):
    workdir, said = plain
    for text in (said, (workdir / "log.txt").read_text()):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    lines = said.splitlines()
    begun = lines.index("compiling the training step of representation ...")
    assert re.fullmatch(r"compiled the training step of representation in \d+\.\d s", lines[begun + 1])
    assert any(line.startswith("trunk/stage1 ") and line.endswith(" representation") for line in lines[:begun])


def test_a_profile_is_written(plain):
    workdir, said = plain
    assert f"profile: {workdir / 'profile'}" in said
    assert list((workdir / "profile").rglob("*.xplane.pb"))


def test_tensorboard_has_a_table_of_the_run(plain):
    workdir, _ = plain
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    found = events.read(workdir / "tensorboard")
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    table = plugin_data.HParamsPluginData.FromString(content).session_start_info.hparams
    assert table["seed"].number_value == 0 and table["representation.loss.nt"].number_value == 10
    assert table["model.backbone"].string_value == "resnet20"
    results = json.loads((workdir / "results.json").read_text())
    assert events.last(found, "final/top1") == pytest.approx(results["top1"], rel=1e-6)


@pytest.mark.parametrize("columns", [80, 140])
def test_a_terminal_gets_a_bar_that_fits(columns, tmp_path):
    """On a pseudo-terminal; `progress` alone, so that it takes seconds."""
    script = (
        "import sys, time\nfrom shike_jax.storage.logs import RunLog\nfrom pathlib import Path\n"
        f"log = RunLog(Path({str(tmp_path)!r}), 'info', True)\n"
        "with log.meter('representation 3/180', 1234) as update:\n"
        "    for done in (100, 600, 1200):\n"
        "        update(done, lambda: ('loss 12.3456  1,234 img/s  wait 12 %', 3700.0))\n"
        "        log.line(f'said {done}')\n"
        "        time.sleep(0.3)\n"
    )
    main, other = pty.openpty()
    import fcntl
    import termios

    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    variables = {k: v for k, v in environment().items() if k != "COLUMNS"}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=variables, stdout=other, stderr=other)
    os.close(other)
    seen, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        ready, _, _ = select.select([main], [], [], 1.0)
        try:
            more = os.read(main, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        seen += more
    assert process.wait(10) == 0, seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    bars = [line for line in re.split(r"[\r\n]+", text) if "img/s" in line]
    assert bars and all(len(line) <= columns for line in bars)
    assert any(
        re.search(r"representation 3/180 .*━.* 1,200/1,234 loss 12\.3456  1,234 img/s  wait 12 % 1:01:40", b)
        for b in bars
    )
    assert [f"said {n}" in text for n in (100, 600, 1200)] == [True] * 3
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")  # the cursor is back


def test_records_of_a_run_that_continues_are_those_up_to_its_checkpoint(tmp_path):
    """A kill at step 4 that cut a line, and a checkpoint at step 2: no record is lost, none comes twice."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines) + '{"step": 4, "lo')
    log = RunLog(tmp_path, "quiet", True, tensorboard=False)
    log.continue_after(2)
    for step in (3, 4):
        log.scalars(step, {"loss": 1 / step})
    log.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in found] == [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]


def test_durations_do_not_follow_the_clock_on_the_wall(monkeypatch):
    """The wall clock is set back by an hour while something is timed."""
    from shike_jax.training.setup import Run, new_history

    wall = iter([5000.0, 1400.0])
    monkeypatch.setattr(time, "time", lambda: next(wall, 1400.0))
    history = new_history()
    with Run.timed(SimpleNamespace(history=history), "evaluate"):
        pass
    assert 0 <= history["seconds"]["evaluate"] < 60


def test_a_trace_reaches_a_bucket(monkeypatch):
    store = in_place_of_gcsfs(monkeypatch)

    def trace(folder):
        pathlib.Path(folder).mkdir()
        (pathlib.Path(folder) / "trace").write_text("t")

    monkeypatch.setattr(jax.profiler, "start_trace", trace)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    profile = Profile("0:1", buckets.place("gs://runs/w/profile/process1"), True)
    profile.before(0, 1)
    with profile.step(0):
        pass
    assert profile.after(1, 0)
    assert list(store.objects) == ["runs/w/profile/process1/trace"]
