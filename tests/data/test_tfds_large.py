"""The large tfds sources on tiny stand-ins with the real features and the real storage format."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from shike_jax import config as schema
from shike_jax.data import sources
from shike_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


def jpeg(value):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def prepare(folder, name, features, splits, file_format="array_record"):
    """Writes a tfds data set of that name: `splits` is {split: [record without its image, ...]}."""
    named = features | {"image": tfds.features.Image(encoding_format="jpeg")}
    records = {
        split: [record | {"image": io.BytesIO(jpeg(100 * n + i))} for i, record in enumerate(values)]
        for n, (split, values) in enumerate(splits.items())
    }
    write(folder, name, named, records, file_format)


def write(folder, name, features, splits, file_format="tfrecord"):
    """As `prepare`, of whole records."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    body = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {split: enumerate(records) for split, records in splits.items()},
        "_generate_examples": lambda self: iter(()),
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)(data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare()


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = schema.base().data
    made.update({"source": "tfds", "profile": "natural", "data_dir": str(tmp_path / "tfds")})
    return made


def imagenet_lt(folder, **options):
    features = {"label": tfds.features.ClassLabel(names=["n1", "n2", "n3"]), "file_name": tfds.features.Text()}
    labels = {"train": [0, 1, 0, 2, 0, 1], "validation": [2, 1], "test": [0, 1, 2]}
    splits = {
        split: [{"label": label, "file_name": f"{split}_{i}.JPEG"} for i, label in enumerate(values)]
        for split, values in labels.items()
    }
    prepare(folder, "imagenet_lt", features, splits, **options)


def grey(encoded):
    return int(np.asarray(Image.open(io.BytesIO(encoded)))[0, 0, 0])


def test_imagenet_lt_reads_any_image_of_its_label(data):
    imagenet_lt(data.data_dir)
    data.update({"name": "imagenet_lt", "test_part": "test"})
    for _ in range(2):  # the second time labels come from the cache
        source = sources.load(data)
        split = source.split
        assert {name: len(part) for name, part in split.parts.items()} == {"train": 6, "val": 2, "test": 3}
        assert split.class_counts.tolist() == [3, 2, 1]
        assert split.class_names == ("n1", "n2", "n3")
    # tfds shuffles at preparation: compare with its own reading, in its own order.
    builder = tfds.builder_from_directory(f"{data.data_dir}/imagenet_lt/1.0.0")
    expected = [(int(record["label"]), int(record["image"][0, 0, 0])) for record in builder.as_data_source("train")]
    assert [label for label, _ in expected] == split.parts["train"].labels.tolist()
    assert [value for _, value in expected] == [grey(e) for e in source.read("train", range(6))]
    assert grey(source.read("test", [1])[0]) >= 195  # the third split starts at 200


def test_a_longtailed_subset_reads_the_kept_images(data):
    imagenet_lt(data.data_dir)
    data.update({"name": "imagenet_lt", "profile": "exponential", "imbalance_factor": 1.0})
    source = sources.load(data)
    assert source.split.class_counts.tolist() == [1, 1, 1]
    members = source.split.parts["train"].members
    data.profile = "natural"
    everything = sources.load(data)
    assert source.read("train", [0, 1, 2]) == everything.read("train", members)


def test_a_part_that_shares_records_with_train_is_refused(data):
    imagenet_lt(data.data_dir)
    data.update({"name": "imagenet_lt", "val_split": "train[4:]", "test_part": "val"})
    line = r"val_split='train\[4:\]' shares records with part train, .*train_split='train'; expected"
    with pytest.raises(UserError, match=line):
        sources.load(data)
    data.train_split = "train[4:5]+train[:2]"
    with pytest.raises(UserError, match="shares records"):
        sources.load(data)
    data.train_split = "train[:4]"
    assert {name: len(part) for name, part in sources.load(data).split.parts.items()} == {
        "train": 4,
        "val": 2,
        "test": 3,
    }


def test_storage_without_random_access_is_explained(data):
    imagenet_lt(data.data_dir, file_format="tfrecord")
    data.name = "imagenet_lt"
    with pytest.raises(UserError, match=r"stored as tfrecord, expected array_record: tfds build imagenet_lt --file_f"):
        sources.load(data)


def test_places_lt_picks_the_listed_files(data, tmp_path):
    features = {"label": tfds.features.ClassLabel(names=["x", "y"]), "filename": tfds.features.Text()}
    train = [f"data_256/a/{name}.jpg" for name in ("airfield/00000001", "arena/hockey/00000001", "airfield/00000002")]
    val = ["val_256/Places365_val_00000007.jpg"]
    splits = {
        "train": [{"label": 0, "filename": name} for name in train],
        "validation": [{"label": 1, "filename": name} for name in val],
    }
    prepare(data.data_dir, "places365_small", features, splits)
    lists = {
        "train": "train/airfield/00000002.jpg 0\ntrain/arena-hockey/00000001.jpg 1\n",
        "test": "val/arena-hockey/Places365_val_00000007.jpg 1\n",
    }
    for part, text in lists.items():
        (tmp_path / f"{part}.txt").write_text(text)
        data[f"{part}_list"] = str(tmp_path / f"{part}.txt")
    data.name = "places365_small"
    source = sources.load(data)
    assert source.split.parts["train"].labels.tolist() == [0, 1]
    assert [grey(e) for e in source.read("train", [1, 0])] == [1, 2]  # generated as numbers 1 and 2
    assert grey(source.read("test", [0])[0]) == 100
    (tmp_path / "train.txt").write_text(lists["train"] + "train/airfield/00000009.jpg 0\n")
    with pytest.raises(UserError, match=r"lacks 1 files of part train, such as 'train/airfield/00000009\.jpg'"):
        sources.load(data)
    (tmp_path / "train.txt").write_text(lists["train"] + "train/airfield/00000003.jpg zero\n")
    data.update({"bad_line": "skip", "bad_image_limit": 0.5})
    assert len(sources.load(data).split.parts["train"]) == 2


def test_a_damaged_or_half_copied_data_set_is_one_line(data):
    imagenet_lt(data.data_dir)
    data.update({"name": "imagenet_lt", "test_part": "test"})
    folder = pathlib.Path(data.data_dir) / "imagenet_lt" / "1.0.0"
    again = r"remove its folder and prepare it again: tfds build imagenet_lt --file_format=array_record --data"
    [shard] = folder.glob("imagenet_lt-train.*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{shard.name}: damaged, or copied in part \(\d records of 6\); {again}"):
        sources.load(data)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: damaged, or copied in part \(missing\); {again}"):
        sources.load(data)
    shard.write_bytes(content)
    for name in ("features.json", "dataset_info.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[:20])
        with pytest.raises(UserError, match=rf"1\.0\.0: damaged, or copied in part .*{again}"):
            sources.load(data)
        (folder / name).write_bytes(kept)
    assert sources.load(data).split.num_classes == 3


@pytest.mark.parametrize("keep", [0, 1000, 3000])
def test_a_short_file_of_cifar_is_one_line(data, keep):
    """Cut at the beginning, inside a record, and (hardly noticeable) with bytes changed in the middle."""
    features = {"label": tfds.features.ClassLabel(names=["a", "b"]), "id": tfds.features.Text()}
    records = {p: [{"label": i % 2, "id": f"{p}_{i:05d}"} for i in range(6)] for p in ("train", "test")}
    prepare(data.data_dir, "cifar10", features, records, file_format="tfrecord")
    data.update({"name": "cifar10", "image_size": 32})
    [shard] = (pathlib.Path(data.data_dir) / "cifar10" / "1.0.0").glob("cifar10-train.*")
    content = shard.read_bytes()
    shard.write_bytes(content[:keep] if keep < 3000 else content[:900] + b"?????" + content[905:])
    with pytest.raises(UserError, match=rf"{shard.name}: damaged, or copied in part .*: tfds build cifar10 --"):
        sources.load(data)
