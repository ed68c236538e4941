"""Checkpoints: what is read back is what was written, or an error says so; never something else."""

import errno
import json
import random
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax.common.command import run_main
from shike_jax.config.loading import parse_config
from shike_jax.data import sources
from shike_jax.errors import TryAgain, UserError
from shike_jax.storage import folders, reading
from shike_jax.storage.checkpoints import Checkpoints
from shike_jax.storage.trees import restore_into
from shike_jax.storage.weights import load_weights, remove_unfinished, save_weights
from shike_jax.training.outcome import save_stage_weights
from shike_jax.training.state import TrainState
from tests.jobs import digits

STEPS = (10, 20, 30)


def make_state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"trunk": {"conv1": {"kernel": rng.standard_normal((3, 3, 3, 8)).astype(np.float32)}}}
    params["heads"] = {"kernel": jnp.asarray(rng.standard_normal((8, 5)), jnp.bfloat16)}
    stats = {"trunk": {"bn1": {"mean": rng.standard_normal(8)}}}
    return TrainState(
        np.asarray(step, np.int32), params, stats, {"trace": {"trunk": rng.standard_normal(8), "heads": None}}
    )


def make_meta(step: int) -> dict:
    return {"stage": "representation", "stage_index": 0, "step": step, "history": {"seconds": {"train": step / 7}}}


def assert_is(loaded: tuple, step: int) -> None:
    """The loaded tree and meta are exactly those saved at `step`."""
    tree, meta = loaded
    assert {k: meta[k] for k in make_meta(step)} == make_meta(step)
    state = restore_into(make_state(0), tree, "here")
    want = make_state(step)
    assert int(state.step) == step
    for get in (
        lambda s: s.params["trunk"]["conv1"]["kernel"],
        lambda s: s.params["heads"]["kernel"],
        lambda s: s.batch_stats["trunk"]["bn1"]["mean"],
        lambda s: s.opt_state["trace"]["trunk"],
    ):
        assert get(state).dtype == get(want).dtype
        assert np.array_equal(np.asarray(get(state)), np.asarray(get(want)))
    assert state.opt_state["trace"]["heads"] is None


def test_files_do_not_name_the_place_where_they_were_written(tmp_path):
    place = tmp_path / "home_of_someone"
    save_weights(place / "weights", {"params": {"kernel": np.ones((2, 3), np.float32)}}, make_meta(1))
    rolling = Checkpoints(str(place), keep=1)
    rolling.save(7, make_state(7), make_meta(7))
    rolling.close()
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if place.name.encode() in path.read_bytes()]
    shutil.move(place, tmp_path / "elsewhere")
    tree, _ = load_weights(tmp_path / "elsewhere" / "weights")
    np.testing.assert_array_equal(tree["params"]["kernel"], np.ones((2, 3)))
    assert_is(Checkpoints(str(tmp_path / "elsewhere"), keep=1).restore(pytest.fail), 7)


def test_weights_with_the_path_of_their_machine_still_load(tmp_path, monkeypatch):
    """As they were written up to version 0.1.0."""
    monkeypatch.setattr(folders, "_forget_place", lambda folder: None)
    save_weights(tmp_path / "weights", {"params": {"kernel": np.ones((2, 3), np.float32)}}, make_meta(1))
    assert str(tmp_path) in (tmp_path / "weights" / "commit_success.txt").read_text()
    shutil.move(tmp_path / "weights", tmp_path / "moved")
    np.testing.assert_array_equal(load_weights(tmp_path / "moved")[0]["params"]["kernel"], np.ones((2, 3)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A work directory with three checkpoints."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(str(workdir), keep=3)
    for step in STEPS:
        checkpoints.save(step, make_state(step), make_meta(step))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "w")


def restore(workdir) -> tuple[tuple | None, list[str]]:
    said: list[str] = []
    return Checkpoints(str(workdir), keep=3).restore(said.append), said


def test_newest_is_read_back_exactly(workdir):
    loaded, said = restore(workdir)
    assert_is(loaded, 30)
    assert said == []


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step in STEPS:
        checkpoints.save(step, make_state(step), make_meta(step))
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["20", "30"]
    assert checkpoints.latest().endswith("/30")


def test_nothing_saved_yet(tmp_path):
    assert restore(tmp_path) == (None, [])


# --- damage ---------------------------------------------------------------------------------------------------------


def files_of(folder) -> list:
    """The checkpoint's files; a lost manifest alone is no damage and has a test of its own."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.name != "manifest.json")


def flip(path, rng) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def truncate(path, rng) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path, rng) -> None:
    path.unlink()


def any_file(change):
    return lambda newest, rng: change(rng.choice(files_of(newest)), rng)


def largest_file(change):
    return lambda newest, rng: change(max(files_of(newest), key=lambda p: p.stat().st_size), rng)


def meta_file(change):
    return lambda newest, rng: change(files_of(newest / "meta")[0], rng)


def empty(newest, rng) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


FAULTS = (
    *((f"flip{i}", any_file(flip)) for i in range(5)),
    *((f"truncate{i}", any_file(truncate)) for i in range(4)),
    *((f"remove{i}", any_file(remove)) for i in range(3)),
    ("flip-arrays", largest_file(flip)),
    ("flip-meta", meta_file(flip)),
    ("truncate-arrays", largest_file(truncate)),
    ("remove-arrays", largest_file(remove)),
    ("no-state", lambda newest, rng: shutil.rmtree(newest / "state")),
    ("no-meta", lambda newest, rng: shutil.rmtree(newest / "meta")),
    ("flip-manifest", lambda newest, rng: flip(newest / "manifest.json", rng)),
    ("truncate-manifest", lambda newest, rng: truncate(newest / "manifest.json", rng)),
    ("empty", empty),
    ("gone", lambda newest, rng: shutil.rmtree(newest)),
)


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[name for name, _ in FAULTS])
def test_damaged_newest_falls_back(workdir, name, fault):
    rng = random.Random(name)
    fault(workdir / "checkpoints" / "30", rng)
    loaded, said = restore(workdir)
    assert_is(loaded, 20)
    assert "/30 is damaged" in said[0] or (name == "gone" and "step 30 had been saved" in said[0])
    assert (workdir / "checkpoints" / "damaged-30").exists() == (name != "gone")
    again, _ = restore(workdir)
    assert again[1] == loaded[1]


def test_no_manifest_leaves_the_digest(workdir):
    newest = workdir / "checkpoints" / "30"
    (newest / "manifest.json").unlink()
    assert_is(restore(workdir)[0], 30)  # killed between the last file and the manifest
    shutil.rmtree(newest / "state")
    shutil.copytree(workdir / "checkpoints" / "20" / "state", newest / "state")
    loaded, said = restore(workdir)
    assert_is(loaded, 20)
    assert "do not match their digest" in said[0]


def broken_read(monkeypatch, where, error, times):
    """Makes reading fail a number of times, in `manifest` or inside Orbax; returns the list of what was tried."""
    monkeypatch.setattr(reading, "PAUSES", (0, 0))
    owner, name = {"manifest": (folders, "_file_digest"), "orbax": (folders.ocp.Checkpointer, "restore")}[where]
    sound, tried = getattr(owner, name), []

    def fails(*arguments, **options):
        tried.append(arguments)
        if len(tried) <= times:
            raise error
        return sound(*arguments, **options)

    monkeypatch.setattr(owner, name, fails)
    return tried


def listing(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*")}


EIO = OSError(errno.EIO, "Input/output error")
WRAPPED = ValueError("UNAVAILABLE: Error reading local file [OS error 5: EIO Input/output error]")


@pytest.mark.parametrize(("where", "error"), [("manifest", EIO), ("orbax", EIO), ("orbax", WRAPPED)])
def test_what_fails_once_is_read_again(workdir, monkeypatch, where, error):
    tried = broken_read(monkeypatch, where, error, 2)
    loaded, said = restore(workdir)
    assert_is(loaded, 30)
    assert said == [] and len(tried) > 2


@pytest.mark.parametrize(
    ("where", "error", "status", "words"),
    [
        ("manifest", EIO, 75, "could not be read in 3 tries (Input/output error); nothing was changed"),
        ("orbax", EIO, 75, "could not be read in 3 tries (Input/output error)"),
        ("orbax", WRAPPED, 75, "could not be read in 3 tries (UNAVAILABLE"),
        ("orbax", MemoryError(), 75, "could not be read in 3 tries (MemoryError)"),
        ("manifest", PermissionError(errno.EACCES, "Permission denied"), 2, "Permission denied; expected files that"),
        (
            "orbax",
            ValueError("PERMISSION_DENIED: Error opening"),
            2,
            "PERMISSION_DENIED: Error opening; expected",
        ),
    ],
)
def test_what_cannot_be_read_is_no_damage(workdir, monkeypatch, where, error, status, words):
    if where == "orbax":  # where nothing says that the bytes are good
        (workdir / "checkpoints" / "30" / "manifest.json").unlink()
    before = listing(workdir)
    tried = broken_read(monkeypatch, where, error, 99)
    with pytest.raises(UserError) as stopped:
        restore(workdir)
    assert f"checkpoint {workdir}/checkpoints/30" in str(stopped.value) and words in str(stopped.value)
    assert stopped.value.status == status
    assert len(tried) == (3 if status == 75 else 1)
    assert listing(workdir) == before


def test_a_short_file_without_a_manifest_is_damage(workdir):
    newest = workdir / "checkpoints" / "30"
    (newest / "manifest.json").unlink()
    largest_file(truncate)(newest, random.Random(1))
    loaded, said = restore(workdir)
    assert_is(loaded, 20)
    assert "/30 is damaged" in said[0]


def test_the_exit_status_is_that_of_the_error(capsys):
    def main(argv):
        raise TryAgain("the disk is away")

    with pytest.raises(SystemExit) as stopped:
        run_main(main, [])
    assert stopped.value.code == 75 and capsys.readouterr().err == "error: the disk is away\n"


def test_two_damaged_fall_back_to_the_third(workdir):
    for step in (20, 30):
        largest_file(truncate)(workdir / "checkpoints" / str(step), random.Random(step))
    loaded, said = restore(workdir)
    assert_is(loaded, 10)
    assert len(said) == 3 and "step 30 had been saved" in said[-1]


def test_none_good_stops_every_time(workdir):
    for step in STEPS:
        largest_file(flip)(workdir / "checkpoints" / str(step), random.Random(step))
    for _ in range(2):
        with pytest.raises(UserError, match=r"no good checkpoint is left \(damaged-10, damaged-20, damaged-30\)"):
            restore(workdir)


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/*"])
def test_lost_checkpoints_are_not_a_fresh_start(workdir, part):
    for path in workdir.glob(part):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="step 30 had been saved"):
        restore(workdir)


def test_same_step_damaged_twice(workdir):
    for _ in range(2):
        (workdir / "checkpoints" / "30" / "meta").mkdir(parents=True, exist_ok=True)
        empty(workdir / "checkpoints" / "30", None)
        restore(workdir)
    assert {p.name for p in (workdir / "checkpoints").glob("damaged*")} == {"damaged-30", "damaged-30-2"}


# --- strict restore -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["params"].pop("heads"), "missing: params/heads/kernel"),
        (lambda tree: tree["params"].update(extra=np.zeros(1)), "not expected: params/extra"),
        (
            lambda tree: tree["params"]["heads"].update(kernel=np.zeros((8, 6))),
            r"shape: params/heads/kernel \(8, 6\) instead",
        ),
    ],
)
def test_restore_is_strict(workdir, change, message):
    (tree, _), _ = restore(workdir)
    change(tree)
    with pytest.raises(UserError, match=message):
        restore_into(make_state(0), tree, "here")


# --- weights --------------------------------------------------------------------------------------------------------


def make_variables(seed: int) -> dict:
    return {"params": {"w": np.random.default_rng(seed).standard_normal((4, 4))}, "batch_stats": {"m": np.ones(3)}}


def test_weights_of_the_last_stage_are_loaded(tmp_path):
    for index, stage in enumerate(("representation", "classifier")):
        save_weights(tmp_path / "weights" / stage, make_variables(index), {"stage": stage, "stage_index": index})
    for where, index in ((tmp_path, 1), (tmp_path / "weights" / "representation", 0)):
        variables, meta = load_weights(where)
        assert meta["stage_index"] == index
        assert np.array_equal(variables["params"]["w"], make_variables(index)["params"]["w"])


def test_what_else_lies_beside_the_last_stage_does_not_matter(tmp_path):
    """A file of a desktop, a folder of something else, and an earlier stage whose arrays are damaged."""
    for index, stage in enumerate(("representation", "classifier")):
        save_weights(tmp_path / "weights" / stage, make_variables(index), {"stage_index": index})
    (tmp_path / "weights" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "weights" / "notes").mkdir()
    largest_file(flip)(tmp_path / "weights" / "representation", random.Random(0))
    np.testing.assert_array_equal(load_weights(tmp_path)[0]["params"]["w"], make_variables(1)["params"]["w"])


@pytest.mark.parametrize("part", ["meta", "variables"])
def test_an_earlier_stage_does_not_stand_in_for_a_damaged_last_one(tmp_path, part):
    for index, stage in enumerate(("representation", "classifier")):
        save_weights(tmp_path / "weights" / stage, make_variables(index), {"stage_index": index})
    shutil.rmtree(tmp_path / "weights" / "classifier" / part)
    with pytest.raises(UserError, match="classifier is damaged"):
        load_weights(tmp_path)


def test_weights_of_a_stage_replace_those_of_an_earlier_run(tmp_path):
    """So that weights are those of the results, whatever a removed run has left."""
    config = parse_config(digits())[0]
    stage = SimpleNamespace(name="representation", index=0, settings=config.stages.representation)
    history = {"stages": [{"top1": 50.0}]}
    run = SimpleNamespace(config=config, workdir=tmp_path, source=sources.load(config.data), history=history)
    for seed in (1, 2):
        save_stage_weights(run, stage, make_variables(seed))
        np.testing.assert_array_equal(load_weights(tmp_path)[0]["params"]["w"], make_variables(seed)["params"]["w"])
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["representation"]


def test_weights_beside_results_are_found(tmp_path):
    save_weights(tmp_path / "given" / "weights", make_variables(0), {"stage": "classifier"})
    (tmp_path / "given" / "results.json").write_text("{}")
    assert load_weights(tmp_path / "given")[1] == load_weights(tmp_path / "given" / "weights")[1]


def test_damaged_weights_are_refused(tmp_path):
    save_weights(tmp_path / "w", make_variables(0), {"stage": "representation"})
    largest_file(flip)(tmp_path / "w", random.Random(0))
    with pytest.raises(UserError, match="is damaged"):
        load_weights(tmp_path / "w")


def test_changed_meta_is_refused(tmp_path):
    save_weights(tmp_path / "w", make_variables(0), {"num_classes": 10})
    path = next(p for p in files_of(tmp_path / "w" / "meta") if b"num_classes" in p.read_bytes())
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_classes": 11}))
    with pytest.raises(UserError, match="has changed"):
        load_weights(tmp_path / "w")


def test_unfinished_weights_are_removed(tmp_path):
    save_weights(tmp_path / "whole", make_variables(0), {})
    shutil.copytree(tmp_path / "whole", tmp_path / "half.orbax-checkpoint-tmp")
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.mkdir(), "neither a work directory"),
        (lambda path: (path / "weights").mkdir(parents=True), "no stage has been finished"),
    ],
)
def test_nothing_to_load(tmp_path, make, message):
    make(tmp_path / "w")
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "w")
