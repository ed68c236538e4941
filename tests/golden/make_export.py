"""Writes export_jax_0_10 beside it, under JAX 0.10: `python -m tests.golden.make_export` in the repository's root.

The logits beside it come from prediction, not from the exported function.
"""

import pathlib
import shutil
import tempfile

import jax
import numpy as np

from shike_jax.commands.export import export
from shike_jax.evaluation.classifier import BatchedLogits, load
from tests import tiny

TARGET = pathlib.Path(__file__).parent / "export_jax_0_10"

if __name__ == "__main__":
    assert jax.__version__.startswith("0.10."), jax.__version__
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        classifier = load(str(tiny.write_checkpoint(pathlib.Path(scratch) / "weights")))
    export(classifier, TARGET)
    (TARGET / "load.py").unlink()  # the test takes that of the package
    images = np.random.default_rng(1).integers(0, 256, (5, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    logits = BatchedLogits(classifier, 5)(images)
    shares = np.exp(logits.mean(0, dtype=np.float64))
    shares /= shares.sum(-1, keepdims=True)
    np.savez(
        TARGET / "expected.npz", images=images, logits=logits, probabilities=shares / shares.sum(-1, keepdims=True)
    )
