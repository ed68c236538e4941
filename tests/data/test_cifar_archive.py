"""CIFAR from archives in the authors' two forms: the split of tensorflow-datasets, and what damaged ones are told."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax.config.loading import parse_config
from shike_jax.data import cifar_archive, sources
from shike_jax.errors import UserError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write(path, contents):
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python_form(path, names, batches, key="labels", meta=("batches.meta", "label_names")):
    """As the authors' files are: pickles of Python 2, whose texts are bytes."""
    contents = {
        name: pickle.dumps({key.encode(): labels.tolist(), b"data": planes(images)}, protocol=2)
        for name, (labels, images) in batches.items()
    }
    described = {meta[1].encode(): [name.encode() for name in names]}
    return write(path, {**contents, meta[0]: pickle.dumps(described, protocol=2)})


def binary_form(path, names, batches, described="batches.meta.txt", coarse=False):
    def records(labels, images):
        columns = [labels[:, None] // 5] if coarse else []
        return np.concatenate([*columns, labels[:, None], planes(images)], 1).astype(np.uint8).tobytes()

    contents = {f"{name}.bin": records(*batch) for name, batch in batches.items()}
    return write(path, {**contents, described: "\n".join([*names, ""]).encode()})


def data_of(path, name, **changes):
    data = schema.base().data
    data.update({"source": "archive", "name": name, "root": str(path), "verify": False, "imbalance_factor": 10.0})
    data.update(changes)
    return data


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The two forms of one small CIFAR-10, and its batches."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cifar10")

    def batch(count):
        labels = np.tile(np.arange(10), count // 10)
        return draw.permutation(labels), draw.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)

    batches = {**{f"data_batch_{i}": batch(20) for i in range(1, 6)}, "test_batch": batch(30)}
    return (
        python_form(folder / "python.tar.gz", NAMES, batches),
        binary_form(folder / "binary.tar.gz", NAMES, batches),
        batches,
    )


def test_both_forms_give_the_same_split_and_pixels(cifar10):
    one, other = (sources.load(data_of(path, "cifar10")) for path in cifar10[:2])
    labels = np.concatenate([cifar10[2][f"data_batch_{i}"][0] for i in range(1, 6)])
    images = np.concatenate([cifar10[2][f"data_batch_{i}"][1] for i in range(1, 6)])
    assert one.split.hash == other.split.hash and one.split.class_names == tuple(NAMES)
    assert one.split.class_counts.tolist() == [int(10 * 10 ** (-c / 9)) for c in range(10)]
    members = one.split.parts["train"].members
    for source in (one, other):
        np.testing.assert_array_equal(source.images["train"], images[members])
        np.testing.assert_array_equal(source.split.parts["train"].labels, labels[members])
        np.testing.assert_array_equal(source.images["test"], cifar10[2]["test_batch"][1])


@pytest.mark.parametrize("form", ["python", pytest.param("binary", marks=pytest.mark.slow)])
def test_cifar100_has_the_split_of_tfds(form, shared, tmp_path):
    """Of the images only those that the split keeps are put into the archive: it is written faster."""
    pytest.importorskip("tensorflow_datasets")
    from shike_jax.data import tfds_source
    from shike_jax.data.tensorflow_data import find_builder

    through_tfds = schema.base().data
    through_tfds.update({"source": "tfds", "name": "cifar100", "imbalance_factor": 50.0})
    through_tfds.data_dir = str(shared / "data" / "tfds")
    known = sources.load(through_tfds)
    batches = {}
    for part in ("train", "test"):
        _, labels, _ = tfds_source._read_encoded(find_builder("cifar100", through_tfds.data_dir), part)
        images = np.zeros((len(labels), 32, 32, 3), np.uint8)
        images[known.split.parts[part].members] = known.images[part]
        batches[part] = labels, images
    names, path = known.split.class_names, tmp_path / "cifar.tar.gz"
    if form == "python":
        python_form(path, names, batches, "fine_labels", ("meta", "fine_label_names"))
    else:
        binary_form(path, names, batches, "fine_label_names.txt", coarse=True)
    config, _ = parse_config([f"--config=cifar_lt:imbalance_factor=50,file={path}", "--config.data.verify=False"])
    found = sources.load(config.data)
    assert found.split.hash == known.split.hash
    for part, images in known.images.items():
        np.testing.assert_array_equal(found.images[part], images)


def test_an_archive_of_ones_own_needs_a_word(cifar10):
    with pytest.raises(UserError, match=r"its SHA-256 is \w{12}\.\.\.; expected one of cifar-10-python.*verify=False"):
        sources.load(data_of(cifar10[0], "cifar10", verify=True))


def test_the_official_digest_is_accepted(cifar10, monkeypatch):
    digest = hashlib.sha256(cifar10[0].read_bytes()).hexdigest()
    monkeypatch.setitem(cifar_archive.OFFICIAL, "cifar-10-python.tar.gz", digest)
    assert sources.load(data_of(cifar10[0], "cifar10", verify=True)).split.num_classes == 10


class Evil:
    def __reduce__(self):
        return print, ("called",)


def test_what_is_no_cifar_is_named(cifar10, tmp_path, capsys):
    (tmp_path / "cut.tar.gz").write_bytes(cifar10[0].read_bytes()[:1000])
    write(tmp_path / "other.tar.gz", {"readme.txt": b"x"})
    evil = {f"data_batch_{i}": pickle.dumps(Evil(), protocol=2) for i in range(1, 6)}
    write(tmp_path / "evil.tar.gz", evil)
    for name, said in (
        ("cut.tar.gz", "not an archive of CIFAR, or damaged"),
        ("other.tar.gz", "not an archive of CIFAR"),
        ("evil.tar.gz", "it asks for __builtin__.print|it asks for builtins.print"),
        ("absent.tar.gz", "No such file"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            sources.load(data_of(tmp_path / name, "cifar10"))
        assert name in str(caught.value)
    with pytest.raises(UserError, match=r"is cifar10; expected cifar100"):
        sources.load(data_of(cifar10[1], "cifar100"))
    assert "called" not in capsys.readouterr().out
