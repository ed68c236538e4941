"""Broken images in a whole run: named as they are met, counted and named at its end, wherever and whenever met."""

import json

import numpy as np
import pytest
from PIL import Image

from shike_jax.commands import evaluate
from shike_jax.config.loading import parse_config
from shike_jax.training import loop
from tests.conftest import ROOT
from tests.jobs import Job

pytestmark = pytest.mark.usefixtures("quickly_compiled")

BROKEN = ("train/a/3.jpg", "train/b/5.jpg", "test/b/1.jpg")


def photographs(root, train=12, test=4):
    """Noise as JPEG of two classes: a truncated file and a foreign one for training, an empty one for testing."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (24, 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.jpg")
    (root / BROKEN[0]).write_bytes((root / BROKEN[0]).read_bytes()[:-200])
    (root / BROKEN[1]).write_text("<html>404 Not Found</html>")
    (root / BROKEN[2]).write_bytes(b"")


def flags(root, *changes):
    """One epoch of each stage on a tiny network of one expert with one loss term."""
    small = (
        "model.width=4",
        "model.blocks=(1,1,1)",
        "model.depths=(1,)",
        "stages.representation.loss.nt=0.0",
        "stages.representation.loss.mu=0.0",
        "data.bad_image_limit=0.1",
        *changes,
    )
    name = "backbone=resnet20,size=16,batch=8,epochs=1,classifier_epochs=1"
    return [f"--config={ROOT}/configs/folder_lt.py:root={root},{name}", *(f"--config.{one}" for one in small)]


def assert_all_named(found):
    """`results.json` and the evaluation name each broken image once, with its reason."""
    assert found["count"] == len(found["list"])
    assert found["limit"] == 0.1
    reasons = {one["name"]: one["reason"] for one in found["list"]}
    assert len(reasons) == found["count"]
    assert all(one["name"].startswith(one["part"]) for one in found["list"])
    return reasons


def test_a_run_names_broken_images_when_met_and_at_its_end(tmp_path, capsys):
    photographs(tmp_path / "photos")
    config, _ = parse_config(flags(tmp_path / "photos"))
    workdir = tmp_path / "w"
    loop.train(config, workdir)
    printed = capsys.readouterr().out.splitlines()
    for name in BROKEN:  # in both stages, told once
        assert sum(line.startswith(f"image {name} left out: ") for line in printed) == 1, printed
    closing = "unreadable images left out: 3 (test 1, train 2): test/b/1.jpg, train/a/3.jpg, train/b/5.jpg "
    assert printed[-2] == closing + "(all of them in results.json)"
    assert closing in (workdir / "log.txt").read_text()

    results = json.loads((workdir / "results.json").read_text())
    reasons = assert_all_named(results["bad_images"])
    assert sorted(reasons) == sorted(BROKEN)
    assert "truncated" in reasons[BROKEN[0]]
    assert reasons[BROKEN[1]] == "not an image of a known format"
    assert reasons[BROKEN[2]] == "empty file"
    card = (workdir / "card.md").read_text()
    assert "left out because they could not be read: 3, the first test/b/1.jpg; all in results.json" in card

    # Three of the four test images of class b count.
    assert results["per_class"][1] in [pytest.approx(100 * right / 3) for right in range(4)]

    # What was met before the restart is remembered: the last checkpoint lies behind the only epoch of stage one.
    (workdir / "results.json").unlink()
    for name in BROKEN[:2]:
        (tmp_path / "photos" / name).write_bytes((tmp_path / "photos" / "train/a/0.jpg").read_bytes())
    again = loop.train(config, workdir)
    assert "continuing in stage classifier" in capsys.readouterr().out
    assert again["bad_images"] == results["bad_images"]

    evaluate.main([f"--checkpoint={workdir}", "--heads=classifier", f"--output={tmp_path / 'e.json'}"])
    assert "left out: 1\n  test/b/1.jpg: empty file" in capsys.readouterr().out
    data = json.loads((tmp_path / "e.json").read_text())["data"]
    assert data["examples"] == 7
    assert assert_all_named(data["bad_images"]) == {"test/b/1.jpg": "empty file"}


@pytest.mark.slow
def test_two_processes_report_what_either_met(tmp_path):
    """Stage one alone, so that each image is read by one process only."""
    photographs(tmp_path / "photos", train=24)
    for i in range(10, 14):
        (tmp_path / "photos" / "train" / "a" / f"{i}.jpg").write_bytes(b"")
    job = Job(tmp_path / "w", flags(tmp_path / "photos", "run=('representation',)", "data.bad_image_limit=0.2"), 2)
    assert job.wait() == [0, 0], job.output()[-2000:]
    expected = {*BROKEN, *(f"train/a/{i}.jpg" for i in range(10, 14))}
    met = [{line.split()[1] for line in job.output(i).splitlines() if line.startswith("image ")} for i in range(2)]
    assert met[0] | met[1] == expected
    assert met[0] != expected  # the rest has come from the other process
    found = json.loads((tmp_path / "w" / "results.json").read_text())["bad_images"]
    assert {one["name"] for one in found["list"]} == expected
    assert f"unreadable images left out: {len(expected)} (test 1, train 6): " in job.output(0)
