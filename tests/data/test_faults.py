"""What users do wrong, done to a copy of real photographs: each fault gives the report that docs/faults.md promises."""

import shutil

import numpy as np
import pytest
from PIL import Image

from shike_jax import config as schema
from shike_jax.data import sources
from shike_jax.data.host_pipeline import HostPipeline
from shike_jax.errors import UserError

CLASSES = ("accordion", "ant", "cup", "wrench")
VICTIM = "train/accordion"


@pytest.fixture
def root(shared, tmp_path):
    """A copy of four classes of caltech101_lt."""
    for part in ("train", "test"):
        for name in CLASSES:
            shutil.copytree(shared / "data" / "caltech101_lt" / part / name, tmp_path / part / name)
    return tmp_path


def read_all(root, **changes):
    """Loads the folder and decodes the training part; returns the source, images and mask in its order."""
    config = schema.base()
    config.data.update({"source": "folder", "root": str(root), "profile": "natural", "image_size": 32, **changes})
    source = sources.load(config.data)
    count = len(source.split.parts["train"])
    plan = {"index": np.arange(count)[None], "mask": np.ones((1, count), np.float32)}
    [batch] = HostPipeline(source, "train", config).batches(plan)
    return source, batch["image"], batch["mask"]


def victims(root, count=1):
    return sorted((root / VICTIM).iterdir())[:count]


def truncate(path):
    path.write_bytes(path.read_bytes()[:900])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>404 Not Found</html>")


def header_only(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n")


def huge(path):
    Image.new("1", (10_000, 10_000)).save(path, "PNG")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated"),
        (empty, "empty file"),
        (text, "not an image"),
        (header_only, "not an image|truncated|cannot identify"),
        (huge, "10000 x 10000 pixels, more than 89478485"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_broken_image_is_skipped_counted_and_named(root, damage, reason):
    [path] = victims(root)
    damage(path)
    source, images, mask = read_all(root)
    assert np.flatnonzero(mask == 0).tolist() == [0]
    assert not images[0].any()
    first, second = source.report.lines()
    assert first == "left out: 1"
    assert f"{VICTIM}/{path.name}: " in second
    with pytest.raises(UserError, match=rf"image {VICTIM}/{path.name}: .*({reason}).*bad_image=skip"):
        read_all(root, bad_image="stop")


def test_too_many_broken_images_stop(root):
    for path in victims(root, 5):
        truncate(path)
    with pytest.raises(UserError, match=r"\d of \d+ images of part train cannot be read.*bad_image_limit=0\.01"):
        read_all(root, bad_image_limit=0.01)


def cmyk(image, path):
    image.convert("CMYK").save(path, "JPEG", quality=98)


def transparent(image, path):
    image.putalpha(255)
    image.save(path, "PNG")


def gif(image, path):
    image.save(path, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)])


def grey(image, path):
    image.convert("L").save(path, "JPEG", quality=98)


def sixteen_bit(image, path):
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, "PNG")


def rotated(image, path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn the stored picture clockwise to see it
    image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=98, exif=exif)


@pytest.mark.parametrize("write", [cmyk, transparent, gif, grey, sixteen_bit, rotated])
def test_awkward_images_are_read_like_the_original(root, write):
    [path] = victims(root)
    _, before, _ = read_all(root)
    with Image.open(path) as image:
        original = image.convert("RGB")
    if write in (grey, sixteen_bit):
        before = np.repeat(before.mean(-1, keepdims=True), 3, -1)
    write(original, path)
    source, after, mask = read_all(root)
    assert mask.all()
    assert source.report.lines() == []
    # Another encoding of the same picture; another picture of the class differs by 60 and more.
    assert np.abs(after[0].astype(float) - before[0]).mean() < 12


def test_an_empty_class(root):
    shutil.rmtree(root / "train" / "cup")
    (root / "train" / "cup").mkdir()
    with pytest.raises(UserError, match=r"train/cup holds no image"):
        read_all(root)


def test_a_class_in_test_only(root):
    shutil.rmtree(root / "train" / "cup")
    with pytest.raises(UserError, match=r"test/cup has no counterpart"):
        read_all(root)


def lines(root, part):
    found = sorted(path.relative_to(root).as_posix() for path in root.glob(f"{part}/*/*"))
    return [f"{member} {CLASSES.index(member.split('/')[1])}" for member in found]


def read_lists(root, train, **changes):
    (root / "train.txt").write_text("\n".join(train) + "\n")
    (root / "test.txt").write_text("\n".join(lines(root, "test")) + "\n")
    lists = {"train_list": str(root / "train.txt"), "test_list": str(root / "test.txt")}
    return read_all(root, source="lists", **lists, **changes)


def test_a_good_list_gives_what_the_folder_gives(root):
    source, images, _ = read_lists(root, lines(root, "train"))
    folder, expected, _ = read_all(root)
    np.testing.assert_array_equal(images, expected)
    assert source.split.class_names == folder.split.class_names == CLASSES
    assert source.split.class_counts.tolist() == folder.split.class_counts.tolist()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda all_lines: [*all_lines, "train/cup/new.jpg"], r"train\.txt:{n}: 'train/cup/new\.jpg' has no label"),
        (lambda all_lines: [*all_lines, "train/cup/new.jpg cup"], r"train\.txt:{n}: label 'cup' .*integer"),
        (lambda all_lines: [*all_lines, all_lines[3]], r"train\.txt:{n}: .* is listed already in line 4"),
        (lambda all_lines: [*all_lines, "train/cup/new.jpg 2"], r"train\.txt:{n}: 'train/cup/new\.jpg' is not under"),
        (lambda all_lines: [*all_lines, "../train/x.jpg 2"], r"train\.txt:{n}: '\.\./train/x\.jpg' leaves"),
        (lambda all_lines: [*all_lines, "/etc/hostname 2"], r"train\.txt:{n}: '/etc/hostname' is an absolute path"),
    ],
)
def test_bad_lines_stop_and_can_be_skipped(root, change, line):
    changed = change(lines(root, "train"))
    with pytest.raises(UserError, match=line.format(n=len(changed))):
        read_lists(root, changed)
    source, _, mask = read_lists(root, changed, bad_line="skip")
    assert len(mask) == len(changed) - 1
    assert source.report.lines()[0] == "left out: 1"
    assert f"train.txt:{len(changed)}: " in source.report.lines()[1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x: [*x[:-1], x[-1][:-1] + "7"], r"train\.txt: 3 labels below the largest have no image, the first is"),
        (lambda x: [entry for entry in x if not entry.endswith(" 3")], r"test\.txt:\d+: label 3 of 'test/wrench"),
        (lambda x: [x[0][:-1] + "2", *x[1:]], r"train\.txt:1: .* has label 2, but .*list and folder disagree"),
    ],
)
def test_labels_that_cannot_be_meant(root, change, line):
    with pytest.raises(UserError, match=line):
        read_lists(root, change(lines(root, "train")))


def test_a_class_without_a_readable_image_does_not_count(root):
    for path in (root / VICTIM).iterdir():
        empty(path)
    with pytest.raises(UserError, match=rf"class {VICTIM.split('/')[1]}: none of its \d+ training images can be read"):
        read_all(root, bad_image_limit=1.0)
