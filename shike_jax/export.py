"""`python -m shike_jax.export`: a classifier as a serialised function that runs without this package."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export

from shike_jax import __version__
from shike_jax.cli.parser import Parser
from shike_jax.data.tensorflow_data import import_tensorflow
from shike_jax.errors import UserError, run_main
from shike_jax.serving import load_exported as exported
from shike_jax.serving.classifier import Classifier, load_classifier

PLATFORMS = ("cpu", "cuda", "tpu")
_EPILOG = """\
examples:
  python -m shike_jax.export --checkpoint=runs/mine --output=mine
  python mine/load.py photo.jpg
  python -m shike_jax.export --checkpoint=runs/mine --output=mine_tf --format=savedmodel

--format=jax writes function.jax (serialised by jax.export for CPU, CUDA and TPU, any batch size), weights.npz,
model.json (class names, preprocessing) and load.py, a short example that needs jax and numpy only.
--format=savedmodel writes a TensorFlow SavedModel (any batch size; TensorFlow is needed) and model.json.
Both take pixels, uint8 [N,S,S,3], and give probabilities [N,C] of the averaged experts and logits [M,N,C].
"""
PyTree = Any


def inference_function(classifier: Classifier) -> tuple[Callable[..., dict[str, jax.Array]], dict[str, np.ndarray]]:
    """The exported function and its weights.

    Returns:
      A pure function of (weights {path: array}, pixels uint8 [N,S,S,3]) giving `probabilities` float32 [N,C] and
      `logits` float32 [M,N,C]; and the weights.
    """

    def function(weights: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        logits = classifier.apply(unflatten_dict(weights, sep="/"), images)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits.mean(0))}

    weights = jax.tree.map(np.asarray, flatten_dict(classifier.variables, sep="/"))
    return function, weights


def write_jax(classifier: Classifier, folder: Path) -> None:
    """Writes function.jax, weights.npz and load.py into `folder`."""
    function, weights = inference_function(classifier)
    (batch,) = jax_export.symbolic_shape("b")
    size = classifier.image_size
    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in weights.items()}
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    lowered = jax_export.export(jax.jit(function), platforms=PLATFORMS)(shapes, images)
    (folder / "function.jax").write_bytes(lowered.serialize())
    np.savez(folder / "weights.npz", **cast(Any, weights))
    shutil.copyfile(exported.__file__, folder / "load.py")


def write_saved_model(classifier: Classifier, folder: Path) -> None:
    """Writes a TensorFlow SavedModel into `folder`: signature `serving_default`, input `images`.

    Raises:
      UserError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    from jax.experimental import jax2tf

    function, weights = inference_function(classifier)
    size = classifier.image_size
    converted = jax2tf.convert(
        function,
        polymorphic_shapes=[None, f"(b, {size}, {size}, 3)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    module.weights = {path: tf.Variable(array, trainable=False) for path, array in weights.items()}
    module.call = tf.function(
        lambda images: converted(module.weights, images),
        autograph=False,
        input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8, name="images")],
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.call})


WRITERS = {"jax": write_jax, "savedmodel": write_saved_model}


def describe(classifier: Classifier) -> dict[str, Any]:
    """What model.json holds."""
    size, meta = classifier.image_size, classifier.meta
    return {
        "class_names": list(classifier.class_names),
        "experts": len(classifier.network.depths),
        "heads": classifier.heads,
        "input": f"uint8 [N,{size},{size},3], RGB; values are scaled and normalised inside",
        "outputs": {"probabilities": "[N,C], softmax of the experts' mean logits", "logits": "[M,N,C]"},
        "image_size": size,
        "resize": classifier.resize,
        "preprocessing": f"short side to {classifier.resize} px (antialiased bilinear), central {size} x {size} px",
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "model": meta["model"],
        "split_hash": meta.get("split_hash"),
        "versions": {"shike_jax": __version__, "jax": jax.__version__},
    }


def export(classifier: Classifier, target: Path, kind: str = "jax") -> None:
    """Writes the folder `target`, wholly or not at all.

    Args:
      kind: `jax` or `savedmodel`.

    Raises:
      UserError: the folder holds something already or cannot be written; TensorFlow is needed and absent.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output={target}: exists and is not an empty folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            finished = Path(scratch) / "exported"
            finished.mkdir()
            WRITERS[kind](classifier, finished)
            (finished / "model.json").write_text(json.dumps(describe(classifier), indent=1) + "\n")
            finished.rename(target)  # replaces an empty folder
    except OSError as error:
        raise UserError(f"--output={target}: {error.strerror or error}") from error


def parser() -> Parser:
    """The command's options."""
    found = Parser("python -m shike_jax.export", "Writes a classifier for use without this package.", _EPILOG)
    found.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's work directory, its weights/STAGE, or converted weights",
    )
    found.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write; new or empty")
    found.add_argument(
        "--head", default="", metavar="SET", help="representation or classifier; default: what the run trained last"
    )
    found.add_argument("--format", default="jax", choices=tuple(WRITERS), help="default: jax")
    return found


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = parser().parse_args(argv)
    export(load_classifier(args.checkpoint, args.head), args.output, args.format)
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {', '.join(sorted(p.name for p in args.output.iterdir()))} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_main(main)
