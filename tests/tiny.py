"""A checkpoint of a tiny untrained network: enough to test what is done with checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax import config as schema
from shike_jax import models
from shike_jax.storage.weights import save_weights

SIZE, RESIZE, CLASSES = 16, 20, ("ant", "bee", "cat")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def write_checkpoint(folder: Path, **meta) -> Path:
    """Saves random weights, drawn by NumPy so that nothing is compiled; returns the folder."""
    config = schema.base()
    config.model.update({"backbone": "resnet20", "width": 4, "blocks": (1, 1, 1)})
    settings = schema.to_plain(config.model)
    network = models.build_model(settings, len(CLASSES))
    images = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lambda key: network.init(key, images), jax.random.key(0))
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        r = draw.standard_normal(leaf.shape).astype(np.float32)
        if len(leaf.shape) == 4:
            return r * np.sqrt(2.0 / np.prod(leaf.shape[:3])).astype(np.float32)
        return 1 + 0.1 * np.abs(r) if path[-1].key in ("scale", "var") else 0.1 * r

    variables = jax.tree_util.tree_map_with_path(fill, dict(shapes))
    known = {
        "model": settings,
        "num_classes": len(CLASSES),
        "class_names": list(CLASSES),
        "image_size": SIZE,
        "resize": RESIZE,
        "mean": list(MEAN),
        "std": list(STD),
        "heads": "classifier",
    }
    save_weights(folder, variables, {**known, **meta})
    return folder
