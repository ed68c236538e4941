"""What a TPU does in place of gathers gives the same pixels: the TPU's branch is taken on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax.augment import affine, make_train_augment, ops, policies, selection

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """A function that takes the TPU's branches from now on, and fails where a pixel would be fetched instead."""

    def switch():
        monkeypatch.setattr(selection, "on_tpu", lambda *operands, tpu, default: tpu(*operands))

    return switch


def pictures(count=6, height=32, width=32):
    """Noise, a ramp, a flat one, few values, black and white."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, height, width, 3), np.uint8)
    images[1] = np.linspace(0, 255, height * width).reshape(height, width, 1)
    images[2] = 77
    images[3] = images[3] // 64 * 85
    images[4] = np.where(images[4] < 128, 0, 255)
    return images


def test_the_four_ways_of_picking_equal_numpys_indexing():
    draw = np.random.default_rng(1)
    image = draw.integers(0, 256, (5, 9, 3), np.uint8)
    rows, columns = draw.integers(0, 5, (2, 4, 7)), draw.integers(0, 9, (3, 4, 7))
    found = selection.pick(image, list(rows), list(columns))
    for y, row in zip(rows, found, strict=True):
        for x, value in zip(columns, row, strict=True):
            np.testing.assert_array_equal(value, image[y, x])
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    seen = selection.window(image, np.arange(-1, 6), np.arange(9, -2, -1))
    np.testing.assert_array_equal(seen, padded[:, ::-1])
    table = draw.integers(0, 256, (3, 256))
    expected = np.stack([table[c][image[..., c]] for c in range(3)], -1)
    np.testing.assert_array_equal(selection.look_up(image, jnp.asarray(table)), expected)
    counts = selection.histogram(np.full((40, 40, 1), 255, np.uint8))  # more than bfloat16 can count one by one
    np.testing.assert_array_equal(counts, np.bincount([255] * 1600, minlength=256)[None])
    expected = np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])
    np.testing.assert_array_equal(selection.histogram(image), expected)


@pytest.mark.parametrize("name", ["autoaugment", "randaugment"])
def test_every_operation_of_a_policy_gives_the_same_pixels(name, as_on_a_tpu):
    """All 25 sub-policies with both signs, or all 15 operations at four levels with both filters, on every picture."""
    images, size = pictures(), 32
    if name == "autoaugment":
        policy = policies.autoaugment_cifar(size, size)
        drawn = []
        for pair in policies.AUTOAUGMENT_CIFAR:
            for sign in (-1, 1):
                layers = []
                for layer, (_, operation, level) in enumerate(pair):
                    kind, choice = policies.autoaugment_choice(operation, level, sign, size, size)
                    layers.append(choice._replace(kind=np.int32(policy.kinds[layer].index(kind))))
                drawn.append(policies._stack(layers))
        choices = policies._stack(drawn)
    else:
        policy = policies.randaugment(size, size, np.array([120, 110, 100]) / 255, layers=1)
        operation, level, cubic = np.meshgrid(np.arange(15), [0.4, 3.3, 9.7, 10], [False, True], indexing="ij")
        sign = np.where(np.arange(operation.size) % 2, 1.0, -1.0)
        one = jax.vmap(lambda *drawn: policies.randaugment_choice(*drawn, size, size))
        choices = one(operation.ravel(), level.ravel(), sign, cubic.ravel())
        choices = jax.tree.map(lambda leaf: leaf[:, None], choices)

    def run():
        def on_all(choice):
            return jax.vmap(lambda image: policy.apply(image, choice, policies.compute_all))(images)

        return np.asarray(jax.jit(lambda choices: jax.lax.map(on_all, choices))(choices))

    expected = run()
    as_on_a_tpu()
    np.testing.assert_array_equal(run(), expected)


def test_crop_flip_and_the_whole_augmentation_give_the_same_pixels(as_on_a_tpu):
    settings = dict(crop="pad", pad=4, flip=True, policy="autoaugment_cifar", policy_args={}, cutout=8)
    settings |= dict(mean=(0, 0, 0), std=(1, 1, 1), dtype=jnp.float32)
    images, keys = pictures(), jax.random.split(jax.random.key(3), 6)
    expected = np.asarray(jax.jit(make_train_augment(**settings))(images, keys))

    as_on_a_tpu()
    np.testing.assert_array_equal(jax.jit(make_train_augment(**settings, platform="tpu"))(images, keys), expected)


def test_large_images_keep_their_gathers():
    """Their pixels are fetched: products would cost the side times as much."""
    image = np.zeros((selection.LARGEST_SIDE + 1, 8, 3), np.uint8)
    index = jnp.zeros((3, 3), jnp.int32)
    text = jax.jit(affine._pick).trace(image, [index], [index]).lower(lowering_platforms=("tpu",)).as_text()
    small = jax.jit(affine._pick).trace(image[:8], [index], [index]).lower(lowering_platforms=("tpu",)).as_text()
    assert "gather" in text and "gather" not in small and "dot_general" in small


def test_only_a_tpu_gets_products():
    image = np.zeros((8, 8, 3), np.uint8)
    text = {
        platform: jax.jit(ops.equalize).trace(image).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "scatter" in text["cpu"] and "scatter" in text["cuda"] and "scatter" not in text["tpu"]
    assert "dot_general" in text["tpu"] and "dot_general" not in text["cuda"]
