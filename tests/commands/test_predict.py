"""Prediction against golden logits, against a hand-written view of images, and its outputs."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from shike_jax.commands import predict
from shike_jax.commands.convert import main as convert
from shike_jax.data import pictures
from shike_jax.errors import UserError
from shike_jax.evaluation.classifier import BatchedLogits, load
from tests import tiny
from tests.conftest import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "weights")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five pictures in nested folders, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(1)
    for name in ("b.png", "a.png", "deep/er/c.png", "deep/d.png", "deep/e.JPEG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (tiny.RESIZE, 30, 3), np.uint8)).save(folder / name)
    (folder / "deep" / "broken.jpg").write_bytes((folder / "deep" / "e.JPEG").read_bytes()[:200])
    (folder / "notes.md").write_text("no picture")
    return folder


def run(checkpoint, output, *arguments):
    predict.main([f"--checkpoint={checkpoint}", f"--output={output}", *map(str, arguments)])
    return np.load(output) if str(output).endswith(".npz") else list(csv.reader(output.open()))


def test_names_do_not_control_the_terminal_or_a_spreadsheet(tmp_path, capsys):
    names = ("=1+1", "\x1b[31mbee\x07", "-5")
    checkpoint = tiny.write_checkpoint(tmp_path / "weights", class_names=list(names))
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (tiny.RESIZE, 30, 3), np.uint8))
    for name in (b"\x1b]0;title\x07.png", b"caf\xe9.png", b"broken\x1b.png"):  # the second is Latin-1, not UTF-8
        place = os.path.join(os.fsencode(folder), name)
        picture.save(os.fsdecode(place)) if b"broken" not in name else open(place, "wb").close()
    predict.main([f"--checkpoint={checkpoint}", f"--images={folder}"])
    rows = run(checkpoint, tmp_path / "out.csv", f"--images={folder}")
    shown = "".join(capsys.readouterr())
    assert "\\x1b[31mbee\\x07" in shown and "caf\\udce9.png" in shown and "skipped" in shown
    assert not set(shown) & {"\x1b", "\x07"}
    assert {cell for row in rows[1:] for cell in row[1::2]} == {"'=1+1", "\\x1b[31mbee\\x07", "-5"}
    assert sorted(row[0].rpartition("/")[2] for row in rows[1:]) == ["\\x1b]0;title\\x07.png", "caf\\udce9.png"]


def test_golden_logits_through_convert_and_predict(tmp_path):
    golden = np.load(GOLDEN / "shike_resnet32_cifar.npz")
    # The file's rule for weights and images, written down in the shared folder's README.
    draw = np.random.RandomState(int(golden["weights_seed"]))
    names = [str(name) for name in golden["names"]]
    normalisations = {name.rsplit(".", 1)[0] for name in names if name.endswith("running_mean")}
    state = {}
    for name, text in zip(names, golden["shapes"], strict=True):
        shape = tuple(int(side) for side in str(text).split(",") if side)
        r = draw.standard_normal(shape)
        module, leaf = name.rsplit(".", 1)
        if len(shape) == 4:
            r = r * np.sqrt(2.0 / np.prod(shape[1:]))
        elif module in normalisations:
            r = {"weight": 1 + 0.1 * r, "bias": 0.1 * r, "running_mean": 0.1 * r, "running_var": 1 + 0.1 * abs(r)}[leaf]
        else:
            r = 0.1 * r
        state[name] = r.astype(np.float32)
    np.savez(tmp_path / "w.npz", **state)
    images = np.random.RandomState(int(golden["weights_seed"]) + 1).standard_normal((16, 32, 32, 3))
    np.save(tmp_path / "x.npy", images.astype(np.float32))
    convert(["--model=shike_resnet32_cifar", f"--source={tmp_path / 'w.npz'}", f"--target={tmp_path / 'ck'}"])
    found = run(tmp_path / "ck", tmp_path / "o.npz", f"--images={tmp_path / 'x.npy'}", "--head=representation")
    np.testing.assert_allclose(found["logits"], golden["eval_logits_representation"], atol=2e-4)


def test_npz_holds_what_the_network_says_of_the_cropped_normalised_pictures(checkpoint, photos, tmp_path):
    files = [photos / "a.png", photos / "b.png"]
    found = run(checkpoint, tmp_path / "o.npz", "--images", *files, "--top_k=2")
    # The pictures' short side is RESIZE already: the view is the central square, normalised.
    left, top = (30 - tiny.SIZE) // 2, (tiny.RESIZE - tiny.SIZE) // 2
    pixels = [np.asarray(Image.open(file))[top : top + tiny.SIZE, left : left + tiny.SIZE] for file in files]
    images = ((np.stack(pixels) / 255 - tiny.MEAN) / tiny.STD).astype(np.float32)
    classifier = load(checkpoint)
    logits = np.asarray(classifier.network.apply(classifier.variables, images, "classifier"))
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    average = logits.astype(np.float64).sum(0) / 3
    np.testing.assert_allclose(found["averaged_logits"], average, atol=1e-4)
    shares = np.exp(average) / np.exp(average).sum(1, keepdims=True)
    np.testing.assert_allclose(found["probabilities"], shares, atol=1e-5)
    assert found["classes"].tolist() == [sorted(range(3), key=lambda c: -row[c])[:2] for row in shares]
    assert found["class_names"].tolist() == list(tiny.CLASSES)
    assert found["files"].tolist() == list(map(str, files))


def test_folder_is_read_with_all_below_it_and_broken_pictures_are_skipped(checkpoint, photos, tmp_path, capsys):
    rows = run(checkpoint, tmp_path / "o.csv", f"--images={photos}", "--top_k=3", "--per_expert")
    assert rows[0] == [
        "file",
        "class_1",
        "probability_1",
        "class_2",
        "probability_2",
        "class_3",
        "probability_3",
        "expert_1_class",
        "expert_1_probability",
        "expert_2_class",
        "expert_2_probability",
        "expert_3_class",
        "expert_3_probability",
    ]
    names = [str(photos / name) for name in ("a.png", "b.png", "deep/d.png", "deep/e.JPEG", "deep/er/c.png")]
    assert [row[0] for row in rows[1:]] == names
    for row in rows[1:]:
        assert set(row[1:7:2]) == set(tiny.CLASSES)
        assert sum(map(float, row[2:7:2])) == pytest.approx(1, abs=1e-5)
    captured = capsys.readouterr()
    assert "5 images, 1 skipped" in captured.out
    assert captured.err.count("skipped") == 1 and "broken.jpg" in captured.err

    arrays = run(checkpoint, tmp_path / "o.npz", f"--images={photos}")
    assert arrays["skipped"].tolist() == [str(photos / "deep" / "broken.jpg")]
    best = arrays["probabilities"].argmax(1)
    assert [row[1] for row in rows[1:]] == [tiny.CLASSES[c] for c in best]
    alone = arrays["logits"].argmax(-1)
    assert [row[7:13:2] for row in rows[1:]] == [[tiny.CLASSES[c] for c in column] for column in alone.T]


def test_list_of_paths_beside_it_or_absolute_and_missing_files_are_skipped(checkpoint, photos, tmp_path, capsys):
    listed = photos / "list.txt"
    listed.write_text(f"# two pictures\nb.png\n\n{photos / 'deep' / 'd.png'}\nabsent.png\n")
    rows = run(checkpoint, tmp_path / "o.csv", f"--images={listed}")
    listed.unlink()
    assert [row[0] for row in rows[1:]] == [str(photos / "b.png"), str(photos / "deep" / "d.png")]
    assert "skipped absent.png: No such file" in capsys.readouterr().err


def test_pixels_in_an_array_are_treated_as_the_same_pictures_in_files(checkpoint, photos, tmp_path):
    files = [photos / "a.png", photos / "b.png"]
    np.save(tmp_path / "x.npy", np.stack([np.asarray(Image.open(file)) for file in files]))
    array = run(checkpoint, tmp_path / "o.npz", f"--images={tmp_path / 'x.npy'}")
    assert array["files"].tolist() == ["x.npy[0]", "x.npy[1]"]
    from_files = run(checkpoint, tmp_path / "p.npz", "--images", *files)
    np.testing.assert_array_equal(array["logits"], from_files["logits"])


def test_terminal_without_output(checkpoint, photos, capsys):
    predict.main([f"--checkpoint={checkpoint}", f"--images={photos / 'a.png'}", "--top_k=2", "--per_expert"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photos / "a.png") and len(lines) == 5
    assert lines[1].count("%") == 2 and lines[2].startswith("  expert 1: ")


def test_batch_size_changes_nothing(checkpoint, tmp_path):
    images = np.random.default_rng(2).standard_normal((7, tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    found = [
        run(checkpoint, tmp_path / f"{size}.npz", f"--images={tmp_path / 'x.npy'}", f"--batch_size={size}")["logits"]
        for size in (3, 64)
    ]
    assert found[0].shape == (3, 7, 3)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_one_trace_serves_whole_and_partial_batches():
    class Counting:
        variables = np.float32(2)
        traces = 0

        def remark(self, images):
            """Not looked at here."""

        def apply(self, variables, images):
            self.traces += 1
            return variables * images[None, :, 0, 0, :]

    counting = Counting()
    run_batch = BatchedLogits(counting, 4)
    images = np.arange(9 * 3, dtype=np.float32).reshape(9, 1, 1, 3)
    found = np.concatenate([run_batch(images[start : start + 4]) for start in (0, 4, 8)], 1)
    np.testing.assert_array_equal(found[0], 2 * images[:, 0, 0])
    assert counting.traces == 1


def test_nothing_readable_is_an_error_and_leaves_no_file(checkpoint, photos, tmp_path):
    with pytest.raises(UserError, match=r"none of the 1 images could be classified; the first: .*broken\.jpg"):
        run(checkpoint, tmp_path / "o.csv", f"--images={photos / 'deep' / 'broken.jpg'}")
    assert not list(tmp_path.iterdir())


def test_images_without_a_finite_output_are_named_and_left_out(checkpoint, tmp_path, capsys):
    images = np.zeros((3, tiny.SIZE, tiny.SIZE, 3), np.float32)
    images[1, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", images)
    for ending in ("csv", "npz"):
        output = tmp_path / f"o.{ending}"
        assert predict.main([f"--checkpoint={checkpoint}", f"--images={tmp_path / 'x.npy'}", f"--output={output}"]) == 1
        assert "skipped x.npy[1]: the network's output is not finite" in capsys.readouterr().err
    assert [row[0] for row in csv.reader((tmp_path / "o.csv").open())] == ["file", "x.npy[0]", "x.npy[2]"]
    with np.load(tmp_path / "o.npz") as found:
        assert found["files"].tolist() == ["x.npy[0]", "x.npy[2]"] and found["skipped"].tolist() == ["x.npy[1]"]
        assert np.isfinite(found["logits"]).all()
    np.save(tmp_path / "x.npy", images[1:2])
    with pytest.raises(UserError, match=r"none of the 1 images could be classified; the first: .*not finite"):
        run(checkpoint, tmp_path / "none.csv", f"--images={tmp_path / 'x.npy'}")


def test_work_directory_gives_its_last_stage(tmp_path):
    tiny.write_checkpoint(tmp_path / "run" / "weights" / "first", heads="representation", stage_index=0)
    last = tiny.write_checkpoint(tmp_path / "run" / "weights" / "second", heads="classifier", stage_index=1)
    assert load(tmp_path / "run").heads == "classifier"
    assert load(tmp_path / "run", "representation").heads == "representation"
    shutil.rmtree(last)
    assert load(tmp_path / "run").heads == "representation"


def test_lists_keep_names_with_line_separators_of_unicode(photos, tmp_path):
    odd = tmp_path / "x\u2028y.png"
    shutil.copyfile(photos / "a.png", odd)
    (tmp_path / "list.txt").write_text(f"{odd.name}\n", encoding="utf-8")
    assert pictures.find([str(tmp_path / "list.txt")]) == [str(odd)]


@pytest.mark.parametrize(
    ("largest", "low", "remark"), [(255.0, 0.0, True), (1.0, 0.0, True), (2.0, -2.0, False), (400.0, -2.0, True)]
)
def test_floats_that_are_hardly_normalised_are_remarked_on(checkpoint, tmp_path, capsys, largest, low, remark):
    """Normalised pixels lie in -2.5 (0.5 / 0.2) to 3 (0.6 / 0.2 is 3): 0..255 and 0..1 are something else."""
    floats = np.random.default_rng(0).uniform(low, largest, (2, tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", floats)
    predict.main([f"--checkpoint={checkpoint}", f"--images={tmp_path / 'x.npy'}"])
    assert ("are used as they are; normalised pixels" in capsys.readouterr().err) == remark


def test_features_of_pixels_are_those_of_normalised_ones(checkpoint, capsys):
    """(x / 255 - mean) / std by hand; the raw pixels as floats give something else, and that is said."""
    classifier = load(str(checkpoint))
    pixels = np.random.default_rng(0).integers(0, 256, (2, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    normalised = ((pixels / 255 - np.array(tiny.MEAN)) / np.array(tiny.STD)).astype(np.float32)
    expected = classifier.network.apply(classifier.variables, normalised, method="features")
    for images in (pixels, normalised):
        maps = classifier.feature_maps(images)
        assert maps.keys() == expected.keys()
        pooled = classifier.features(images)  # what each expert's classifier receives: means over the positions
        assert len(pooled) == len(maps["fused"]) == len(expected["fused"]) and pooled.dtype == np.float32
        for vectors, one, other in zip(pooled, maps["fused"], expected["fused"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(vectors, np.mean(other, (1, 2)), rtol=1e-4, atol=1e-4)
    assert not capsys.readouterr().err
    floats = pixels.astype(np.float32)
    assert not np.allclose(classifier.feature_maps(floats)["fused"][0], expected["fused"][0], rtol=1e-2)
    assert "floats from 0 to 255 are used as they are; normalised pixels" in capsys.readouterr().err
    assert not np.allclose(classifier.features(floats)[0], np.mean(expected["fused"][0], (1, 2)), rtol=1e-2)
    assert "floats from 0 to 255 are used as they are; normalised pixels" in capsys.readouterr().err
