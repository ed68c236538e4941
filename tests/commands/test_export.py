"""The exported function against prediction, in a process that cannot import this package."""

import os
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from shike_jax.commands import export, predict
from shike_jax.data import images
from shike_jax.data.images import center_crop
from shike_jax.errors import UserError
from shike_jax.evaluation import load_exported as exported
from tests import tiny
from tests.conftest import GOLDEN
from tests.data.test_images import ODD_ORIENTATIONS
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


def loader(folder):
    """The class of the load.py that was written, which must do without this package."""
    text = (folder / "load.py").read_text()
    assert "import shike_jax" not in text and "from shike_jax" not in text
    return runpy.run_path(str(folder / "load.py"))["Exported"](folder)


def test_example_prepares_picture_files_as_prediction_does(folder, tmp_path):
    draw = np.random.default_rng(3)
    smooth = Image.fromarray(draw.integers(0, 256, (9, 12, 4), np.uint8), "RGBA").resize((300, 201))
    smooth.save(tmp_path / "alpha.png")
    smooth.convert("RGB").save(tmp_path / "large.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth.convert("RGB").save(tmp_path / "turned.jpg", exif=turned)
    smooth.convert("L").save(tmp_path / "grey.png")
    classifier = loader(folder)
    for name in ("alpha.png", "large.jpg", "turned.jpg", "grey.png"):
        expected = center_crop((tmp_path / name).read_bytes(), tiny.SIZE, tiny.RESIZE)
        np.testing.assert_array_equal(classifier.picture(tmp_path / name), expected, err_msg=name)


def test_example_reads_odd_files_as_prediction_does(folder, tmp_path):
    classifier = loader(folder)
    odd = {name: content for name, (content, _, _) in odd_images().items()}
    for name, content in (odd | {f"{k}.jpg": v for k, v in ODD_ORIENTATIONS.items()}).items():
        (tmp_path / name).write_bytes(content)
        expected = center_crop(content, tiny.SIZE, tiny.RESIZE)
        np.testing.assert_array_equal(classifier.picture(tmp_path / name), expected, err_msg=name)


def test_no_images_give_empty_arrays(folder):
    found = exported.Exported(folder)(np.zeros((0, tiny.SIZE, tiny.SIZE, 3), np.uint8))
    assert found["probabilities"].shape == (0, 3) and found["logits"].shape == (3, 0, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_example_names_pictures_that_it_cannot_read_and_goes_on(folder, tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "text.jpg").write_text("<html>404 Not Found</html>")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    assert exported.MAX_PIXELS == images.MAX_PIXELS
    classifier = exported.Exported(folder)
    with pytest.raises(ValueError, match=r"huge\.png: 10000 x 10000 pixels, more than 89478485"):
        classifier.picture(tmp_path / "huge.png")
    command = [sys.executable, "-W", "ignore", folder / "load.py"]
    found = subprocess.run([*command, "huge.png", "text.jpg", "good.png"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith("good.png  ")
    assert found.stderr.count("skipped ") == 2 and "skipped text.jpg: " in found.stderr
    assert subprocess.run([*command, "text.jpg"], cwd=tmp_path, capture_output=True).returncode == 1


def test_filled_target_is_refused_and_left_alone(checkpoint, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export.main([f"--checkpoint={checkpoint}", f"--output={tmp_path}"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


OLDER = GOLDEN / "export_jax_0_10"  # written by tests/golden/make_export.py


def expected_of_older():
    with np.load(OLDER / "expected.npz") as file:
        return dict(file)


def test_an_export_of_an_earlier_jax_is_read_and_agrees():
    """Under the newer of the two supported versions this is an export that has aged."""
    classifier, expected = exported.Exported(OLDER), expected_of_older()
    assert classifier.meta["versions"]["jax"].startswith("0.10.")
    found = classifier(expected["images"])
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-4)


def test_an_export_is_made_anew_from_its_own_files(tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(OLDER, copy)
    (copy / "function.jax").write_bytes(b"no function of any jax")
    with pytest.raises(RuntimeError, match=r"written by jax 0\.10\..* cannot be read by .* --again="):
        exported.Exported(copy)
    (copy / "load.py").write_text("# changed by its owner")
    export.main([f"--again={copy}"])
    assert f"made again with jax {jax.__version__}" in capsys.readouterr().out
    expected = expected_of_older()
    again = exported.Exported(copy)
    np.testing.assert_allclose(again(expected["images"])["probabilities"], expected["probabilities"], atol=1e-5)
    assert again.meta["versions"]["jax"] == jax.__version__
    assert again.meta["class_names"] == list(tiny.CLASSES) and again.meta["dtype"] == "float32"
    assert (copy / "load.py").read_text() == "# changed by its owner"


def test_what_cannot_be_made_anew_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model\.json: No such file.*expected a folder that this command wrote"):
        export.main([f"--again={tmp_path}"])
    (tmp_path / "model.json").write_text("{}")
    np.savez(tmp_path / "weights.npz", a=np.zeros(1))
    with pytest.raises(UserError, match="not a folder that this command wrote, or damaged"):
        export.main([f"--again={tmp_path}"])
    with pytest.raises(UserError, match="--checkpoint and --output are needed, or --again"):
        export.main([])
    with pytest.raises(UserError, match="expected neither --checkpoint nor --output"):
        export.main([f"--again={tmp_path}", "--output=x"])


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
    assert serve(images=tf.constant(images[:0]))["logits"].shape == (3, 0, 3)
