"""Builders of tfds: what is loaded from them is the split of the configurations."""

import io
import json
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
from tests.data.test_tfds_large import jpeg, prepare

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


LISTS = {
    "train": ["train/n01/n01_1.JPEG 0", "train/n01/n01_2.JPEG 0", "train/n02/n02_1.JPEG 1"],
    "val": ["val/ILSVRC2012_val_00000001.JPEG 1"],
    "test": ["val/ILSVRC2012_val_00000002.JPEG 0"],
}


def tar(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def manual(folder):
    place = folder / "downloads" / "manual"
    place.mkdir(parents=True)
    for part, lines in LISTS.items():
        (place / f"ImageNet_LT_{part}.txt").write_text("\n".join(lines) + "\n")
    classes = {
        "n01": {"n01_1.JPEG": jpeg(1), "n01_2.JPEG": jpeg(2), "n01_9.JPEG": jpeg(9)},
        "n02": {"n02_1.JPEG": jpeg(3)},
    }
    inner = {f"{name}.tar": tar(files) for name, files in classes.items()}
    (place / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    with zipfile.ZipFile(place / "ILSVRC2012_img_val.zip", "w") as archive:
        archive.writestr("ILSVRC2012_val_00000001.JPEG", jpeg(4))
        archive.writestr("ILSVRC2012_val_00000002.JPEG", jpeg(5))
    return place


def test_list_files_and_archives_make_imagenet_lt(tmp_path):
    manual(tmp_path)
    builder = tfds.builder("imagenet_lt_lists", data_dir=str(tmp_path))
    builder.download_and_prepare()
    data, info = tfds.load("imagenet_lt_lists", data_dir=str(tmp_path), with_info=True)
    assert {part: len(one) for part, one in data.items()} == {"train": 3, "validation": 1, "test": 1}
    rows = {one["id"].decode(): (int(one["label"]), int(one["image"][0, 0, 0])) for one in tfds.as_numpy(data["train"])}
    assert rows == {"train/n01/n01_1.JPEG": (0, 1), "train/n01/n01_2.JPEG": (0, 2), "train/n02/n02_1.JPEG": (1, 3)}
    assert info.metadata["class_counts"] == [2, 1]


def test_an_image_that_is_in_no_archive_is_named(tmp_path):
    (manual(tmp_path) / "ILSVRC2012_img_val.zip").unlink()
    with pytest.raises(UserError, match=r"1 listed images are in no archive below .*such as val/ILSVRC2012_val_0"):
        tfds.builder("imagenet_lt_lists", data_dir=str(tmp_path)).download_and_prepare()


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
