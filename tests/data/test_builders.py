"""Builders of tfds: what is loaded from them is the split of the configurations."""

import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax.config.loading import load_config
from shike_jax.data import sources, tfds_large
from shike_jax.data.splits import Part, Split
from shike_jax.errors import UserError
from tests.data.test_tfds_large import jpeg, prepare, write

tfds = pytest.importorskip("tensorflow_datasets")
builders = pytest.importorskip("shike_jax.data.builders")


@pytest.fixture(scope="module")
def cifar100_lt(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(shared / "data" / "tfds"))
        tfds.builder("cifar100_lt/if100", data_dir=str(folder)).download_and_prepare()
    return folder


@pytest.mark.slow
def test_cifar100_lt_is_loaded_without_this_package(shared, cifar100_lt):
    """10,847 examples of the split of the configuration, for a program that knows nothing of it."""
    code = f"""
import json, sys
import tensorflow_datasets as tfds
data, info = tfds.load("cifar100_lt/if100", data_dir={str(cifar100_lt)!r}, with_info=True)
found = {{}}
for part, examples in data.items():
    rows = ((one["id"].rsplit(b"_", 1)[1], one["label"], one["image"].sum()) for one in tfds.as_numpy(examples))
    found[part] = sorted([int(value) for value in row] for row in rows)
assert not [name for name in sys.modules if name.startswith("shike_jax")]
print(json.dumps([found, info.features["label"].names, info.metadata["class_counts"], info.metadata["split_hash"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cifar100_lt, check=True)
    found, names, counts, split_hash = json.loads(done.stdout.splitlines()[-1])
    assert [len(found[part]) for part in ("train", "test")] == [10847, 10000]
    config = load_config("cifar_lt", imbalance_factor=100)
    config.data.data_dir = str(shared / "data" / "tfds")
    source = sources.load(config.data)
    assert split_hash == source.split.hash and counts == source.split.class_counts.tolist()
    parts = {}
    for part, rows in found.items():
        ids, labels, sums = np.array(rows).T
        parts[part] = Part(ids.astype(np.int64), labels.astype(np.int32))
        np.testing.assert_array_equal(sums, source.images[part].reshape(len(rows), -1).sum(1, dtype=np.int64))
    same = Split(
        source.split.name, source.split.rule, source.split.seed, tuple(names), parts, source.split.division_rule
    )
    assert same.hash == source.split.hash


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_cifar10_lt_holds_the_images_of_the_configuration(tmp_path):
    """Of 60 images of each class 60 to 6 stay, the first ones: floor(60 / 10^(c/9))."""

    def image(number):
        return np.full((32, 32, 3), number % 251, np.uint8)

    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=CIFAR10),
    }
    records = {
        part: [{"id": f"{part}_{i:05d}", "image": image(i), "label": i % 10} for i in range(number)]
        for part, number in (("train", 600), ("test", 20))
    }
    write(tmp_path, "cifar10", features, records)
    builder = tfds.builder("cifar10_lt/if10", data_dir=str(tmp_path))
    builder.download_and_prepare()
    data, info = tfds.load("cifar10_lt/if10", data_dir=str(tmp_path), with_info=True)
    counts = [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]
    assert info.metadata["class_counts"] == counts and tuple(info.features["label"].names) == CIFAR10
    expected = {"train": [10 * i + c for c, count in enumerate(counts) for i in range(count)], "test": list(range(20))}
    for part, numbers in expected.items():
        found = {int(one["id"][-5:]): one for one in tfds.as_numpy(data[part])}
        assert sorted(found) == sorted(numbers)
        for number, one in found.items():
            assert one["label"] == number % 10
            np.testing.assert_array_equal(one["image"], image(number))
    config = load_config("cifar_lt", dataset="cifar10", imbalance_factor=10)
    config.data.data_dir = str(tmp_path)
    assert info.metadata["split_hash"] == sources.load(config.data).split.hash


def test_cifar10_lt_has_tfds_load_what_it_is_made_of(tmp_path, monkeypatch):
    """Into the same folder; here tfds is kept from it, so that there is nothing to make it of."""

    class Idle:
        def download_and_prepare(self):
            asked.append("prepared")

    def find(name, data_dir):
        asked.append((name, data_dir))
        return Idle()

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    asked = []
    builder = tfds.builder("cifar10_lt/if10", data_dir=str(tmp_path))
    monkeypatch.setattr(tfds, "builder", find)
    with pytest.raises(UserError, match=r"no prepared cifar10 in .*; prepare it once with: tfds build cifar10 "):
        builder.download_and_prepare()
    assert asked == [("cifar10", str(tmp_path)), "prepared"]


# --- list files and archives ----------------------------------------------------------------------------------------


def tar(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# Of each data set: its configuration, the lines of its lists with the grey of each image, and its archives as they are
# published, with images that no list names: 9 is the grey of these.
PLACES = {
    "train": {
        "train/airfield/00000001.jpg 0": 1,
        "train/airfield/00000002.jpg 0": 2,
        "train/arena-hockey/00000001.jpg 1": 3,
    },
    "val": {"train/arena-hockey/00000007.jpg 1": 4},
    "test": {"val/airfield/Places365_val_00000003.jpg 0": 5},
}
SETS = {
    "imagenet_lt_lists": (
        "imagenet_lt",
        "ImageNet_LT",
        {
            "train": {"train/n01/n01_1.JPEG 0": 1, "train/n01/n01_2.JPEG 0": 2, "train/n02/n02_1.JPEG 1": 3},
            "val": {"val/n02/ILSVRC2012_val_00000001.JPEG 1": 4},
            "test": {"val/n01/ILSVRC2012_val_00000002.JPEG 0": 5},
        },
        {
            "ILSVRC2012_img_train.tar": tar(
                {
                    "n01.tar": tar({"n01_1.JPEG": jpeg(1), "n01_2.JPEG": jpeg(2), "n01_9.JPEG": jpeg(9)}),
                    "n02.tar": tar({"n02_1.JPEG": jpeg(3)}),
                }
            ),
            "ILSVRC2012_img_val.zip": zipped({f"ILSVRC2012_val_0000000{i}.JPEG": jpeg(i + 3) for i in (1, 2)}),
        },
    ),
    "places_lt": (
        "places_lt",
        "Places_LT",
        PLACES,
        {
            "places365standard_easyformat.tar": tar(
                {
                    "places365_standard/train/airfield/00000001.jpg": jpeg(1),
                    "places365_standard/train/airfield/00000002.jpg": jpeg(2),
                    "places365_standard/train/airfield/00000007.jpg": jpeg(9),
                    "places365_standard/train/arena-hockey/00000001.jpg": jpeg(3),
                    "places365_standard/train/arena-hockey/00000007.jpg": jpeg(4),
                    "places365_standard/val/airfield/Places365_val_00000003.jpg": jpeg(5),
                }
            )
        },
    ),
    "places_lt of 256 pixels": (
        "places_lt",
        "Places_LT",
        PLACES,
        {
            "train_256_places365standard.tar": tar(
                {
                    "data_256/a/airfield/00000001.jpg": jpeg(1),
                    "data_256/a/airfield/00000002.jpg": jpeg(2),
                    "data_256/a/airfield/00000007.jpg": jpeg(9),
                    "data_256/a/arena/hockey/00000001.jpg": jpeg(3),
                    "data_256/a/arena/hockey/00000007.jpg": jpeg(4),
                    "data_256/a/arena/rodeo/00000002.jpg": jpeg(9),
                }
            ),
            "val_256.tar": tar({"val_256/Places365_val_00000003.jpg": jpeg(5)}),
        },
    ),
    "inaturalist18_lt": (
        "inat18",
        "iNaturalist18",
        {
            "train": {
                "train_val2018/Aves/0/a1.jpg 0": 1,
                "train_val2018/Aves/0/a2.jpg 0": 2,
                "train_val2018/Insecta/1/b.jpg 1": 3,
            },
            "val": {"train_val2018/Insecta/1/c.jpg 1": 4},
        },
        {
            "train_val2018.tar.gz": tar(
                {
                    "train_val2018/Aves/0/a1.jpg": jpeg(1),
                    "train_val2018/Aves/0/a2.jpg": jpeg(2),
                    "train_val2018/Insecta/1/b.jpg": jpeg(3),
                    "train_val2018/Insecta/1/c.jpg": jpeg(4),
                    "train_val2018/Insecta/1/d.jpg": jpeg(9),
                },
                "w:gz",
            )
        },
    ),
}


def manual(folder, name):
    """Puts lists and archives where tfds expects what is loaded by hand."""
    _, prefix, lists, archives = SETS[name]
    place = folder / "downloads" / "manual"
    place.mkdir(parents=True)
    for part, lines in lists.items():
        (place / f"{prefix}_{part}.txt").write_text("\n".join(lines) + "\n")
    for archive, content in archives.items():
        (place / archive).write_bytes(content)
    return place


def prepared(folder, name):
    tfds.builder(name.split()[0], data_dir=str(folder)).download_and_prepare()
    return tfds.load(name.split()[0], data_dir=str(folder), with_info=True)


@pytest.mark.parametrize("name", SETS)
def test_list_files_and_archives_make_the_split_of_the_configuration(tmp_path, name):
    place = manual(tmp_path, name)
    configuration, _, lists, _ = SETS[name]
    data, info = prepared(tmp_path, name)
    parts = {"train": "train", "val": "validation", "test": "test"}
    assert set(data) == {parts[part] for part in lists}
    for part, lines in lists.items():
        rows = {
            f"{one['id'].decode()} {one['label']}": int(one["image"][0, 0, 0])
            for one in tfds.as_numpy(data[parts[part]])
        }
        assert rows == lines
    assert info.metadata["class_counts"] == [2, 1]
    extra = {"weights": "none"} if configuration == "places_lt" else {}
    source = sources.load(load_config(configuration, lists=str(place), **extra).data)
    assert info.metadata["split_hash"] == source.split.hash
    assert tuple(info.features["label"].names) == source.split.class_names


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_named(tmp_path, name):
    place = manual(tmp_path, name)
    _, prefix, lists, archives = SETS[name]
    last = place / list(archives)[-1]
    content = last.read_bytes()
    part = "train" if len(archives) == 1 else "test" if "Places" in prefix else "val"  # the first to miss an image
    absent = rf"{name.split()[0]}: (\d) listed images are in no archive below .*manual, such as (\S+)$"

    last.unlink()
    with pytest.raises(UserError, match=absent) as stopped:
        prepared(tmp_path, name)
    assert re.search(absent, str(stopped.value)).groups() == (str(len(lists[part])), min(lists[part]).split()[0])

    last.write_bytes(content[: min(700, len(content) // 2)])
    with pytest.raises(UserError, match=rf"{last}: not a whole archive, or damaged \(.*\)"):
        prepared(tmp_path, name)

    last.write_bytes(content)
    first = min(lists["train"]).split()[0]
    nowhere = first.replace(first.rpartition("/")[2], "00000099.jpg")
    with (place / f"{prefix}_train.txt").open("a") as file:
        file.write(f"{nowhere} 0\n")
    with pytest.raises(UserError, match=absent) as stopped:
        prepared(tmp_path, name)
    assert re.search(absent, str(stopped.value)).groups() == ("1", nowhere)

    (place / f"{prefix}_train.txt").unlink()
    with pytest.raises(UserError, match=rf"list file .*{prefix}_train.txt: No such file"):
        prepared(tmp_path, name)


# --- versions and split expressions ---------------------------------------------------------------------------------


def small(folder, **changes):
    data = schema.base().data
    data.update({"source": "tfds", "profile": "natural", "data_dir": str(folder), "name": "imagenet_lt", **changes})
    return data


@pytest.fixture(scope="module")
def imagenet_lt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    features = {"label": tfds.features.ClassLabel(names=["n1", "n2"]), "file_name": tfds.features.Text()}
    labels = {"train": [0, 1] * 5, "validation": [1, 0], "test": [0, 1]}
    splits = {
        split: [{"label": label, "file_name": f"{split}_{i}.JPEG"} for i, label in enumerate(values)]
        for split, values in labels.items()
    }
    prepare(folder, "imagenet_lt", features, splits)
    return folder


def test_a_split_expression_takes_a_part_of_the_records(imagenet_lt):
    whole = sources.load(small(imagenet_lt))
    some = sources.load(small(imagenet_lt, train_split="train[:60%]", val_split="train[60%:]"))
    labels = whole.split.parts["train"].labels
    np.testing.assert_array_equal(some.split.parts["train"].labels, labels[:6])
    np.testing.assert_array_equal(some.split.parts["val"].labels, labels[6:])
    assert some.read("val", [0]) == whole.read("train", [6])
    assert some.split.hash != whole.split.hash and "train train[:60%]" in some.split.rule


def test_a_version_is_named_with_the_data_set(imagenet_lt):
    assert (
        sources.load(small(imagenet_lt, name="imagenet_lt:1.0.0")).split.hash
        == sources.load(small(imagenet_lt)).split.hash
    )
    with pytest.raises(UserError, match=r"no prepared imagenet_lt:9.0.0"):
        sources.load(small(imagenet_lt, name="imagenet_lt:9.0.0"))


def test_a_split_that_is_not_there_is_named(imagenet_lt):
    with pytest.raises(UserError, match=r"split 'extra\[:10%\]' is none of train, validation, test"):
        sources.load(small(imagenet_lt, train_split="extra[:10%]"))


def test_the_labels_are_kept_next_to_the_data(imagenet_lt, monkeypatch):
    sources.load(small(imagenet_lt))
    kept = list((imagenet_lt / "imagenet_lt" / "1.0.0").glob(".label-*.npy"))
    assert kept
    monkeypatch.setattr(tfds_large, "_read_column", lambda *_: pytest.fail("read again"))
    assert len(sources.load(small(imagenet_lt)).split.parts["train"]) == 10


def test_the_public_bucket_is_asked_when_told_so(imagenet_lt, tmp_path, monkeypatch):
    asked = []

    def builder(name, data_dir, try_gcs):
        asked.append((name, try_gcs))
        return tfds.builder_from_directory(str(imagenet_lt / "imagenet_lt" / "1.0.0"))

    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(UserError, match="no prepared"):
        sources.load(small(tmp_path))
    assert len(sources.load(small(tmp_path, try_gcs=True)).split.parts["train"]) == 10
    assert asked == [("imagenet_lt", True)]
