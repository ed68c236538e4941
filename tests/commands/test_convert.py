"""`python -m shike_jax convert` as a user sees it: files in and out, one line on an error and nothing left behind."""

import pickle
import shutil

import numpy as np
import pytest

from shike_jax.commands.convert import main
from shike_jax.common.command import run_main
from shike_jax.convert.names import MODELS
from shike_jax.convert.reader import read_state_dict, write_state_dict
from shike_jax.models import build_model
from shike_jax.storage.weights import load_weights
from tests.convert.weights import fill, shapes_of

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SHIKE = "shike_resnet32_cifar"


def run(capsys, **flags):
    """Exit status and what was printed to stdout and stderr."""
    argv = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    with pytest.raises(SystemExit) as exit_:
        run_main(main, argv)
    return exit_.value.code or 0, *capsys.readouterr()


@pytest.fixture(scope="module")
def shike_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "shike.npz"
    np.savez(path, **fill(shapes_of(SHIKE, 5), seed=7))
    return path


# The largest takes as long as all others together; what is particular to it, its names, is in test_names.py.
@pytest.mark.parametrize("name", [pytest.param(m, marks=pytest.mark.slow) if m == "resnet152" else m for m in MODELS])
def test_there_and_back_bit_for_bit(name, tmp_path, capsys):
    state = fill(shapes_of(name, 3), seed=8)
    source, target, back = tmp_path / "w.safetensors", tmp_path / "new" / "ckpt", tmp_path / "back.safetensors"
    write_state_dict(source, {f"module.{key}": array for key, array in state.items()})
    code, printed, errors = run(capsys, model=name, source=source, target=target)
    assert (code, errors) == (0, "")
    assert f"{len(state)} tensors" in printed
    assert run(capsys, model=name, source=target, target=back, reverse=True)[0] == 0
    read = read_state_dict(back)
    assert sorted(read) == sorted(state)
    for key, array in state.items():
        assert (read[key].dtype, read[key].tobytes()) == (array.dtype, array.tobytes())
    assert sorted(path.name for path in target.parent.iterdir()) == ["ckpt"]


def test_the_checkpoint_tells_how_to_rebuild_the_network(shike_file, tmp_path, capsys):
    target = tmp_path / "ckpt"
    target.mkdir()  # an empty folder is a fine target
    assert run(capsys, model=SHIKE, source=shike_file, target=target, num_classes=5)[0] == 0
    variables, meta = load_weights(target)
    assert build_model(meta["model"], meta["num_classes"]).depths == (1, 2, 1)
    assert (meta["num_classes"], meta["source"], meta["image_size"]) == (5, "shike.npz", 32)
    assert tuple(meta["mean"]) == (0.4914, 0.4822, 0.4465)
    assert tuple(meta["std"]) == (0.2023, 0.1994, 0.2010)
    assert meta["class_names"] is None
    with np.load(shike_file) as state:
        kernel = variables["params"]["expert1"]["align"]["conv0"]["kernel"]
        np.testing.assert_array_equal(
            kernel, state["shallow_exps.1.convs.StridedConv0.conv.0.weight"].transpose(2, 3, 1, 0)
        )


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def without(name):
    def change(path):
        with np.load(path) as file:
            state = {key: array for key, array in file.items() if key != name}
        np.savez(path, **state)

    return change


def changed(name, array):
    def change(path):
        with np.load(path) as file:
            state = dict(file.items())
        np.savez(path, **state | {name: array})

    return change


class Forbidden:
    def __reduce__(self):
        return print, ("called",)


def forbidden_pickle(path):
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"state_dict": Forbidden()}, [])
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


@pytest.mark.parametrize(
    ("suffix", "change", "flags", "named"),
    [
        ("npz", truncated, {}, "w.npz: not a readable .npz"),
        ("npz", without("layer2.3.bn2.running_var"), {}, "missing: layer2.3.bn2.running_var"),
        ("npz", changed("surplus", np.zeros(2, np.float32)), {}, "not expected: surplus"),
        ("npz", changed("bn1.bias", np.zeros(2, np.float32)), {}, "wrong shape: bn1.bias (2,) instead of (16,)"),
        ("pth.tar", forbidden_pickle, {}, "asks for builtins.print"),
        ("npz", lambda path: None, {"num_classes": 6}, "(64, 5) instead of (64, 6)"),
        ("npz", lambda path: None, {"num_classes": -1}, "--num_classes=-1: expected a positive number"),
        ("npz", lambda path: None, {"model": "resnet50"}, "missing: the matrix fc.weight"),
        ("npz", lambda path: None, {"model": "vgg16"}, "--model=vgg16: expected one of"),
        ("npz", lambda path: path.unlink(), {}, "w.npz: no such file"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(suffix, change, flags, named, shike_file, tmp_path, capsys):
    source, target = tmp_path / f"w.{suffix}", tmp_path / "ckpt"
    shutil.copy(shike_file, source)
    change(source)
    code, printed, errors = run(capsys, **{"model": SHIKE, "source": source, "target": target} | flags)
    assert code == 2
    assert printed == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert named in errors
    assert [path.name for path in tmp_path.iterdir() if path != source] == []


def test_targets_with_content_are_left_alone(shike_file, tmp_path, capsys):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "mine").write_text("mine")
    code, _, errors = run(capsys, model=SHIKE, source=shike_file, target=tmp_path / "ckpt")
    assert (code, errors.count("\n")) == (2, 1)
    assert "not an empty folder" in errors
    assert (tmp_path / "ckpt" / "mine").read_text() == "mine"
    assert run(capsys, model=SHIKE, source=shike_file, target=tmp_path / "other")[0] == 0
    code, _, errors = run(capsys, model=SHIKE, source=tmp_path / "other", target=shike_file, reverse=True)
    assert code == 2
    assert "exists already" in errors


def test_a_failure_while_writing_leaves_no_target(shike_file, tmp_path, capsys, monkeypatch):
    def fails(directory, variables, meta):
        directory.mkdir()
        (directory / "part").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("shike_jax.convert.checkpoint.save_weights", fails)
    code, _, errors = run(capsys, model=SHIKE, source=shike_file, target=tmp_path / "ckpt")
    assert code == 2
    assert "disk full" in errors
    assert list(tmp_path.iterdir()) == []


def test_reverse_needs_a_checkpoint_and_a_known_head(tmp_path, capsys):
    flags = {"model": SHIKE, "source": tmp_path / "absent", "target": tmp_path / "w.npz", "reverse": True}
    code, _, errors = run(capsys, **flags)
    assert (code, errors.count("\n")) == (2, 1)
    assert "absent: no such folder" in errors
    code, _, errors = run(capsys, **flags, head="best")
    assert "--head=best: expected representation or classifier" in errors
