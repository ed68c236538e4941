"""A run that continues says when its image files are not those it began with, or are resized by another library."""

import os

import numpy as np
import pytest
from PIL import Image

from shike_jax.config.loading import parse_config
from shike_jax.data import resizing, views
from shike_jax.training import loop
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(path)


def test_replaced_images_are_said_when_a_run_continues(tmp_path, capsys, monkeypatch):
    for part, count in (("train", 4), ("test", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                picture(tmp_path / "photos" / part / name / f"{i}.png", i)
    short = f"root={tmp_path / 'photos'},size=16,batch=4,epochs=1,classifier_epochs=1"
    stage = "stages.representation"
    changes = ["model.backbone=resnet20", "model.width=4", "model.blocks=(1,1,1)", "model.depths=(1,)"]
    changes += ["run=('representation',)", f"{stage}.loss.nt=0.0", f"{stage}.loss.mu=0.0", f"{stage}.max_steps=2"]
    changes += ["train.checkpoint_every_steps=1", "train.tensorboard=False"]
    flags = [f"--config={ROOT}/configs/folder_lt.py:{short}", *(f"--config.{change}" for change in changes)]
    config, workdir = parse_config(flags)[0], tmp_path / "run"
    whole = loop.train(config, workdir)
    assert (workdir / "checkpoints" / "1").exists()

    def continued():
        (workdir / "results.json").unlink()
        capsys.readouterr()
        found, said = loop.train(config, workdir), capsys.readouterr().out
        assert "continuing in stage representation at step 1" in said
        return found, [line for line in said.splitlines() if "image files" in line or "resized" in line]

    assert continued()[1] == []
    folder = tmp_path / "photos" / "train"
    (folder / "bee" / "1.png").write_bytes((folder / "bee" / "1.png").read_bytes() + b"more")
    os.utime(folder / "ant" / "3.png", ns=(0, 10**9))
    os.utime(tmp_path / "photos" / "test" / "ant" / "0.png", ns=(0, 10**9))
    found, [said] = continued()
    assert said == (
        "3 of 12 image files are not as they were when the run began (1 of another size, 2 of the same size and "
        "another time; the first: train/ant/3.png); the split is the same"
    )
    assert found["split"]["hash"] == whole["split"]["hash"]

    assert whole["starts"][0]["resizing"] == resizing.resizer()
    monkeypatch.setattr(views, "resizer", lambda: "another 1.0")
    found, said = continued()
    assert said[-1] == (
        f"training views were resized by {whole['starts'][0]['resizing']} before this start, and by another 1.0 from "
        "here on: values differ by at most one level of 255"
    )
    assert found["starts"][-1]["resizing"] == "another 1.0"
