"""Names and layouts against the golden files and the published architectures; warm start from a backbone."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax.convert.names import MODELS, model_settings, to_state_dict, to_variables
from shike_jax.convert.warm import warm_start
from shike_jax.errors import UserError
from shike_jax.models import build_model
from tests.conftest import GOLDEN
from tests.convert.weights import fill, shapes_of


def golden_shapes(file):
    shapes = (tuple(int(size) for size in str(shape).split(",")) for shape in file["shapes"])
    return dict(zip(map(str, file["names"]), shapes, strict=True))


@pytest.mark.parametrize(
    ("name", "golden", "classes"),
    [("shike_resnet32_cifar", "shike_resnet32_cifar", 100), ("resnet50", "torchvision_resnet50", 17)],
)
def test_the_spelled_out_names_are_the_golden_ones(name, golden, classes):
    with np.load(GOLDEN / f"{golden}.npz") as file:
        assert shapes_of(name, classes) == golden_shapes(file)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact(name):
    state = fill(shapes_of(name, 5), seed=1)
    variables, classes = to_variables(name, state)
    back = to_state_dict(name, variables)
    assert classes == 5
    assert sorted(back) == sorted(state)
    for key, array in state.items():
        assert (back[key].dtype, back[key].shape, back[key].tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_layouts_of_a_torchvision_network():
    state = fill(shapes_of("resnext50_32x4d", 5), seed=2)
    variables, _ = to_variables("resnext50_32x4d", state)
    flat = flatten_dict(variables, sep="/")
    grouped = flat["params/expert0/stage4/block2/conv2/kernel"]
    assert grouped.shape == (3, 3, 32, 1024)
    assert grouped[0, 2, 31, 1000] == state["layer4.2.conv2.weight"][1000, 31, 0, 2]
    for heads in ("representation", "classifier"):
        assert flat[f"params/heads/{heads}/expert0/kernel"][2000, 3] == state["fc.weight"][3, 2000]
        np.testing.assert_array_equal(flat[f"params/heads/{heads}/expert0/bias"], state["fc.bias"])
    shortcut = state["layer3.0.downsample.1.running_var"]
    np.testing.assert_array_equal(flat["batch_stats/trunk/stage3/block0/shortcut_bn/var"], shortcut)


def test_layouts_of_the_authors_network():
    state = fill(shapes_of("shike_resnet32_cifar", 5), seed=3)
    flat = flatten_dict(to_variables("shike_resnet32_cifar", state)[0], sep="/")
    np.testing.assert_array_equal(flat["params/heads/representation/expert2/kernel"], state["classifiers.2.weight"])
    np.testing.assert_array_equal(flat["params/heads/classifier/expert1/kernel"], state["rt_classifiers.1.weight"])
    aligned = state["shallow_exps.2.convs.StridedConv1.conv.0.weight"]
    assert flat["params/expert2/align/conv1/kernel"][1, 2, 30, 60] == aligned[60, 30, 1, 2]
    np.testing.assert_array_equal(flat["params/expert1/stage3/block4/bn2/scale"], state["layer3s.1.4.bn2.weight"])


def test_golden_logits_of_the_torchvision_backbone():
    with np.load(GOLDEN / "torchvision_resnet50.npz") as golden:
        seed, logits = int(golden["weights_seed"]), golden["eval_logits"]
        variables, classes = to_variables("resnet50", fill(golden_shapes(golden), seed))
    images = np.random.RandomState(seed + 1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    read = jax.jit(build_model(model_settings("resnet50"), classes).apply)(variables, images)[0]
    assert np.abs(read - logits).max() < 1e-4 * np.abs(logits).max()


def test_half_precision_is_widened_exactly():
    state = {key: array.astype(np.float16) for key, array in fill(shapes_of("shike_resnet32_cifar", 2), 4).items()}
    back = to_state_dict("shike_resnet32_cifar", to_variables("shike_resnet32_cifar", state)[0])
    assert all(back[key].dtype == np.float32 and np.array_equal(back[key], array) for key, array in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bn1.bias"), r"missing: bn1\.bias$"),
        (lambda s: s.update(fc=s["conv1.weight"]), r"not expected: fc$"),
        (lambda s: s.update({"conv1.weight": np.zeros((16, 3, 5, 5), np.float32)}), r"conv1\.weight \(16, 3, 5, 5\)"),
        (lambda s: s.update({"bn1.bias": np.zeros(16, np.int64)}), r"bn1\.bias has dtype int64"),
        (lambda s: s.pop("classifiers.0.weight"), r"missing: the matrix classifiers\.0\.weight"),
        (lambda s: [s.pop(f"layer1.{i}.conv1.weight") for i in range(5)], r"layer1\.3\.conv1\.weight and 1 more$"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    state = fill(shapes_of("shike_resnet32_cifar", 3), seed=5)
    change(state)
    with pytest.raises(UserError, match=message):
        to_variables("shike_resnet32_cifar", state)


def test_number_of_classes_is_insisted_on():
    state = fill(shapes_of("shike_resnet32_cifar", 3), seed=5)
    with pytest.raises(UserError, match=r"classifiers\.\d\.weight \(64, 3\) instead of \(64, 4\)"):
        to_variables("shike_resnet32_cifar", state, num_classes=4)


def test_two_different_classifiers_need_a_choice():
    state = fill(shapes_of("resnet50", 3), seed=6)
    variables, _ = to_variables("resnet50", state)
    variables["params"]["heads"]["classifier"]["expert0"]["bias"] = np.arange(3, dtype=np.float32)
    with pytest.raises(UserError, match="choose it by --head"):
        to_state_dict("resnet50", variables)
    np.testing.assert_array_equal(to_state_dict("resnet50", variables, "classifier")["fc.bias"], [0, 1, 2])
    np.testing.assert_array_equal(to_state_dict("resnet50", variables, "representation")["fc.bias"], state["fc.bias"])


def random_variables(settings, classes, seed):
    """Random values in the tree of a network, without compiling its initialisation."""
    network, rng = build_model(settings, classes), np.random.RandomState(seed)
    tree = jax.eval_shape(lambda key: network.init(key, np.zeros((1, 32, 32, 3))), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), tree)


@pytest.fixture(scope="module")
def small_networks():
    """A plain bottleneck network and the SHIKE network of the same backbone, as variables of their own seeds."""
    settings = model_settings("resnet50") | {"width": 4, "blocks": (1, 2, 1, 1)}
    shike = settings | {"depths": (1, 3), "fusion": True, "head": "cosine"}
    return random_variables(settings, 7, seed=0), random_variables(shike, 5, seed=1)


def test_warm_start_copies_shared_stages_and_the_last_one_into_every_expert(small_networks):
    backbone, fresh = small_networks
    merged, report = warm_start(backbone, fresh)
    source, target, flat = (flatten_dict(tree, sep="/") for tree in (backbone, fresh, merged))
    np.testing.assert_array_equal(
        flat["params/trunk/stage2/block1/conv2/kernel"], source["params/trunk/stage2/block1/conv2/kernel"]
    )
    for m in (0, 1):
        np.testing.assert_array_equal(
            flat[f"params/expert{m}/stage4/block0/conv1/kernel"], source["params/expert0/stage4/block0/conv1/kernel"]
        )
        align = f"params/expert{m}/align/conv0/kernel"
        np.testing.assert_array_equal(flat[align], target[align])
    assert {path: leaf.shape for path, leaf in flat.items()} == {path: leaf.shape for path, leaf in target.items()}
    assert sorted(report.loaded + report.fresh) == sorted(target)
    assert all("/heads/" in path or "/align/" in path for path in report.fresh)
    assert sorted(report.left_out) == sorted(path for path in source if "/heads/" in path)
    assert "left out: 4 arrays (heads/classifier, heads/representation)" in report.summary()


def test_warm_start_from_another_backbone_is_refused(small_networks):
    _, fresh = small_networks
    other = model_settings("resnet50") | {"width": 8, "blocks": (1, 1, 1, 1)}
    with pytest.raises(UserError, match="has shape"):
        warm_start(random_variables(other, 7, seed=2), fresh)
    with pytest.raises(UserError, match="has no"):
        warm_start({"params": {}, "batch_stats": {}}, fresh)
