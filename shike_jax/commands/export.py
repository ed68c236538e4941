"""`python -m shike_jax export`: a classifier as a serialised function that runs without this package."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export

from shike_jax.commands import classifiers
from shike_jax.common import atomic
from shike_jax.common.buckets import downloaded, place
from shike_jax.common.parser import Parser
from shike_jax.common.provenance import versions
from shike_jax.common.text import parse_json
from shike_jax.config import own_files
from shike_jax.data import images
from shike_jax.data.tensorflow_data import import_tensorflow
from shike_jax.errors import UserError, naming
from shike_jax.evaluation import load_exported
from shike_jax.evaluation.classifier import Classifier, make_classifier

PLATFORMS = ("cpu", "cuda", "tpu")
_EPILOG = """\
examples:
  python -m shike_jax export --checkpoint=runs/mine --output=mine
  python mine/load.py photo.jpg

--format=jax writes function.jax (serialised by jax.export for CPU, CUDA and TPU, any batch size), weights.npz,
model.json (class names, preprocessing, versions) and load.py, a short example that needs jax, numpy and flatbuffers
(which jax.export imports) only. JAX promises to read function.jax for six months after the release that wrote it;
--again=DIR makes it again with the JAX that is installed, from the weights.npz and model.json next to it alone.
--format=savedmodel writes a TensorFlow SavedModel (any batch size; TensorFlow is needed) and model.json.
Both take pixels, uint8 [N,S,S,3], and give probabilities [N,C] of the averaged experts and logits [M,N,C].
"""


def inference_function(classifier: Classifier) -> tuple[Callable[..., dict[str, jax.Array]], dict[str, np.ndarray]]:
    """A pure function of (weights {path: array}, pixels uint8 [N,S,S,3]), and the weights.

    It gives `probabilities` float32 [N,C] and `logits` float32 [M,N,C].
    """

    def function(weights: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        logits = classifier.apply(unflatten_dict(weights, sep="/"), images)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits.mean(0))}

    weights = jax.tree.map(np.asarray, flatten_dict(classifier.variables, sep="/"))
    return function, weights


def write_jax(classifier: Classifier, folder: Path) -> None:
    """Writes function.jax, weights.npz and load.py."""
    function, weights = inference_function(classifier)
    (folder / "function.jax").write_bytes(_serialised(classifier, function, weights))
    np.savez(folder / "weights.npz", **cast(Any, weights))
    source = Path(load_exported.__file__).read_text(encoding="utf-8")
    functions = "\n\n".join(inspect.getsource(function) for function in (images.orientation, images.to_rgb))
    # load.py must run without this package, of which it needs nothing but these two.
    written = source.replace("from shike_jax.data.images import orientation, to_rgb\n", f"\n{functions}\n")
    (folder / "load.py").write_text(written, encoding="utf-8")


def _serialised(classifier: Classifier, function: Callable[..., Any], weights: dict[str, np.ndarray]) -> bytes:
    """`function` for all platforms and any number of images, as `jax.export` stores it."""
    (batch,) = jax_export.symbolic_shape("b")
    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in weights.items()}
    images = jax.ShapeDtypeStruct((batch, *classifier.input.shape), classifier.input.dtype)
    return bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(shapes, images).serialize())


def write_saved_model(classifier: Classifier, folder: Path) -> None:
    """Writes a TensorFlow SavedModel: signature `serving_default`, input `images`."""
    tf = import_tensorflow("--format=savedmodel")
    from jax.experimental import jax2tf

    function, weights = inference_function(classifier)
    one = classifier.input
    converted = jax2tf.convert(
        function,
        polymorphic_shapes=[None, f"({', '.join(map(str, ('b', *one.shape)))})"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    module.weights = {path: tf.Variable(array, trainable=False) for path, array in weights.items()}

    def call(images: Any) -> dict[str, Any]:
        count = tf.shape(images)[0]
        absent = tf.zeros((1 - tf.minimum(count, 1), *one.shape), one.dtype.name)  # JAX takes at least one image
        found = converted(module.weights, tf.concat([images, absent], 0))
        return {name: values[..., :count, :] for name, values in found.items()}

    signature = [tf.TensorSpec((None, *one.shape), one.dtype.name, name="images")]
    module.call = tf.function(call, autograph=False, input_signature=signature)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.call})


WRITERS = {"jax": write_jax, "savedmodel": write_saved_model}


def describe(classifier: Classifier) -> dict[str, Any]:
    """What model.json holds."""
    size, meta, one = classifier.image_size, classifier.meta, classifier.input
    pixels = f"uint8 [N,{size},{size},3], RGB; values are scaled and normalised inside"
    return {
        "class_names": list(classifier.class_names),
        "experts": classifier.experts,
        "heads": classifier.heads,
        "mirror": classifier.mirror,
        "input": pixels if classifier.is_of_images else f"{one.dtype} {['N', *one.shape]}",
        "example": {"shape": list(one.shape), "dtype": one.dtype.name},
        "files": meta.get("files") or {},
        "outputs": {"probabilities": "[N,C], softmax of the experts' mean logits", "logits": "[M,N,C]"},
        "image_size": size,
        "resize": classifier.resize,
        "preprocessing": f"short side to {classifier.resize} px (antialiased bilinear), central {size} x {size} px",
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "model": meta["model"],
        "split_hash": meta.get("split_hash"),
        "dtype": str(np.dtype(classifier.dtype)),
        "versions": versions(),
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
        "lasts": "function.jax can be read for at least six months of newer releases of jax; "
        "python -m shike_jax export --again=THIS_FOLDER makes it again",
    }


def export(classifier: Classifier, target: Path, kind: str = "jax") -> None:
    """Writes the folder `target`, which is new or empty, wholly or not at all, by one of `WRITERS`."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output={target}: exists and is not an empty folder")
    with naming(f"--output={target}"), atomic.new_folder(target) as finished:
        finished.mkdir()
        WRITERS[kind](classifier, finished)
        atomic.write_json(finished / "model.json", describe(classifier))


def read_export(folder: Path) -> Classifier:
    """The classifier of a folder that `export` wrote, from its model.json and weights.npz alone."""
    with naming(f"--again={folder}", "a folder that this command wrote"):
        meta = parse_json((folder / "model.json").read_text(encoding="utf-8"))
        with downloaded(folder / "weights.npz") as local, np.load(local, allow_pickle=False) as arrays:
            weights = dict(arrays)
        described = {**meta, "num_classes": len(meta["class_names"])}
        return make_classifier(described, unflatten_dict(weights, sep="/"), meta.get("dtype", "float32"), folder)


def export_again(folder: Path) -> str:
    """Replaces function.jax, and model.json with it, by what the installed JAX writes; returns the version before.

    weights.npz stays, and so does load.py, which may have been changed.
    """
    classifier = read_export(folder)
    serialised = _serialised(classifier, *inference_function(classifier))
    with naming(f"--again={folder}"):
        with atomic.replacing(folder / "function.jax") as partial:
            partial.write_bytes(serialised)
        atomic.write_json(folder / "model.json", {**classifier.meta, **describe(classifier)})
    return str(classifier.meta.get("versions", {}).get("jax", "an unknown version"))


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax export", "Writes a classifier for use without this package.", _EPILOG)
    classifiers.add_options(parser, required=False)
    parser.add_argument("--output", type=place, metavar="DIR", help="folder to write; new or empty")
    parser.add_argument("--again", type=place, metavar="DIR", help="an export whose function is made again, in place")
    parser.add_argument("--format", default="jax", choices=tuple(WRITERS), help="default: jax")
    args = parser.parse_args(argv)
    if args.again:
        own_files.register(args.config)
        if args.checkpoint or args.output:
            raise UserError(f"--again={args.again}: expected neither --checkpoint nor --output with it")
        before = export_again(args.again)
        print(f"{args.again}: function.jax of jax {before} made again with jax {jax.__version__}")
        return
    if not args.checkpoint or not args.output:
        raise UserError("--checkpoint and --output are needed, or --again; see python -m shike_jax export --help")
    export(classifiers.loaded(args), args.output, args.format)
    print(f"{args.output}: {', '.join(sorted(p.name for p in args.output.iterdir()))}")
