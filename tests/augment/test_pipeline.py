"""The whole augmentation: order, geometry of crop, flip and Cutout, and its randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from shike_jax.augment import make_eval_transform, make_train_augment, pipeline
from shike_jax.errors import UserError
from shike_jax.methods.mixing import MixingInputs, mixup

pytestmark = pytest.mark.usefixtures("quickly_compiled")

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FULL = dict(crop="pad", pad=4, flip=True, policy="autoaugment_cifar", policy_args={}, cutout=16)
FULL |= dict(mean=MEAN, std=STD, dtype=jnp.float32)
PLAIN = FULL | dict(crop="none", pad=0, flip=False, policy="none", cutout=0)
RAW = dict(mean=(0, 0, 0), std=(1, 1, 1))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def noise(count, size=32, channels=3):
    return np.random.RandomState(1).randint(0, 256, (count, size, size, channels)).astype(np.uint8)


@pytest.fixture(scope="module")
def augment():
    return jax.jit(make_train_augment(**FULL))


def test_eval_transform_normalises():
    images = noise(3)
    expected = (images / 255.0 - MEAN) / STD
    np.testing.assert_allclose(make_eval_transform(mean=MEAN, std=STD, dtype=jnp.float32)(images), expected, atol=1e-6)
    out = make_train_augment(**PLAIN)(images, keys(3))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert make_eval_transform(mean=MEAN, std=STD, dtype=jnp.bfloat16)(images).dtype == jnp.bfloat16


@pytest.mark.parametrize(("size", "channels", "pad"), [(16, 1, 2), (8, 3, 1)])
def test_crops_and_flips_are_uniform(size, channels, pad):
    """Every output is a window of the padded image, mirrored or not, and all windows are equally frequent."""
    count = 4000
    image = np.random.RandomState(0).permutation(size * size).reshape(size, size, 1) % 255 + 1
    image = np.broadcast_to(image, (size, size, channels)).astype(np.uint8)
    colours = dict(mean=(0,) * channels, std=(1,) * channels)
    fn = jax.jit(make_train_augment(**PLAIN | colours | dict(crop="pad", pad=pad, flip=True)))
    out = np.asarray(fn(np.stack([image] * count), keys(count)))
    out = np.round(255 * out).astype(np.uint8)
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    windows = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = wide[top : top + size, left : left + size]
            windows[window.tobytes()] = (top, left, 0)
            windows[window[:, ::-1].tobytes()] = (top, left, 1)
    seen = np.zeros((2 * pad + 1, 2 * pad + 1, 2))
    for one in out:
        seen[windows[one.tobytes()]] += 1
    assert chisquare(seen.ravel()).pvalue > 1e-3


def test_cutout_blackens_a_clipped_square_before_normalisation():
    count, size = 3000, 32
    fn = jax.jit(make_train_augment(**PLAIN | dict(cutout=16)))
    out = np.asarray(fn(np.full((count, size, size, 3), 255, np.uint8), keys(count)))
    hole = np.all(np.isclose(out, -np.asarray(MEAN) / STD, atol=1e-5), axis=-1)
    assert np.allclose(out[~hole], (1 - np.asarray(MEAN)) / STD, atol=1e-5)
    seen = np.zeros((size, size))
    for one in hole:
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        centre = [span[-1] + 1 - 8 if span[0] == 0 else span[0] + 8 for span in (rows, columns)]
        for span, c in ((rows, centre[0]), (columns, centre[1])):
            np.testing.assert_array_equal(span, np.arange(max(c - 8, 0), min(c + 8, size)))
        assert one.sum() == len(rows) * len(columns)
        seen[tuple(centre)] += 1
    assert chisquare(seen.sum(0)).pvalue > 1e-3
    assert chisquare(seen.sum(1)).pvalue > 1e-3


def test_policy_comes_after_crop_and_before_cutout():
    """Invert, the only operation of this draw, turns the black border white and leaves Cutout's black."""
    args = PLAIN | RAW | dict(crop="pad", pad=4, cutout=16, policy="randaugment")
    args["policy_args"] = dict(layers=1, magnitude=0, magnitude_std=0, prob=1.0)
    out = np.asarray(jax.jit(make_train_augment(**args))(np.zeros((200, 32, 32, 3), np.uint8), keys(200)))
    inverted = [one for one in out if np.any(one == 1)]
    assert inverted and all(set(np.unique(one)) == {0, 1} and 64 <= np.sum(one[..., 0] == 0) <= 256 for one in inverted)


def test_an_example_depends_on_its_own_key_only(augment):
    images, own = noise(12), keys(12)
    out = np.asarray(augment(images, own))
    order = np.random.RandomState(2).permutation(12)
    np.testing.assert_array_equal(augment(images[order], own[order]), out[order])
    others = images.copy()
    others[1:] = 0
    np.testing.assert_array_equal(augment(others, own)[0], out[0])
    np.testing.assert_array_equal(augment(images, own), out)
    assert not np.array_equal(augment(images, keys(12, seed=1)), out)


@pytest.mark.parametrize(
    ("policy", "args"),
    [
        ("autoaugment_cifar", {}),
        pytest.param("randaugment", dict(layers=2, prob=1.0), marks=pytest.mark.slow),
    ],
)
def test_the_accelerators_way_gives_the_same(policy, args, monkeypatch):
    """All branches at once, in chunks of the batch, against one example and one branch at a time."""
    images, own = noise(96, size=16), keys(96)
    settings = FULL | dict(policy=policy, policy_args=args)
    serial = jax.jit(make_train_augment(**settings))(images, own)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    monkeypatch.setattr(pipeline, "_PIXELS_AT_ONCE", 40 * 16 * 16)
    parallel = jax.jit(make_train_augment(**settings))(images, own)
    np.testing.assert_allclose(parallel, serial, atol=1e-6)


def test_takes_raw_keys():
    fn = make_train_augment(**PLAIN | dict(flip=True))
    np.testing.assert_array_equal(fn(noise(5), jax.random.key_data(keys(5))), fn(noise(5), keys(5)))


def test_traced_once_for_one_shape():
    traces = []
    fn = make_train_augment(**PLAIN | dict(flip=True))

    @jax.jit
    def counted(images, own):
        traces.append(images.shape)
        return fn(images, own)

    for seed in range(3):
        counted(noise(4), keys(4, seed))
    assert len(traces) == 1


def test_mask_zeroes_padding():
    fn = make_train_augment(**PLAIN)
    out = np.asarray(fn(noise(5), keys(5), mask=jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0])))
    np.testing.assert_array_equal(out[:3], fn(noise(5), keys(5))[:3])
    assert np.all(out[3:] == 0)


def mixed_up(key, images, partner_images, alpha):
    labels = np.zeros(len(images), np.int32)
    return mixup(MixingInputs(images, labels, partner_images, labels, np.ones(1), key, None, alpha))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_weights_have_the_beta_moments(alpha):
    image, partner = jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1))
    mixed, lam = jax.jit(jax.vmap(lambda key: mixed_up(key, image, partner, alpha)))(keys(20_000))
    np.testing.assert_allclose(mixed[:, 0, 0, 0, 0], lam)
    variance = 1 / (4 * (2 * alpha + 1))
    assert np.mean(lam) == pytest.approx(0.5, abs=4 * np.sqrt(variance / 20_000))
    assert np.var(lam) == pytest.approx(variance, rel=0.03)


def test_mixup_mixes_both_images_and_can_be_off():
    image, partner = jnp.asarray(noise(2) / 255, jnp.float32), jnp.asarray(noise(2)[::-1] / 255, jnp.float32)
    mixed, lam = mixed_up(jax.random.key(1), image, partner, 1.0)
    np.testing.assert_allclose(mixed, lam * image + (1 - lam) * partner, atol=1e-6)
    mixed, lam = mixed_up(jax.random.key(1), image, partner, 0.0)
    assert lam == 1
    np.testing.assert_array_equal(mixed, image)
    with pytest.raises(UserError, match="alpha -1"):
        mixed_up(jax.random.key(1), image, partner, -1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(crop="random"), "crop 'random'"),
        (dict(policy="trivial"), "policy 'trivial'"),
    ],
)
def test_unknown_names_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        make_train_augment(**FULL | change)


def test_policies_need_colour():
    with pytest.raises(UserError, match="3 channels"):
        make_train_augment(**FULL | dict(mean=(0.5,), std=(0.5,)))(noise(2, channels=1), keys(2))
