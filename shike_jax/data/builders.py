"""Long-tailed data sets as builders of tensorflow-datasets; importing this module registers them.

    import tensorflow_datasets as tfds
    import shike_jax.data.builders

    tfds.builder("cifar100_lt/if100", data_dir="data").download_and_prepare()

(`tfds build cifar100_lt/if100 --imports=shike_jax.data.builders --data_dir=data` does the same.) From then on
`tfds.load("cifar100_lt/if100", data_dir="data")` needs nothing of this package. The metadata hold `class_counts`, the
training images of each class, and `split_hash`, that of the same split here.

    cifar10_lt/ifN, cifar100_lt/ifN   from tfds's cifar10 and cifar100, in the same data_dir, $TFDS_DATA_DIR or loaded
    imagenet_lt_lists                 ImageNet_LT_{train,val,test}.txt and the archives of ILSVRC 2012
    places_lt                         Places_LT_{train,val,test}.txt and the archives of Places365
    inaturalist18_lt                  iNaturalist18_{train,val}.txt and the archive train_val2018

Of the last three you put the list files and the archives (.tar, .tar.gz, .zip; archives in archives too), or the
folders that they unpack to, into DATA_DIR/downloads/manual (or `--manual_dir`).
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shike_jax.config import base
from shike_jax.data import lists, tfds_source
from shike_jax.data.tensorflow_data import import_tfds
from shike_jax.data.types import Report
from shike_jax.errors import UserError, naming

FACTORS = (10, 20, 50, 100, 200)
LISTED = {  # name: that of the configuration's split, and the list file of each part
    "imagenet_lt_lists": ("imagenet_lt", {part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")}),
    "places_lt": ("places_lt", {part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")}),
    "inaturalist18_lt": ("i_naturalist2018", {part: f"iNaturalist18_{part}.txt" for part in ("train", "val")}),
}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_PARTS = {"train": "train", "val": "validation", "test": "test"}  # as tfds calls them


def _register() -> None:
    tfds = import_tfds()
    for name in ("cifar10", "cifar100"):
        _cifar(tfds, name)
    for name, (split, files) in LISTED.items():
        _listed(tfds, name, split, files)


def _class(tfds: Any, name: str, image: Any, methods: dict[str, Any], **body: Any) -> None:
    """Defines, and so registers, a builder whose records have an id, an image and a label."""

    def info(self: Any) -> Any:
        features = {"id": tfds.features.Text(), "image": image(), "label": tfds.features.ClassLabel()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{name}, long-tailed; metadata: class_counts and split_hash",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    members = {"__module__": __name__, "VERSION": tfds.core.Version("1.0.0"), "name": name, "_info": info}
    type(name.title().replace("_", ""), (tfds.core.GeneratorBasedBuilder,), {**members, **methods, **body})


def _describe(builder: Any, split: Any) -> None:
    """Puts what is known of a split into the builder's information."""
    builder.info.features["label"].names = list(split.class_names)
    builder.info.metadata.update(class_counts=split.class_counts.tolist(), split_hash=split.hash, rule=split.rule)


def _cifar(tfds: Any, name: str) -> None:
    def split_generators(self: Any, _: Any) -> dict[str, Any]:
        # ROOT/cifar10_lt/if100/VERSION; while it is made, the last folder has another name.
        folder = str(self.data_dir).rstrip("/").rsplit("/", 3)[0]
        data = base().data
        factor = float(self.builder_config.name.removeprefix("if"))
        data.update({"source": "tfds", "name": name, "data_dir": folder, "imbalance_factor": factor})
        common = os.environ.get("TFDS_DATA_DIR")
        if not os.path.isdir(os.path.join(folder, name)):
            if common and os.path.isdir(os.path.join(common, name)):
                data.data_dir = ""
            else:
                tfds.builder(name, data_dir=folder).download_and_prepare()
        source = tfds_source.load(data)
        _describe(self, source.split)
        return {part: self._generate_examples(source, part) for part in source.split.parts}

    def generate(self: Any, source: Any, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
        one = source.split.parts[part]
        for member, label, image in zip(one.members, one.labels, source.images[part], strict=True):
            key = f"{part}_{member:05d}"
            yield key, {"id": key, "image": image, "label": int(label)}

    configs = [
        tfds.core.BuilderConfig(name=f"if{n}", description=f"imbalance factor {n}, the authors' rule") for n in FACTORS
    ]
    methods = {"_split_generators": split_generators, "_generate_examples": generate}
    image = lambda: tfds.features.Image(shape=(32, 32, 3))  # noqa: E731
    _class(tfds, f"{name}_lt", image, methods, BUILDER_CONFIGS=configs)


def _listed(tfds: Any, name: str, split_name: str, files: dict[str, str]) -> None:
    def split_generators(self: Any, manager: Any) -> dict[str, Any]:
        folder = Path(manager.manual_dir)
        data = base().data
        data.update({"profile": "natural", **{f"{part}_list": str(folder / file) for part, file in files.items()}})
        report = Report()
        split = lists.split_of_lists(lists.load_lists(data, report), data, split_name, report)
        _describe(self, split)
        return {_PARTS[part]: self._generate_examples(folder, one) for part, one in split.parts.items()}

    def generate(self: Any, folder: Path, part: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        label = dict(zip(part.members, part.labels, strict=True))
        found, left = _by_ending(list(label)), set(label)
        for place, content in _images(folder):
            member = next((found[end] for end in _endings(place) if found.get(end)), "")
            if member in left:
                left.discard(member)
                yield member, {"id": member, "image": io.BytesIO(content), "label": int(label[member])}
        if left:
            absent = f"{len(left):,} listed images are in no archive below {folder}"
            raise UserError(f"{name}: {absent}, such as {min(left)}")

    about = f"put {', '.join(files.values())} and the archives of the images there"
    methods = {"_split_generators": split_generators, "_generate_examples": generate}
    image = lambda: tfds.features.Image(encoding_format="jpeg")  # noqa: E731
    _class(tfds, name, image, methods, MANUAL_DOWNLOAD_INSTRUCTIONS=about)


def _endings(path: str) -> list[str]:
    """`a/b/c.jpg`, `b/c.jpg`, `c.jpg`: archives have other folders above the images than lists.

    With `a-b/c.jpg`, as the class `arena-hockey` lies in `arena/hockey` in some archives of Places365. A name that is a
    number alone is none of them: images of many classes have it.
    """
    *folders, name = path.split("/")
    below = (folders[start:] for start in range(len(folders)))
    found = [path, *(f"{joint.join(part)}/{name}" for part in below for joint in "/-")]
    return list(dict.fromkeys(found if name.partition(".")[0].isdecimal() else [*found, name]))


def _by_ending(members: list[str]) -> dict[str, str]:
    """Ending to the one member that has it; empty where several have it."""
    found: dict[str, str] = {}
    for member in members:
        for ending in _endings(member):
            found[ending] = "" if ending in found else member
    return found


def _images(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the archives and folders in `folder` and its bytes; lists and the like are left out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name.endswith(_ARCHIVES):
            with naming(path, "a whole archive"), path.open("rb") as file:
                yield from _members(name, file)
        elif path.is_file() and path.suffix not in (".txt", ".gz"):
            yield name, path.read_bytes()


def _members(name: str, file: Any) -> Iterator[tuple[str, bytes]]:
    """The files in an archive; those of an archive inside it are named as if in a folder of its name."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            inside = ((one.filename, archive.open(one)) for one in archive.infolist() if not one.is_dir())
            yield from itertools.chain.from_iterable(_one(*entry) for entry in inside)
        return
    with tarfile.open(fileobj=file) as archive:
        opened = ((one.name, archive.extractfile(one)) for one in archive if one.isfile())
        yield from itertools.chain.from_iterable(_one(*entry) for entry in opened)


def _one(name: str, file: Any) -> Iterator[tuple[str, bytes]]:
    if name.endswith(_ARCHIVES):
        folder = name.partition(".")[0]
        yield from ((f"{folder}/{inner}", content) for inner, content in _members(name, io.BytesIO(file.read())))
    else:
        yield name.removeprefix("./"), file.read()


_register()
