"""CIFAR through tfds, the digits, and exported files."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shike_jax import config as schema
from shike_jax.data import arrays, sources
from shike_jax.errors import UserError


def cifar(shared, factor=100.0, **changes):
    data = schema.base().data
    data.update({"source": "tfds", "name": "cifar100", "imbalance_factor": factor, **changes})
    data.data_dir = str(shared / "data" / "tfds")
    return data


def digits(**changes):
    data = schema.base().data
    data.update({"source": "digits", "image_size": 16, "imbalance_factor": 20.0, **changes})
    return data


@pytest.fixture(scope="module")
def cifar100(shared):
    pytest.importorskip("tensorflow_datasets")
    return sources.load(cifar(shared))


def test_cifar100_lt_counts(cifar100):
    split = cifar100.split
    assert {name: len(part) for name, part in split.parts.items()} == {"train": 10847, "test": 10000}
    assert [len(found) for found in split.divisions.values()] == [35, 35, 30]
    assert (split.class_counts[0], split.class_counts[-1]) == (500, 5)
    assert np.all(np.bincount(split.parts["test"].labels) == 100)


def test_cifar_images_are_those_of_their_ids(cifar100, shared):
    """Reads the records by hand and compares pixels and labels of the kept ids."""
    import tensorflow as tf

    [path] = (shared / "data" / "tfds" / "cifar100").glob("*/cifar100-train.tfrecord-*")
    train, seen = cifar100.split.parts["train"], 0
    position = {int(member): i for i, member in enumerate(train.members)}
    assert np.all(np.diff(train.members) > 0)
    for record in tf.data.TFRecordDataset(str(path)).take(2000).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        at = position.get(int(feature["id"].bytes_list.value[0].split(b"_")[1]))
        if at is not None:
            pixels = np.asarray(Image.open(io.BytesIO(feature["image"].bytes_list.value[0])))
            np.testing.assert_array_equal(cifar100.images["train"][at], pixels)
            assert train.labels[at] == feature["label"].int64_list.value[0]
            seen += 1
    assert seen > 100


def test_exported_cifar_comes_back_without_tensorflow(cifar100, tmp_path):
    path = tmp_path / "cifar.npz"
    arrays.save(cifar100, str(path))
    assert path.stat().st_size < 60e6
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import numpy as np
from shike_jax import config as schema
from shike_jax.data import sources
data = schema.base().data
data.update({{"source": "arrays", "root": {str(path)!r}}})
source = sources.load(data)
print(source.split.hash, *(int(images.astype(np.int64).sum()) for images in source.images.values()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sums = [str(int(images.astype(np.int64).sum())) for images in cifar100.images.values()]
    assert result.stdout.split() == [cifar100.split.hash, *sums]
    back = arrays.load(_arrays_config(path, image_size=32))
    for part, images in cifar100.images.items():
        np.testing.assert_array_equal(back.images[part], images)
        np.testing.assert_array_equal(back.split.parts[part].members, cifar100.split.parts[part].members)


def _arrays_config(path, **changes):
    data = schema.base().data
    data.update({"source": "arrays", "root": str(path), "image_size": 16, **changes})
    return data


def test_missing_tfds_folder_names_the_command(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    data = schema.base().data
    data.update({"source": "tfds", "name": "cifar10", "data_dir": str(tmp_path)})
    with pytest.raises(UserError, match=f"no prepared cifar10 in {tmp_path}.*tfds build cifar10 --data_dir={tmp_path}"):
        sources.load(data)


def test_digits_are_longtailed_with_a_balanced_test_set():
    source = sources.load(digits())
    split = source.split
    assert np.all(np.bincount(split.parts["test"].labels) == 30)
    # The rarest digit, 8, has 174 images (scikit-learn's documentation): 144 remain, and 144 / 20 rounds down to 7.
    assert (split.class_counts[0], split.class_counts[-1]) == (144, 7)
    assert not set(split.parts["train"].members) & set(split.parts["test"].members)
    assert source.images["train"].shape == (len(split.parts["train"]), 16, 16, 3)


def test_digits_pixels():
    from sklearn.datasets import load_digits

    source = sources.load(digits())
    train = source.split.parts["train"]
    grey, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(labels[train.members], train.labels)
    expected = np.round(grey[train.members[5]].reshape(8, 8) * 255 / 16)
    np.testing.assert_array_equal(source.images["train"][5, ::2, 1::2, 2], expected)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image_size": 20}, "image_size=20.*multiple of 8"),
        ({"test_per_class": 174}, "test_per_class=174.*1 to 173"),
        ({"imbalance_factor": 500.0}, "imbalance_factor=500"),
        ({"test_part": "val"}, "test_part='val'.*train, test"),
    ],
)
def test_impossible_digits(changes, line):
    with pytest.raises(UserError, match=line):
        sources.load(digits(**changes))


def test_export_refuses_to_overwrite_and_leaves_nothing_behind(tmp_path, monkeypatch):
    source, path = sources.load(digits()), tmp_path / "digits.npz"
    arrays.save(source, str(path))
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        arrays.save(source, str(path))
    assert path.read_bytes() == before

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        arrays.save(source, str(tmp_path / "other.npz"))
    assert [file.name for file in tmp_path.iterdir()] == ["digits.npz"]


def test_only_pictures_are_exported(tmp_path):
    for kind, shape in (("float32", (9, 8, 8, 3)), ("uint8", (9, 8, 8, 1)), ("float32", (9, 16))):
        np.savez(tmp_path / "given.npz", features=np.ones(shape, kind), labels=np.arange(9) % 3)
        data = schema.base().data
        data.update({"source": "npz", "profile": "natural"})
        data.npz.update({part: str(tmp_path / "given.npz") for part in ("train", "test")})
        with pytest.raises(UserError, match="arrays: only small-image splits"):
            arrays.save(sources.load(data), str(tmp_path / "out.npz"))
        assert not (tmp_path / "out.npz").exists()


def test_arrays_in_the_other_order_of_bytes_are_the_same(tmp_path):
    found = []
    for kind in (">f4", "<f4"):
        values = np.linspace(0, 1, 18, dtype=kind).reshape(6, 3)
        np.savez(tmp_path / "given.npz", features=values, labels=np.arange(6, dtype=">i8") % 2)
        data = schema.base().data
        data.update({"source": "npz", "profile": "natural"})
        data.npz.update({part: str(tmp_path / "given.npz") for part in ("train", "test")})
        found.append(sources.load(data))
    assert found[0].split.hash == found[1].split.hash
    assert all(source.images["train"].dtype == np.dtype("=f4") for source in found)


def test_a_part_that_lacks_a_class_is_numbered_by_the_names_of_the_classes(tmp_path):
    draw = np.random.default_rng(0)
    for part, labels, names in (("train", [0, 1, 2, 2], "abc"), ("test", [0, 1, 1], "ac")):
        features = draw.standard_normal((len(labels), 3))
        np.savez(
            tmp_path / f"{part}.npz", features=features, labels=np.array(labels), class_names=np.array(list(names))
        )
    data = schema.base().data
    data.update({"source": "npz", "profile": "natural"})
    data.npz.update({part: str(tmp_path / f"{part}.npz") for part in ("train", "test")})
    assert sources.load(data).split.parts["test"].labels.tolist() == [0, 2, 2]
    np.savez(tmp_path / "test.npz", features=np.ones((1, 3)), labels=np.array([0]), class_names=np.array(["d"]))
    with pytest.raises(UserError, match=r"npz\.test=.*class 'd' of class_names is none of part train, such as 'a'"):
        sources.load(data)


def test_no_array_of_an_export_passes_for_pixels_and_the_older_names_can_be_read(tmp_path):
    source, path = sources.load(digits()), tmp_path / "digits.npz"
    arrays.save(source, str(path))
    with np.load(path) as file:
        content = dict(file)
    assert sorted(content) == sorted(
        [
            "meta",
            *(f"{part}_{what}" for part in ("train", "test") for what in ("members", "labels", "image_differences")),
        ]
    )
    meta = str(content.pop("meta"))

    def written(number):
        older = {name.replace("_image_differences", "_images"): array for name, array in content.items()}
        target = tmp_path / f"format_{number}.npz"
        np.savez(target, meta=np.array(meta.replace('"format": 2', f'"format": {number}')), **older)
        return _arrays_config(target)

    back = sources.load(written(1))
    assert back.split.hash == source.split.hash
    for part, images in source.images.items():
        np.testing.assert_array_equal(back.images[part], images)
    with pytest.raises(UserError, match=r"format 3, expected one of 1, 2; export it again"):
        sources.load(written(3))


def test_damaged_export_is_refused(tmp_path):
    path = tmp_path / "digits.npz"
    arrays.save(sources.load(digits()), str(path))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no archive", content[:2000] + b"\0\0\0\0" + content[2004:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            sources.load(_arrays_config(path))
    with pytest.raises(UserError, match=r"absent\.npz: No such file"):
        sources.load(_arrays_config(tmp_path / "absent.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"one\.npy: not an exported split"):
        sources.load(_arrays_config(tmp_path / "one.npy"))


def test_an_export_belongs_to_its_size_of_images_and_decides_the_split(tmp_path):
    path = tmp_path / "digits.npz"
    arrays.save(sources.load(digits(imbalance_factor=5.0)), str(path))
    with pytest.raises(UserError, match=r"its images have 16 pixels a side; expected config\.data\.image_size=32"):
        sources.load(_arrays_config(path, image_size=32))
    (note,) = sources.load(_arrays_config(path, imbalance_factor=50.0)).report.lines()
    assert "decides which images train" in note and "(exponential imbalance 50, first) change nothing" in note
    assert not sources.load(_arrays_config(path, imbalance_factor=5.0)).report.lines()
