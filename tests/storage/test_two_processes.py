"""Two processes whose work directory lies in an object store, one of them killed in the middle of a save."""

import json
import signal
import threading

import pytest

from shike_jax.common import buckets
from shike_jax.storage.weights import load_weights
from tests.jobs import Job, digits
from tests.storage import over_http
from tests.storage.object_store import HttpError, Store, in_place_of_gcsfs

pytestmark = pytest.mark.usefixtures("quickly_compiled")
# One expert and one loss compile in a fraction of the time.
FLAGS = digits(
    2,
    1,
    "model.depths=(1,)",
    "stages.representation.loss.nt=0.0",
    "stages.representation.loss.mu=0.0",
    "train.checkpoint_every_steps=8",
    "train.log_every_steps=1",
    "train.eval_every_epochs=0",
    "train.peer_timeout=20",  # what waits for a store notices by it that another process is gone
)
ROOT = "runs/w/checkpoints"
FIRST, SECOND = 8, 16  # steps that are saved
PATIENCE = 300  # seconds, for a machine that is busy


@pytest.fixture
def server(monkeypatch):
    """An empty store that other processes reach; in this one gs:// is its memory."""
    in_place_of_gcsfs(monkeypatch)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would look for Google's own machines
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    with over_http.Server() as server:
        monkeypatch.setenv(over_http.HOST, server.address)
        yield server


def start(folder):
    return Job(folder / "w", FLAGS, processes=2, url="gs://runs/w", module="tests.storage.over_http")


def saved():
    """Step to the objects of its folder."""
    steps = {}
    for key in list(Store.objects):
        if key.startswith(f"{ROOT}/"):
            steps.setdefault(int(key.split("/")[3]), []).append(key)
    return steps


def complete(step):
    return f"{ROOT}/{step}/{buckets.COMMITTED}" in Store.objects


def results(text):
    """results.json but for what a clock says and how often the run was started."""
    return {name: value for name, value in json.loads(text).items() if name not in ("seconds", "starts")}


def steps(text):
    """What metrics.jsonl says of each step: that of an epoch is of its rest where a run went on in its midst."""
    return [row for row in map(json.loads, text.splitlines()) if "epoch_loss" not in row]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, quickly_compiled):
    """Two processes in a folder, to their end."""
    job = Job(tmp_path_factory.mktemp("local") / "w", FLAGS, processes=2)
    assert job.wait(PATIENCE) == [0, 0], job.output()[-2000:]
    return job.workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_in_the_middle_of_a_save_changes_nothing(server, undisturbed, monkeypatch, tmp_path, victim):
    """The second save is held back once three of its objects lie in the bucket; then SIGKILL.

    Both started again by the same command end bit for bit as two processes in a folder that nobody has disturbed.
    """
    half, released = threading.Event(), threading.Event()

    def hold(operation, key):
        if operation == "put" and key.startswith(f"{ROOT}/{SECOND}/") and len(saved().get(SECOND, ())) == 3:
            half.set()
            released.wait(PATIENCE)
            raise HttpError("nobody waits for the answer any more")

    monkeypatch.setattr(Store, "before", staticmethod(hold))
    job = start(tmp_path)
    assert half.wait(PATIENCE), job.output()[-2000:]
    job.processes[victim].kill()
    statuses = job.wait(PATIENCE)
    released.set()
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 76, job.output(1 - victim)[-2000:]
    assert len(saved()[SECOND]) == 3 and not complete(SECOND)  # half of a save lies there,
    assert [step for step in saved() if complete(step)] == [FIRST]  # and a whole one
    assert "runs/w/lease.txt" in Store.objects  # that nobody has given back

    monkeypatch.setattr(Store, "before", staticmethod(lambda operation, key: None))
    job = start(tmp_path)
    assert job.wait(PATIENCE) == [0, 0], job.output()[-2000:]
    said = job.output()
    assert "in use by another process: waiting for its end" in said and "runs/w/lease.txt" not in Store.objects
    assert f"continuing in stage representation at step {FIRST}" in said
    assert not [key for key in Store.objects if "damaged" in key]
    assert all(complete(step) for step in saved())

    for stage in ("representation", "classifier"):
        one, other = (load_weights(f"{place}/weights/{stage}")[1] for place in (undisturbed, "gs://runs/w"))
        assert one["digest"] == other["digest"], stage
    for name, part in (("results.json", results), ("metrics.jsonl", steps)):
        one, other = (undisturbed / name).read_text(), Store.objects[f"runs/w/{name}"][0].decode()
        assert part(one) == part(other) and part(one), name
    assert len(steps(one)) == 48
