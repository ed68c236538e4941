"""Mistakes of newcomers: each is answered by one clear line and a non-zero exit, and leaves nothing behind."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shike_jax.commands import program as cli
from shike_jax.common.command import run_main
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

DIGITS = f"--config={ROOT}/configs/digits_lt.py"
FOLDER = f"--config={ROOT}/configs/folder_lt.py"
CIFAR = f"--config={ROOT}/configs/cifar_lt.py"

# What was typed ({} is a folder prepared below), and words that the answer must hold.
TABLE = {
    "no such command": ("trian", "no command; expected one of configs, config, train, evaluate"),
    "wrong flag": (
        f"train {DIGITS} --wrkdir={{}}/run",
        "unrecognized arguments: --wrkdir",
        "did you mean '--workdir'?",
        "--help",
    ),
    "misspelt --config": ("train --confg=digits_lt --workdir={}/run", "did you mean '--config'? (--confg is unknown)"),
    "misspelt configuration": ("train --config=foldr_lt --workdir={}/run", "did you mean 'folder_lt'?"),
    "misspelt argument": (
        f"train {FOLDER}:rot={{}}/photos --workdir={{}}/run",
        "'rot' is unknown",
        "did you mean 'root'?",
    ),
    "misspelt preset": (
        f"train {DIGITS}:ofical --workdir={{}}/run",
        "config argument 'ofical'",
        "did you mean 'official'?",
    ),
    "no work directory": (f"train {DIGITS}", "--workdir is missing: expected a directory"),
    "no configuration": ("train --workdir={}/run", "--config is missing: expected --config=configs/NAME.py"),
    "wrong path of a configuration": ("train --config=configs/digit.py --workdir={}/run", "no such file configs/digit"),
    "unknown field": (f"train {DIGITS} --workdir={{}}/run --config.sede=1", "--config.sede=1", "no field 'sede'"),
    "value of another type": (f"train {DIGITS} --workdir={{}}/run --config.seed=one", "config.seed", "one"),
    "value out of range": (f"train {DIGITS} --workdir={{}}/run --config.log=loud", "'loud'", "quiet, info, debug"),
    "negative seed": (f"train {DIGITS} --workdir={{}}/run --config.seed=-1", "seed=-1", "from 0 to 4294967295"),
    "negative number of steps": (
        f"train {DIGITS} --workdir={{}}/run --config.train.steps_per_call=-1",
        "train.steps_per_call=-1",
        "at least 0",
    ),
    "image larger than what is resized": (
        f"train {FOLDER}:root={{}}/photos --workdir={{}}/run --config.data.resize=64",
        "data.resize=64",
        "at least data.image_size=96",
    ),
    "augmentation out of range": (
        f"train {FOLDER}:root={{}}/photos --workdir={{}}/run --config.augment.randaugment.prob=50.0",
        "randaugment.prob=50.0",
        "from 0 to 1",
    ),
    "large configuration without a folder": (
        f"train --config={ROOT}/configs/imagenet_lt.py --workdir={{}}/run",
        "train_list is empty",
        "root=FOLDER",
    ),
    "unknown argument of a configuration": (
        f"train {DIGITS}:classes=3 --workdir={{}}/run",
        "'classes'",
        "expected one",
    ),
    "impossible imbalance": (
        f"train {DIGITS}:imbalance_factor=900 --workdir={{}}/run",
        "imbalance_factor=900",
        "at most",
    ),
    "unknown network": (f"train {FOLDER}:root={{}}/photos,backbone=vgg --workdir={{}}/run", "'vgg'", "expected one of"),
    "experts too deep": (
        f"train {DIGITS} --workdir={{}}/run --config.model.depths=(1,7)",
        "depths=(1, 7)",
        "from 1 to 2",
    ),
    "folder that does not exist": (
        f"train {FOLDER}:root={{}}/absent --workdir={{}}/run",
        "config.data.root=",
        "/absent: No such file",
    ),
    "configuration without its function": (
        "train --config={}/no_function.py --workdir={}/run",
        "no_function.py: no function get_config in it",
        "get_config(arguments=None)",
    ),
    "folder without classes": (f"train {FOLDER}:root={{}}/flat --workdir={{}}/run", "no class folder", "CLASS/*.jpg"),
    "one class": (f"train {FOLDER}:root={{}}/one --workdir={{}}/run", "a single class, ant", "at least two"),
    "one image": (
        f"train {FOLDER}:root={{}}/lonely --workdir={{}}/run",
        "train/bee holds no image",
        "expected files ending in .jpg",
    ),
    "no test images": (f"train {FOLDER}:root={{}}/untested --workdir={{}}/run", "test_part='test'", "has train"),
    "exported data absent": (f"train {CIFAR}:file={{}}/absent.npz --workdir={{}}/run", "absent.npz", "No such file"),
    "unwritable work directory": (f"train {DIGITS} --workdir={{}}/notes.txt/run", "can be created"),
    "work directory of another run": (f"train {DIGITS} --workdir={{}}/other", "another configuration: seed differ"),
    "work directory of something else": (f"train {DIGITS} --workdir={{}}/photos", "not empty and not a run"),
    "warm start from nothing": (
        f"train {DIGITS} --workdir={{}}/run --config.init_from={{}}/absent",
        "absent",
        "no such",
    ),
    "prediction without a run": ("predict --checkpoint={}/absent --images={}/photos", "absent: no such folder"),
    "prediction before the first stage ends": (
        "predict --checkpoint={}/other --images={}/photos",
        "neither a work dir",
    ),
    "prediction from a damaged checkpoint": ("predict --checkpoint={}/damaged --images={}/photos", "is damaged"),
    "unknown head": (
        "predict --checkpoint={}/weights --images={}/photos --head=best",
        "head 'best': expected represent",
    ),
    "no such picture": ("predict --checkpoint={}/weights --images={}/absent.jpg", "absent.jpg: no such file or folder"),
    "folder without pictures": ("predict --checkpoint={}/weights --images={}/empty", "holds no image; expected files"),
    "huge image": ("predict --checkpoint={}/weights --images={}/huge.png", "huge.png: ", "pixels"),
    "not a picture": (
        "predict --checkpoint={}/weights --images={}/notes.jpg --output={}/o.csv",
        "not an image of a known",
    ),
    "array with channels first": (
        "predict --checkpoint={}/weights --images={}/nchw.npy",
        "(4, 3, 16, 16)",
        "expected [N",
    ),
    "array of integers": ("predict --checkpoint={}/weights --images={}/int.npy", "int64; expected uint8"),
    "several arrays as one": (
        "predict --checkpoint={}/weights --images={}/several.npy",
        "not a readable .npy file, or damaged (it holds several",
    ),
    "array that is none": ("predict --checkpoint={}/weights --images={}/text.npy", "not a readable .npy"),
    "unknown kind of output": ("predict --checkpoint={}/weights --images={}/photos --output={}/o.json", ".csv or .npz"),
    "batch of none": ("predict --checkpoint={}/weights --images={}/photos --batch_size=0", "--batch_size=0: expected"),
    "export over a filled folder": ("export --checkpoint={}/weights --output={}/photos", "not an empty folder"),
    "export to an unknown format": ("export --checkpoint={}/weights --output={}/o --format=tflite", "'tflite'", "jax"),
    "evaluation of unknown data": ("evaluate --checkpoint={}/weights", "--config"),
    "conversion of an unknown network": (
        "convert --model=vgg --source={}/w.npz --target={}/o",
        "--model=vgg: expected",
    ),
    "weights of another model": ("convert --model=resnet50 --source={}/w.npz --target={}/o", "w.npz", "missing"),
    "checkpoint of another model": (
        "convert --model=resnet50 --source={}/weights --target={}/o.npz --reverse",
        "weights",
    ),
    "inspection without a configuration": ("inspect", "--config is missing"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the table's commands stumble over."""
    folder = tmp_path_factory.mktemp("place")
    checkpoint = tiny.write_checkpoint(folder / "weights")
    damaged = folder / "damaged"
    (damaged / "variables").mkdir(parents=True)
    (damaged / "variables" / "manifest.ocdbt").write_bytes(b"no")
    assert checkpoint.is_dir()
    for names in (
        ("photos", "train/ant"),
        ("photos", "train/bee"),
        ("photos", "test/ant"),
        ("photos", "test/bee"),
        ("flat", "train"),
        ("one", "train/ant"),
        ("one", "test/ant"),
        ("lonely", "train/ant"),
        ("untested", "train/ant"),
        ("untested", "train/bee"),
    ):
        target = folder.joinpath(*names)
        target.mkdir(parents=True)
        Image.new("RGB", (20, 20), "red").save(target / "1.png")
    (folder / "lonely" / "train" / "bee").mkdir()
    (folder / "empty").mkdir()
    (folder / "other" / "checkpoints" / "5").mkdir(parents=True)
    _write_config_of_another_run(folder / "other" / "config.json")
    (folder / "notes.txt").write_text("notes")
    (folder / "notes.jpg").write_text("notes")
    (folder / "text.npy").write_text("notes")
    (folder / "no_function.py").write_text("x = 1\n")
    with (folder / "several.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3), b=np.zeros(3))
    (folder / "huge.png").write_bytes(_huge_png(60000))
    np.save(folder / "nchw.npy", np.zeros((4, 3, 16, 16), np.float32))
    np.save(folder / "int.npy", np.zeros((4, 16, 16, 3), np.int64))
    np.savez(folder / "w.npz", weight=np.zeros(3, np.float32))
    return folder


def _write_config_of_another_run(path):
    from shike_jax.config import to_plain
    from shike_jax.config.loading import parse_config
    from shike_jax.storage.workdir import write_json

    config, _ = parse_config([DIGITS, "--config.seed=5"])
    write_json(path, to_plain(config))


def _huge_png(side: int) -> bytes:
    """Only the header tells the size: a few bytes that would fill the memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def answer(capsys, command: list[str]) -> str:
    """Runs a command that must fail; returns its one line."""
    with pytest.raises(SystemExit) as stopped:
        run_main(cli.main, command)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and len(lines[0]) < 500
    return lines[0]


@pytest.mark.parametrize("mistake", TABLE)
def test_mistake_is_answered_by_one_line(mistake, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    typed, *words = TABLE[mistake]
    before = sorted(place.rglob("*"))
    line = answer(capsys, typed.replace("{}", str(place)).split(" "))
    for word in words:
        assert word in line
    assert sorted(place.rglob("*")) == before


def test_batch_that_the_devices_cannot_share(place, capsys, monkeypatch):
    monkeypatch.setattr("shike_jax.cluster.parallel.find_devices", lambda: [None] * 5)
    line = answer(capsys, ["train", DIGITS, f"--workdir={place}/run"])
    assert "batch_size=32: expected a multiple of the 5 devices" in line
    assert not (place / "run").exists()


def test_platform_that_is_not_there(place, capsys, monkeypatch):
    def none_found():
        raise AssertionError  # what JAX raises for JAX_PLATFORMS=cuda without its plugin

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr("jax.devices", none_found)
    for command in (["train", DIGITS, f"--workdir={place}/run"], ["predict", f"--checkpoint={place}", "--images=x"]):
        line = answer(capsys, command)
        assert "JAX finds no device (JAX_PLATFORMS='cuda')" in line and "unset JAX_PLATFORMS" in line
    assert not (place / "run").exists()


def test_data_set_that_was_never_prepared(place, capsys, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "empty"))
    line = answer(capsys, ["train", CIFAR, f"--workdir={place}/run"])
    assert f"no prepared cifar100 in {place / 'empty'}" in line and "tfds build cifar100" in line
    assert not (place / "run").exists()
