"""Mirror images: logits are the means of two views, in prediction, evaluation and exports; plain scores stay plain."""

import json

import numpy as np
import pytest
from PIL import Image

from shike_jax.commands import evaluate, export, predict
from shike_jax.config.loading import parse_config
from shike_jax.data import sources
from shike_jax.data.images import center_crop
from shike_jax.errors import UserError
from shike_jax.evaluation.classifier import load
from tests import tiny
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("mirror") / "weights")


def pixels():
    return np.random.default_rng(1).integers(0, 256, (5, tiny.SIZE, tiny.SIZE, 3), np.uint8)


def means_of_two_views(checkpoint):
    plain, images = load(checkpoint), pixels()
    return (plain(images) + plain(np.ascontiguousarray(images[:, :, ::-1]))) / 2


def test_a_classifier_averages_the_logits_of_both_views(checkpoint):
    found = load(checkpoint, mirror=True)(pixels())
    np.testing.assert_allclose(found, means_of_two_views(checkpoint), rtol=1e-5, atol=1e-4)
    assert np.abs(found - load(checkpoint)(pixels())).max() > 1e-2  # the views differ


def test_predict_and_export_take_it(checkpoint, tmp_path):
    np.save(tmp_path / "x.npy", pixels())
    flags = [f"--checkpoint={checkpoint}", "--mirror"]
    predict.main([*flags, f"--images={tmp_path / 'x.npy'}", f"--output={tmp_path / 'p.npz'}"])
    expected = means_of_two_views(checkpoint)
    np.testing.assert_allclose(np.load(tmp_path / "p.npz")["logits"], expected, rtol=1e-5, atol=1e-4)
    export.main([*flags, f"--output={tmp_path / 'exported'}"])
    assert json.loads((tmp_path / "exported" / "model.json").read_text())["mirror"] is True
    again = export.read_export(tmp_path / "exported")  # what --again makes its function from
    np.testing.assert_allclose(again(pixels()), expected, rtol=1e-5, atol=1e-4)


def test_evaluate_reports_both_and_leaves_the_plain_scores_alone(checkpoint, tmp_path, capsys):
    """Against the mean logits of the same images, through the classifier itself."""
    draw = np.random.default_rng(3)
    for part in ("train", "test"):
        for name in tiny.CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(8):
                picture = Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8))
                picture.save(tmp_path / part / name / f"{i}.png")
    config = f"{ROOT}/configs/folder_lt.py:root={tmp_path},size=16"
    flags = [f"--checkpoint={checkpoint}", f"--config={config}", "--heads=classifier"]
    found = {}
    for name in ("True", "False"):
        evaluate.main([*flags, f"--config.eval.mirror={name}", f"--output={tmp_path / name}.json"])
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["heads"]["classifier"]
    assert "with mirror images" in capsys.readouterr().out
    mirrored = found["True"].pop("mirrored")
    assert found["True"] == found["False"]
    source = sources.load(parse_config([f"--config={config}"])[0].data)
    images = np.stack([center_crop(source.read("test", [i])[0], 16, tiny.RESIZE) for i in range(24)])
    one, labels = load(checkpoint), source.split.parts["test"].labels
    logits = (one(images) + one(np.ascontiguousarray(images[:, :, ::-1]))).mean(0)
    assert mirrored["top1"] == pytest.approx(100 * np.mean(logits.argmax(-1) == labels), abs=1e-3)


def test_a_network_that_never_saw_mirror_images_refuses(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "weights", config={"augment": {"flip": False}})
    with pytest.raises(UserError, match="trained without them"):
        load(folder, mirror=True)
