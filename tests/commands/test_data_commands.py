"""`inspect` and `pack` as a user runs them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shike_jax.commands import inspect
from shike_jax.commands import pack as export
from shike_jax.data.splits import Part, Split
from shike_jax.errors import UserError
from tests.conftest import ROOT


def run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "shike_jax", command, *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_inspect_a_folder(shared, tmp_path, capsys, monkeypatch):
    out, figure = tmp_path / "split.json", tmp_path / "split.png"
    config = f"configs/folder_lt.py:root={shared / 'data' / 'caltech101_lt'}"
    monkeypatch.chdir(ROOT)
    inspect.main([f"--config={config}", f"--json={out}", f"--figure={figure}", "--config.augment.policy=none"])
    found = json.loads(out.read_text())
    sizes = {name: found[name] for name in ("train_size", "test_size", "num_classes", "many", "medium", "few")}
    assert sizes == {"train_size": 3876, "test_size": 1000, "num_classes": 100, "many": 8, "medium": 42, "few": 50}
    assert (sum(found["class_counts"]), max(found["class_counts"]), min(found["class_counts"])) == (3876, 200, 2)
    assert found["hash"] in capsys.readouterr().out
    with Image.open(figure) as drawn:
        assert min(drawn.size) > 500
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 1000  # photographs, not an empty frame


def counted(*counts):
    names = tuple(f"{'very ' * 8}rare" if n == 1 else f"of {n}" for n in counts)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    part = Part(np.array([str(i) for i in range(len(labels))]), labels)
    return Split("made up", "", 0, names, {"train": part})


def test_bars_name_single_classes_and_rank_groups():
    bars = [line.split() for line in inspect.histogram(counted(1, 50, 25))]
    assert bars[1] == ["of", "50", "50", "#" * 50] and bars[2] == ["of", "25", "25", "#" * 25]
    assert bars[3] == ["very"] * 5 + ["ve...", "1", "#"]
    bars = [line.split() for line in inspect.histogram(counted(*range(40, 0, -1)))]
    assert [bar[:2] for bar in bars[1:]] == [[f"{i + 1}-{i + 4}", f"{38.5 - i:,.0f}"] for i in range(0, 40, 4)]


@pytest.mark.parametrize("name", ["x.jpg", "x.pngg", "x"])
def test_a_figure_of_another_kind_is_refused_before_the_data_are_read(name, monkeypatch):
    monkeypatch.setattr(inspect.sources, "load", lambda data: pytest.fail("read"))
    with pytest.raises(UserError, match=rf"--figure={name}: expected a name ending in \.png, \.pdf, \.svg"):
        inspect.main(["--config=digits_lt", f"--figure={name}"])


def test_inspect_makes_folders_and_writes_wholly_or_not_at_all(tmp_path, monkeypatch):
    files = tmp_path / "new" / "split.json", tmp_path / "new" / "split.svg"
    arguments = [
        "--config=digits_lt",
        *(f"--{name}={file}" for name, file in zip(("json", "figure"), files, strict=True)),
    ]
    inspect.main(arguments)
    assert json.loads(files[0].read_text())["num_classes"] == 10 and "<svg" in files[1].read_text()[:500]

    def torn(source, config, path):
        path.write_text("<sv")
        raise OSError(28, "No space left on device")

    before = files[1].read_bytes()
    monkeypatch.setattr(inspect, "draw", torn)
    with pytest.raises(UserError, match="No space left"):
        inspect.main(arguments)
    assert files[1].read_bytes() == before and len(list(files[1].parent.iterdir())) == 2


def test_inspect_checks_every_image(tmp_path, capsys, monkeypatch):
    for name in ("train/a/1.png", "train/a/2.png", "test/a/3.png", "train/b/4.png", "test/b/5.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 80), "red").save(path)
    (tmp_path / "train/a/2.png").write_bytes(b"GIF89a")
    monkeypatch.chdir(ROOT)
    arguments = [f"--config=configs/folder_lt.py:root={tmp_path}", "--check"]
    inspect.main([*arguments, "--config.data.bad_image_limit=0.5"])
    printed = capsys.readouterr().out
    assert "left out: 1\n  train/a/2.png: " in printed
    with pytest.raises(UserError, match="1 of 3 images of part train cannot be read"):
        inspect.main([*arguments, "--config.data.bad_image_limit=0.0"])


def test_export_then_inspect_gives_the_same_split(tmp_path):
    path = tmp_path / "digits.npz"
    first = run("pack", "--config=configs/digits_lt.py", f"--output={path}")
    assert first.returncode == 0, first.stderr
    arrays = ["--config.data.source=arrays", f"--config.data.root={path}"]
    second = run("inspect", "--config=configs/digits_lt.py", *arrays)
    assert second.stdout.split()[-1] == first.stdout.split()[-1]
    again = run("pack", "--config=configs/digits_lt.py", f"--output={path}")
    assert again.returncode == 2
    assert again.stderr == f"error: output {path} exists already; remove it or choose another name\n"


def test_a_folder_cannot_be_exported(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = f"--config=configs/folder_lt.py:root={shared / 'data' / 'caltech101_lt'}"
    with pytest.raises(UserError, match="only small-image splits"):
        export.main([config, f"--output={tmp_path / 'x.npz'}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inspect", "pack"])
def test_help_and_mistakes(command):
    assert len(run(command, "--help").stdout.splitlines()) > 5
    result = run(command, *(["--output=x.npz"] if command == "pack" else []))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: --config is missing")


def test_class_counts_are_drawn():
    """Twelve classes in four rows of three: means 110, 40, 10 and 2 of at most 120 images."""
    lines = inspect.histogram(counted(120, 110, 100, 50, 40, 30, 12, 10, 8, 3, 2, 1), rows=4, width=60)
    assert [line.split() for line in lines[1:]] == [
        ["1-3", "110", "#" * 55],
        ["4-6", "40", "#" * 20],
        ["7-9", "10", "#" * 5],
        ["10-12", "2", "#"],
    ]
