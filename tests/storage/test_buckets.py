"""Runs whose work directory lies in an object store end as local ones do, whatever the store does meanwhile."""

import json
import os
import re
import sys
import threading
import time
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from shike_jax.commands import evaluate, export, predict, program, report
from shike_jax.common import buckets
from shike_jax.common.command import run_main
from shike_jax.config.loading import parse_config
from shike_jax.convert.reader import read_state_dict, write_state_dict
from shike_jax.errors import TryAgain, UserError
from shike_jax.storage import folders, lease, logs, reading, workdir, writers
from shike_jax.storage.checkpoints import Checkpoints
from shike_jax.storage.trees import digest
from shike_jax.storage.weights import load_weights
from shike_jax.training import loop
from tests.jobs import digits
from tests.storage import over_http
from tests.storage.object_store import HttpError, Store, in_place_of_gcsfs, reach_through
from tests.storage.over_http import ClientError
from tests.storage.test_checkpoints import make_state

pytestmark = pytest.mark.usefixtures("quickly_compiled")
FLAGS = digits(2, 1, "train.checkpoint_every_epochs=1", "train.eval_every_epochs=0", "log=quiet")


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty object store; nothing may be written to the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "PAUSES", (0, 0))
    yield in_place_of_gcsfs(monkeypatch)
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def config():
    return parse_config(FLAGS)[0]


@pytest.fixture(scope="module")
def local(config, tmp_path_factory):
    """An undisturbed run in a folder: its results and the digest of its weights."""
    folder = tmp_path_factory.mktemp("local") / "run"
    results = loop.train(config, folder)
    return results, load_weights(folder)[1]["digest"]


def test_a_run_in_a_bucket_ends_as_a_local_one(store, config, local, tmp_path_factory, capsys):
    results, weights = local
    assert loop.train(config, "gs://runs/a")["per_class"] == results["per_class"]
    assert load_weights("gs://runs/a")[1]["digest"] == weights
    assert loop.train(config, "gs://runs/a")["top1"] == results["top1"]  # finished: nothing to do
    names = {key.removeprefix("runs/a/").split("/")[0] for key in store.objects}
    expected = {"config.json", "results.json", "card.md", "log.txt", "metrics.jsonl", "newest_checkpoint.json"}
    assert names == {*expected, "checkpoints", "weights"}  # the lease is given back

    scratch = tmp_path_factory.mktemp("scratch")
    np.save(scratch / "x.npy", np.zeros((2, 16, 16, 3), np.float32))
    evaluate.main(["--checkpoint=gs://runs/a", "--output=gs://runs/a/evaluation.npz"])
    predict.main(["--checkpoint=gs://runs/a", f"--images={scratch / 'x.npy'}", "--output=gs://runs/p.csv"])
    predict.main(["--checkpoint=gs://runs/a", f"--images={scratch / 'x.npy'}", "--output=s3://runs/p.npz"])
    export.main(["--checkpoint=gs://runs/a", "--output=s3://runs/exported"])
    report.main(["--runs", "gs://runs", "--output=gs://runs/report", "--no-evaluate"])
    assert "not shown" not in capsys.readouterr().out  # the evaluation in the bucket was found
    assert store.objects["runs/p.csv"][0].startswith(b"file,class_1") and "runs/p.npz" in store.objects
    assert "runs/exported/function.jax" in store.objects and "runs/report/report.html" in store.objects


def test_a_copy_that_is_cut_off_is_no_checkpoint(store, config, local, monkeypatch):
    """The program ends in the middle of copying its second checkpoint; started again, it ends bit for bit the same."""
    weights = local[1]
    puts = []

    def cut_off(operation, key):
        if operation == "put" and "/checkpoints/" in key:
            puts.append(key)
            if len({key.split("/")[3] for key in puts}) > 1 and key.endswith("manifest.ocdbt"):
                raise HttpError("backendError, 503")

    monkeypatch.setattr(store, "before", staticmethod(cut_off))
    with pytest.raises(TryAgain, match=r"--workdir=gs://runs/a: object store: backendError, 503; nothing is lost"):
        loop.train(config, "gs://runs/a")
    half = puts[-1].split("/")[3]
    assert any(key.startswith(f"runs/a/checkpoints/{half}/") for key in store.objects)
    assert f"runs/a/checkpoints/{half}/{buckets.COMMITTED}" not in store.objects
    monkeypatch.setattr(store, "before", staticmethod(lambda operation, key: None))
    loop.train(config, "gs://runs/a")
    assert load_weights("gs://runs/a")[1]["digest"] == weights
    log = store.objects["runs/a/log.txt"][0].decode()
    assert "continuing in stage representation" in log
    steps = [json.loads(line)["step"] for line in store.objects["runs/a/metrics.jsonl"][0].decode().splitlines()]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)


TIMEOUT = 1.0  # seconds
TROUBLES = [  # operation, object, what becomes of the answer, how often
    ("put", "lease.txt", "lost", 1),
    ("put", "checkpoints/16/state/.*", "lost", 1),
    ("put", "checkpoints/32/.*manifest.ocdbt", "late", 1),  # in the middle of a save
    ("get", "checkpoints/16/state/.*", "half", 2),
    ("get", "checkpoints/16/meta/metadata", "late", 1),
    ("put", "weights/representation/.*", "half", 1),
]
MORE = [  # each of which ends a run
    ("put", "metrics.jsonl", "late", 1),
    ("get", "newest_checkpoint.json", "late", 2),
    ("delete", "checkpoints/32/.*", "late", 1),
]


@pytest.fixture(params=["a stand-in", "gcsfs"])
def server(request, store, monkeypatch):
    """The store over HTTP, through a client that waits for `TIMEOUT` only."""
    with over_http.Server() as server:
        monkeypatch.setenv(over_http.HOST, server.address)
        if request.param == "gcsfs":
            monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            monkeypatch.delitem(sys.modules, "gcsfs")
            gcsfs = pytest.importorskip("gcsfs")
            limit = sys.modules["aiohttp"].ClientTimeout(total=TIMEOUT)
            monkeypatch.setitem(fsspec.config.conf, "gs", {"requests_timeout": limit, "project": "test"})
            gcsfs.GCSFileSystem.clear_instance_cache()
            reach_through(monkeypatch, gcsfs.GCSFileSystem)
        else:
            monkeypatch.setattr(over_http.Client, "timeout", TIMEOUT)
            reach_through(monkeypatch, over_http.Client)
        yield server


@pytest.mark.parametrize("troubles", [TROUBLES, pytest.param(TROUBLES + MORE, marks=pytest.mark.slow)], ids=len)
def test_slow_and_broken_answers_change_nothing(server, config, local, monkeypatch, troubles):
    """Answers that come late, too late, not at all or in part: at most the same command has to be started again."""
    left, asked = [often for *_, often in troubles], []

    def slow(operation, key):
        asked.append(key)
        time.sleep(0.05 if len(asked) % 20 == 0 else 0)

    def answer(operation, key):
        for i, (troubled, name, what, _) in enumerate(troubles):
            if left[i] and operation == troubled and re.fullmatch(f"runs/a/{name}", key):
                left[i] -= 1
                time.sleep(1.2 * TIMEOUT if what == "late" else 0)
                return {"late": None, "lost": 0, "half": 0.5}[what]

    monkeypatch.setattr(Store, "before", staticmethod(slow))
    monkeypatch.setattr(server, "after", answer)
    results, ends = None, []
    while results is None:
        try:
            results = loop.train(config, "gs://runs/a")
        except TryAgain as error:
            ends.append(str(error))
            assert len(ends) < 10, ends
    assert not any(left) and ends, left  # all of it has happened
    assert results["per_class"] == local[0]["per_class"]
    assert load_weights("gs://runs/a")[1]["digest"] == local[1]
    assert not [key for key in Store.objects if "damaged" in key]
    assert "continuing in stage representation at step 16" in Store.objects["runs/a/log.txt"][0].decode()


def saved(place="gs://runs/w", **settings):
    rolling = Checkpoints(place, keep=2, **settings)
    for step in (10, 20, 30, 40):
        rolling.save(step, make_state(step), {"step": step})
    rolling.close()
    return rolling


def test_the_newest_and_the_chosen_stay(store):
    saved(every=20, always=[10])
    assert {key.split("/")[3] for key in store.objects if "/checkpoints/" in key} == {"10", "20", "30", "40"}
    saved("gs://runs/two")
    assert {key.split("/")[3] for key in store.objects if key.startswith("runs/two/checkpoints")} == {"30", "40"}


@pytest.mark.parametrize("change", ["missing", "short", "other"])
def test_damage_is_set_aside_and_nothing_else(store, change):
    rolling = saved()
    arrays = [key for key in store.objects if key.startswith("runs/w/checkpoints/40/state/")]
    key = max(arrays, key=lambda key: len(store.objects[key][0]))
    data, *versions = store.objects[key]
    if change == "missing":
        del store.objects[key]
    else:
        store.objects[key] = (data[:-1] if change == "short" else bytes([data[0] ^ 1]) + data[1:], *versions)
    said = []
    tree, meta = Checkpoints("gs://runs/w", keep=2).restore(said.append)
    assert meta["step"] == 30 and "gs://runs/w/checkpoints/40 is damaged" in said[0]
    assert said[0].endswith("set aside as damaged-40")
    assert f"runs/w/checkpoints/damaged-40/{folders.MANIFEST}" in store.objects
    assert rolling.latest() == "gs://runs/w/checkpoints/30"
    assert digest(tree) == meta["digest"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (HttpError("backendError, 503"), 75, "could not be read in 3 tries"),
        (OSError("Forbidden: gs://runs/w/checkpoints/40"), 2, "expected files that this user may read"),
        (HttpError("Anonymous caller does not have storage.objects.get access, 401"), 2, "Anonymous caller"),
    ],
)
def test_a_store_that_does_not_give_is_no_damage(store, monkeypatch, error, status, words):
    saved()
    before = dict(store.objects)

    def refuse(operation, key):
        if operation == "get" and "/checkpoints/40/state" in key:
            raise error

    monkeypatch.setattr(store, "before", staticmethod(refuse))
    with pytest.raises(UserError, match=words) as stopped:
        Checkpoints("gs://runs/w", keep=2).restore(pytest.fail)
    assert stopped.value.status == status and store.objects == before


def test_what_fails_twice_is_read_at_the_third_try(store, monkeypatch):
    saved()
    tries = []

    def twice(operation, key):
        if operation == "get" and key.endswith("/40/meta/metadata"):
            tries.append(key)
            if len(tries) < 3:
                raise HttpError("backendError, 503")

    monkeypatch.setattr(store, "before", staticmethod(twice))
    assert Checkpoints("gs://runs/w", keep=2).restore(pytest.fail)[1]["step"] == 40


# --- one job for each work directory --------------------------------------------------------------------------------


def test_a_second_job_waits_and_gives_up(store):
    with workdir.claimed(buckets.place("gs://runs/w")):
        with (
            pytest.raises(UserError, match=r"gs://runs/w: in use by another process, still after 1 s"),
            workdir.claimed(buckets.place("gs://runs/w"), patience=1),
        ):
            pass
        assert f"runs/w/{lease.NAME}" in store.objects
    assert not store.objects


def test_a_lease_that_nobody_renews_is_taken_over(store, monkeypatch):
    store().pipe_file("gs://runs/w/lease.txt", b"a job that was killed")
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    with workdir.claimed(buckets.place("gs://runs/w"), patience=30):
        assert store.objects["runs/w/lease.txt"][0] != b"a job that was killed"


def test_a_lease_that_is_renewed_stays(store, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    with workdir.claimed(buckets.place("gs://runs/w")):
        with pytest.raises(UserError, match="in use"), workdir.claimed(buckets.place("gs://runs/w"), patience=3):
            pass
        assert store.objects["runs/w/lease.txt"][2] > 5


def test_a_job_whose_lease_was_taken_over_ends(store, monkeypatch, capfd):
    ended = threading.Event()
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease.os, "_exit", lambda status: (status == TryAgain.status and ended.set()) or time.sleep(1))
    own = lease.Lease(buckets.place("gs://runs/w"))
    assert own.take() and not lease.Lease(buckets.place("gs://runs/w")).take()
    store().pipe_file("gs://runs/w/lease.txt", b"another job")  # another generation
    assert ended.wait(10)
    assert "another job has taken gs://runs/w over" in capfd.readouterr().err
    own.release()  # its thread would end the tests' process once `_exit` is the real one again


# --- logs, places, errors -------------------------------------------------------------------------------------------


def test_logs_reach_the_bucket_while_they_grow(store, monkeypatch):
    monkeypatch.setattr(logs, "MIRROR_SECONDS", 0.1)
    store().pipe_file("gs://runs/w/log.txt", b"of the first start\n")
    own = logs.Mirror(buckets.place("gs://runs/w"), ("log.txt",))
    with (own.folder / "log.txt").open("a", buffering=1) as file:
        file.write("of the second\n")
        until = time.monotonic() + 10
        while store.objects["runs/w/log.txt"][0] != b"of the first start\nof the second\n":
            assert time.monotonic() < until
            time.sleep(0.05)
    own.close()
    assert not own.folder.exists()


def test_a_restart_continues_the_runs_of_other_programs(store, monkeypatch):
    """The second start finds what the first one's loggers were known by, and the run's own name."""
    begun, files = [], {"wandb.id": b"1a", "mlflow.id": b"2b", "mlflow.db": b"SQLite format 3"}

    def start(folder, name):
        begun.append((name, {path.name: path.read_bytes() for path in folder.iterdir() if path.name in files}))
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setitem(writers.LOGGERS, "wandb", start)
    for _ in range(2):
        logs.RunLog(buckets.place("gs://runs/w"), "quiet", True, tensorboard=False, loggers=("wandb",)).close()
    assert begun == [("w", {}), ("w", files)]


@pytest.mark.parametrize(
    "url", ["gcs://runs/a", "gs:/runs/a", "gs://", "hdfs://runs/a", "https://runs/a", "GS://runs/a"]
)
def test_a_url_that_is_not_understood_is_refused(config, url):
    with pytest.raises(UserError, match=r"not understood; expected a path, gs://BUCKET/NAME or s3://BUCKET/NAME"):
        loop.train(config, url)


@pytest.mark.parametrize(
    "command",
    [
        ["pack", "--config=digits_lt", "--output=gs://runs/x.npz"],
        ["compile", "--config=digits_lt", "--topology=gpu:h100", "--json=gs://runs/x.json"],
        ["inspect", "--config=digits_lt", "--figure=gs://runs/x.png"],
        ["report", "--runs=gs://runs", "--output=x", "--reference=gs://runs/x.csv"],
    ],
    ids=lambda command: command[0],
)
def test_what_takes_local_files_only_says_so(command):
    with pytest.raises(UserError, match=r"gs:/.*: expected a path of this machine, not a URL"):
        program.main(command)


def test_pytorch_files_go_to_buckets_and_come_back(tmp_path_factory):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_state_dict("gs://runs/x.npz", arrays)
    np.testing.assert_array_equal(read_state_dict("gs://runs/x.npz")["a.weight"], arrays["a.weight"])
    with pytest.raises(UserError, match="exists already"):
        write_state_dict("gs://runs/x.npz", arrays)


def test_s3_holds_no_run(config):
    with pytest.raises(UserError, match="Orbax saves no checkpoints in S3"):
        loop.train(config, "s3://runs/a")


def test_a_missing_bucket_is_named(config):
    with pytest.raises(UserError, match="gs://nowhere/a: no such bucket"):
        loop.train(config, "gs://nowhere/a")


def test_errors_of_a_store_end_a_command_with_one_line(capsys):
    def main(argv):
        raise HttpError("backendError, 503")

    with pytest.raises(SystemExit) as stopped:
        run_main(main, [])
    assert stopped.value.code == 75 and capsys.readouterr().err.startswith("error: object store: backendError, 503;")


def test_errors_of_other_servers_are_no_object_store_s(store, monkeypatch):
    """Libraries for HTTP speak to stores, and to a server of MLflow that is down."""
    broken = ClientError("Connection refused")
    assert buckets.trouble(raised(broken)) is None
    assert buckets.trouble(raised(ClientError("POST https://storage.googleapis.com/upload: 503"))).status == 75

    def refuse(operation, key):
        raise broken

    monkeypatch.setattr(store, "before", staticmethod(refuse))
    with pytest.raises(ClientError) as caught:
        buckets.place("gs://runs/a").read_bytes()
    assert buckets.trouble(caught.value).status == 75


def raised(error):
    try:
        raise error
    except type(error) as found:
        return found


def test_the_package_for_buckets_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://runs/a: gcsfs is needed and not installed; install the extra 'gcs'"):
        buckets.place("gs://runs/a")
