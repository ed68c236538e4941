"""Shapes and structure of the networks for every arrangement that the tables need."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax import config
from shike_jax.cluster import parallel
from shike_jax.errors import UserError
from shike_jax.models import build_model, init_variables, initial, num_parameters
from shike_jax.models.layers import BatchNorm
from shike_jax.training.steps import averaged_over_devices

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def model(**changes):
    settings = config.base().model
    settings.update({"width": 4, "blocks": (1, 1, 1), "backbone": "resnet20", **changes})
    return settings


TABLE5 = [(1,), (2,), (3,), (1, 2), (2, 3), (1, 3), (1, 2, 3), (1, 2, 3, 1), (1, 2, 3, 2), (1, 2, 3, 3)]


@pytest.mark.parametrize(
    ("backbone", "depths"),
    [*(("resnet50", depths) for depths in TABLE5), ("resnext50_32x4d", (1, 2, 3)), ("resnet152", (1, 2, 3))],
)
def test_every_depth_arrangement_of_table_5(backbone, depths):
    """Shapes only (nothing is compiled): alignment ends in the deep features' shape whatever the depth."""
    network = build_model({**config.base().model, "backbone": backbone, "depths": depths}, 17)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    found = jax.eval_shape(lambda v, x: network.apply(v, x, method="features"), variables, image)
    assert [f.shape for f in found["shared"]] == [(2, 16, 16, 256), (2, 8, 8, 512), (2, 4, 4, 1024)]
    for part in ("deep", "aligned", "fused"):
        assert [f.shape for f in found[part]] == [(2, 2, 2, 2048)] * len(depths)
    for m, depth in enumerate(depths):
        convs = [k for k in variables["params"][f"expert{m}"]["align"] if k.startswith("conv")]
        assert len(convs) == 4 - depth
    logits = jax.eval_shape(network.apply, variables, image)
    assert logits.shape == (len(depths), 2, 17) and logits.dtype == jnp.float32


def test_fusion_is_the_product_of_aligned_and_deep():
    network = build_model(model(), 5)
    variables = init_variables(network, 0, 16)
    images = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    found = network.apply(variables, images, method="features")
    for aligned, deep, fused in zip(found["aligned"], found["deep"], found["fused"], strict=True):
        np.testing.assert_array_equal(fused, np.asarray(aligned) * np.asarray(deep))
    plain = build_model(model(fusion=False, depths=(1,)), 5)
    assert "align" not in init_variables(plain, 0, 16)["params"]["expert0"]


def test_plain_networks_have_the_published_sizes():
    """He et al. 2016, table 6, count 0.46 M for ResNet-32 with option A; ours adds a second classifier of 650."""
    settings = {**config.base().model, "depths": (1,), "fusion": False, "shortcut": "A", "head": "linear"}
    count = num_parameters(init_variables(build_model(settings, 10), 0, 32)["params"])
    assert round((count - 650) / 1e6, 2) == 0.46


@pytest.mark.parametrize(("backbone", "published"), [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_basic_blocks_behind_the_large_stem_have_torchvisions_sizes(backbone, published):
    """As its documentation states them for 1,000 classes; ours adds a second classifier of 512 * 1000 + 1000."""
    settings = {**config.base().model, "backbone": backbone, "depths": (1,), "fusion": False, "head": "linear"}
    network = build_model(settings, 1000)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    assert num_parameters(variables["params"]) - 513_000 == published


def test_initial_values_follow_the_authors():
    variables = init_variables(build_model({**config.base().model}, 100), 0, 32)
    kernel = variables["params"]["expert0"]["stage3"]["block1"]["conv1"]["kernel"]  # 3x3x64x64: fan-in 576
    assert kernel.std() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    aligning = variables["params"]["expert0"]["align"]["conv1"]["kernel"]  # 3x3x32x64: PyTorch's default, U(-b, b)
    assert aligning.std() == pytest.approx((1 / 3 / 288) ** 0.5, rel=0.02)
    assert 0.99 * 288**-0.5 < abs(aligning).max() <= 288**-0.5
    weights = variables["params"]["heads"]["classifier"]["expert0"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(weights, axis=0), 1, rtol=1e-5)
    assert (weights != variables["params"]["heads"]["representation"]["expert0"]["kernel"]).any()
    linear = init_variables(build_model(model(head="linear", width=16), 100), 0, 32)["params"]["heads"]
    assert linear["classifier"]["expert0"]["kernel"].std() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    again = init_variables(build_model({**config.base().model}, 100), 0, 32)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_masked_examples_leave_batch_statistics_alone():
    layer = BatchNorm()
    images = jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    variables = layer.init(jax.random.key(0), images, train=True)
    few, new_few = layer.apply(variables, images[:4], train=True, mutable=["batch_stats"])
    mask = jnp.array([1.0, 1, 1, 1, 0, 0])
    padded = jnp.concatenate([images[:4], 1e3 * images[4:]])
    all_, new_all = layer.apply(variables, padded, train=True, mask=mask, mutable=["batch_stats"])
    np.testing.assert_allclose(all_[:4], few, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new_all, new_few)


def test_a_device_without_real_examples_has_no_part_in_running_averages():
    """With per-device statistics: neither in its own layer nor in the mean over devices."""
    layer, images = BatchNorm(), jnp.ones((2, 4, 4, 3))
    seen = {"mean": jnp.full(3, 6.5), "var": jnp.full(3, 1.3)}
    variables = {"params": layer.init(jax.random.key(0), images, train=True)["params"], "batch_stats": seen}
    _, new = layer.apply(variables, images, train=True, mask=jnp.zeros(2), mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], seen)
    masks = jnp.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    values = jnp.array([2.0, 4.0, 100.0])
    found = jax.vmap(averaged_over_devices, axis_name=parallel.AXIS)({"mean": values}, masks)
    np.testing.assert_array_equal(found["mean"], 3.0)


@pytest.mark.parametrize("shape", [(3, 3, 3, 16), (1, 1, 48, 5), (64, 100), (3, 3, 96, 80)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_initial_weights_are_flax_s_draws(shape, dtype):
    """Drawn as the beginning of a longer draw: the numbers that Flax and JAX draw for the shape itself."""
    with jax.enable_x64(True):
        key, scaled = jax.random.key(3), nn.initializers.variance_scaling
        for found, expected in (
            (initial.he_normal, scaled(2.0, "fan_in", "normal")),
            (initial.torch_default, scaled(1 / 3, "fan_in", "uniform")),
            (initial.uniform(0.3), lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -0.3, 0.3)),
        ):
            one, other = found(key, shape, dtype), expected(key, shape, dtype)
            assert one.dtype == other.dtype == dtype
            np.testing.assert_array_max_ulp(one, other, maxulp=1)


def test_impossible_networks_are_named():
    with pytest.raises(UserError, match=r"backbone='resnet33': expected one of vectors, resnet20"):
        build_model(model(backbone="resnet33"), 5)
    with pytest.raises(UserError, match=r"depths=\(1, 3\): expected shared stages from 1 to 2"):
        build_model(model(depths=(1, 3)), 5)
    with pytest.raises(UserError, match="blocks"):
        build_model(model(blocks=(1, 1)), 5)
