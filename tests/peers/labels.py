"""`python -m tests.peers.labels`: the labels of a tfds data set, read here and by decoding record after record.

The other side is how they were read before: through tfds's own source with random access, its images left encoded.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shike_jax.benchmark import measure
from shike_jax.common.command import run_main
from shike_jax.common.parser import Parser
from shike_jax.data import tfds_large
from shike_jax.data.tensorflow_data import find_builder, import_tfds

CLASSES = 1000
_EPILOG = """\
With --data=DIR the records are written there once and found by the next call. The files were just written or read, so
they come from memory: disks are not measured.
"""


def prepare(folder: str, records: int, size: int, shards: int) -> None:
    """Writes a data set with the features of ImageNet-LT: `size` bytes that nobody decodes in place of each image."""
    tfds = import_tfds()

    def info(self: Any) -> Any:
        label = tfds.features.ClassLabel(num_classes=CLASSES)
        features = {"image": tfds.features.Image(), "label": label, "file_name": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    rng = np.random.default_rng(0)
    image = rng.bytes(size)
    labels = rng.integers(0, CLASSES, records).tolist()
    rows = [{"label": label, "file_name": f"{i}.JPEG", "image": None} for i, label in enumerate(labels)]

    body = {
        "name": "imagenet_lt",
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {
            "train": ((i, {**row, "image": io.BytesIO(image)}) for i, row in enumerate(rows))
        },
        "_generate_examples": lambda self: iter(()),
    }
    with tfds.core.registered.skip_registration():
        kind = type("ImagenetLt", (tfds.core.GeneratorBasedBuilder,), body)
    builder = kind(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m tests.peers.labels", "Times how the labels of a tfds data set are read.", _EPILOG)
    parser.add_argument("--data", metavar="DIR", help="where the records are kept; default: a temporary folder")
    parser.add_argument("--records", type=measure.positive, default=100_000, metavar="N")
    parser.add_argument("--bytes", type=measure.positive, default=12_000, metavar="N", help="of an image")
    parser.add_argument("--shards", type=measure.positive, default=16, metavar="N", help="files of the data set")
    parser.add_argument("--repeats", type=measure.positive, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    measure.check_writable(args.json)
    with contextlib.ExitStack() as stack:
        folder = args.data or stack.enter_context(tempfile.TemporaryDirectory())
        if not os.path.isdir(os.path.join(folder, "imagenet_lt")):
            prepare(folder, args.records, args.bytes, args.shards)
        builder = find_builder("imagenet_lt", folder, "array_record")
        records, labels = tfds_large._records(builder, "train"), {}

        def read_here(_: int) -> None:
            labels["read_here"] = tfds_large._read_column(builder, "train", "label")

        def decoded_by_tfds(_: int) -> None:
            labels["decoded_by_tfds"] = [record["label"] for record in records]

        sides = {side.__name__: side for side in (read_here, decoded_by_tfds)}
        took = measure.in_turns(sides, args.repeats)
        np.testing.assert_array_equal(*labels.values())
        files = len(builder.info.splits["train"].filepaths)
    found = {side: round(statistics.median(each), 3) for side, each in took.items()}
    print(json.dumps(found, indent=1))
    result = {
        "seconds": found,
        "all_seconds": {side: [round(one, 3) for one in each] for side, each in took.items()},
        "records": len(records),
        "files": files,
        "bytes_of_an_image": args.bytes,
        **measure.origin("python -m tests.peers.labels", argv),
    }
    measure.write(result, args.json)


if __name__ == "__main__":
    run_main(main)
