"""Every network of the package in PyTorch: `convert --reverse`, docs/pytorch_model.py, the same logits."""

import importlib.util

import jax
import numpy as np
import pytest

from shike_jax.convert.checkpoint import convert, reverse
from shike_jax.models import DEFAULTS, build_model
from shike_jax.storage.weights import load_weights, save_weights
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")
torch = pytest.importorskip("torch")

NETWORKS = {
    "SHIKE on digits": {"backbone": "resnet20", "depths": (1, 2, 1), "width": 4},
    "SHIKE, shortcut A": {"backbone": "resnet32", "depths": (2, 1), "width": 8, "shortcut": "A"},
    "SHIKE for photographs": {"backbone": "resnet50", "depths": (1, 2, 3), "width": 8, "blocks": (1, 1, 2, 1)},
    "SHIKE, linear": {"backbone": "resnet18", "depths": (3, 1), "width": 8, "head": "linear", "align_last_relu": True},
    "ResNeXt": {"backbone": "resnext50_32x4d", "depths": (1, 2), "width": 16, "blocks": (1, 1, 1, 1)},
    "H2T": {"backbone": "resnet32", "depths": (1,), "fusion": False},
    "LWS": {"backbone": "resnet20", "depths": (1,), "fusion": False, "head": "linear", "second_head": "scaled"},
    "DisAlign": {"backbone": "resnet20", "depths": (1, 2), "width": 4, "head": "linear", "second_head": "aligned"},
}


def written(folder, settings):
    """A checkpoint of a network with drawn weights: nothing is left at a value that hides a mistake."""
    model, draw = {**DEFAULTS, **settings}, np.random.RandomState(3)
    network = build_model(model, 7)
    shapes = jax.eval_shape(lambda key: network.init(key, np.zeros((1, 32, 32, 3))), jax.random.key(0))

    def fill(path, leaf):
        name, r = path[-1].key, draw.standard_normal(leaf.shape).astype(np.float32)
        if len(leaf.shape) == 4:
            return r * np.float32(np.sqrt(2 / np.prod(leaf.shape[:3])))
        return 1 + 0.1 * np.abs(r) if name in ("scale", "var") else 0.1 * r

    variables = jax.tree_util.tree_map_with_path(fill, dict(shapes))
    view = {"image_size": 32, "resize": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "class_names": list("abcdefg")}
    save_weights(folder, variables, {"model": model, "num_classes": 7, "heads": "classifier", **view})
    return network, variables


def in_pytorch(path):
    spec = importlib.util.spec_from_file_location("pytorch_model", ROOT / "docs" / "pytorch_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(path)


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_pytorch_gives_the_same_logits(settings, tmp_path):
    network, variables = written(tmp_path / "weights", settings)
    reverse("", tmp_path / "weights", tmp_path / "w.safetensors")
    theirs, facts = in_pytorch(tmp_path / "w.safetensors")
    assert (facts["class_names"], facts["image_size"]) == (list("abcdefg"), 32)
    images = np.random.RandomState(4).standard_normal((3, 32, 32, 3)).astype(np.float32)
    for heads in ("representation", "classifier"):
        ours = np.asarray(network.apply(variables, images, heads))
        with torch.no_grad():
            logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), heads).numpy()
        assert logits.shape == ours.shape == (len(settings["depths"]), 3, 7)
        assert np.abs(ours).max() > 0.1
        np.testing.assert_allclose(logits, ours, rtol=0, atol=1e-5 * max(1, np.abs(ours).max()))


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    _, variables = written(tmp_path / "weights", NETWORKS["SHIKE for photographs"])
    count = reverse("", tmp_path / "weights", tmp_path / "w.safetensors")
    assert convert("", tmp_path / "w.safetensors", tmp_path / "back") == count
    back, meta = load_weights(tmp_path / "back")
    assert (meta["class_names"], meta["heads"], meta["image_size"]) == (list("abcdefg"), "classifier", 32)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
