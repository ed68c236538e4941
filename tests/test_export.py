"""The exported function against prediction, in a process that cannot import this package."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shike_jax import export, predict
from shike_jax.data import images
from shike_jax.data.images import center_crop
from shike_jax.errors import UserError
from shike_jax.serving import load_exported as exported
from tests import tiny
from tests.odd_images import odd_images

COUNTS = (1, 7, 64)
ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("shike_jax", "flax", "orbax", "tensorflow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import load
for count in sys.argv[3:]:
    load.main([f"{sys.argv[2]}/{count}.npy", f"{sys.argv[2]}/{count}.npz"])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "weights")


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    target = tmp_path_factory.mktemp("export") / "model"
    export.main([f"--checkpoint={checkpoint}", f"--output={target}"])
    return target


def predicted(checkpoint, images, folder):
    np.save(folder / "pixels.npy", images)
    predict.main([f"--checkpoint={checkpoint}", f"--images={folder / 'pixels.npy'}", f"--output={folder / 'ours.npz'}"])
    return np.load(folder / "ours.npz")


def test_same_probabilities_without_this_package_at_three_batch_sizes(checkpoint, folder, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    for count in COUNTS:
        np.save(tmp_path / f"{count}.npy", images[:count])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", ALONE, folder, tmp_path, *map(str, COUNTS)], check=True, cwd=tmp_path, env=environment
    )
    ours = predicted(checkpoint, images, tmp_path)
    for count in COUNTS:
        theirs = np.load(tmp_path / f"{count}.npz")
        np.testing.assert_allclose(theirs["probabilities"], ours["probabilities"][:count], atol=1e-5)
        np.testing.assert_allclose(theirs["logits"], ours["logits"][:, :count], atol=1e-4)


def test_description_names_classes_and_preprocessing(folder):
    meta = exported.Exported(folder).meta
    assert meta["class_names"] == list(tiny.CLASSES)
    assert (meta["image_size"], meta["resize"], meta["heads"]) == (tiny.SIZE, tiny.RESIZE, "classifier")
    assert meta["mean"] == list(tiny.MEAN) and meta["std"] == list(tiny.STD)


def test_function_is_lowered_for_three_platforms(folder):
    from jax import export as jax_export

    function = jax_export.deserialize(bytearray((folder / "function.jax").read_bytes()))
    assert set(function.platforms) == {"cpu", "cuda", "tpu"}


def test_example_prepares_picture_files_as_prediction_does(folder, tmp_path):
    draw = np.random.default_rng(3)
    smooth = Image.fromarray(draw.integers(0, 256, (9, 12, 4), np.uint8), "RGBA").resize((300, 201))
    smooth.save(tmp_path / "alpha.png")
    smooth.convert("RGB").save(tmp_path / "large.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth.convert("RGB").save(tmp_path / "turned.jpg", exif=turned)
    smooth.convert("L").save(tmp_path / "grey.png")
    classifier = exported.Exported(folder)
    for name in ("alpha.png", "large.jpg", "turned.jpg", "grey.png"):
        expected = center_crop((tmp_path / name).read_bytes(), tiny.SIZE, tiny.RESIZE)
        np.testing.assert_array_equal(classifier.picture(tmp_path / name), expected, err_msg=name)


def test_example_reads_odd_files_as_prediction_does(folder, tmp_path):
    classifier = exported.Exported(folder)
    for name, (content, _, _) in odd_images().items():
        (tmp_path / name).write_bytes(content)
        expected = center_crop(content, tiny.SIZE, tiny.RESIZE)
        np.testing.assert_array_equal(classifier.picture(tmp_path / name), expected, err_msg=name)


@pytest.mark.parametrize("name", ["orientation", "to_rgb"])
def test_example_repeats_the_rule_for_pixels_word_for_word(name):
    assert inspect.getsource(getattr(exported, name)) == inspect.getsource(getattr(images, name))


def test_filled_target_is_refused_and_left_alone(checkpoint, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export.main([f"--checkpoint={checkpoint}", f"--output={tmp_path}"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.slow
def test_saved_model_gives_the_same_probabilities(checkpoint, tmp_path):
    tf = pytest.importorskip("tensorflow")
    export.main([f"--checkpoint={checkpoint}", f"--output={tmp_path / 'tf'}", "--format=savedmodel"])
    images = np.random.default_rng(0).integers(0, 256, (64, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    ours = predicted(checkpoint, images, tmp_path)
    serve = tf.saved_model.load(str(tmp_path / "tf")).signatures["serving_default"]
    for count in COUNTS:
        theirs = serve(images=tf.constant(images[:count]))["probabilities"].numpy()
        np.testing.assert_allclose(theirs, ours["probabilities"][:count], atol=1e-5)
