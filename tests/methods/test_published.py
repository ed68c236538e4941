"""Methods of the field against their published formulas, written out in NumPy float64, loop by loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from shike_jax.errors import UserError
from shike_jax.methods import LOSSES, SAMPLERS, LossInputs, MixingInputs
from shike_jax.methods.adjustment import ADJUSTMENTS, AdjustmentInputs, aggregation_shares
from shike_jax.methods.losses import (
    expert_diversity,
    gaussian_clouded,
    generalized_reweight,
    label_aware_smoothing,
    skill_diverse,
)
from shike_jax.methods.mixing import cmo
from shike_jax.methods.proco import concentration, contrast, moved_means
from shike_jax.models.second_heads import Alignment

pytestmark = pytest.mark.usefixtures("quickly_compiled")

M, B, C = 3, 6, 5
COUNTS = np.array([500, 120, 33, 7, 2])
DRAW = np.random.default_rng(3)
LOGITS = 4 * DRAW.standard_normal((M, B, C))
LABELS = np.array([0, 4, 2, 1, 3, 4])
NOISE = DRAW.uniform(-1, 1, (B, C))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def log_softmax(z):
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def over_experts(function):
    """Sum over the experts for each example of function(expert, image)."""
    return np.array([sum(function(m, b) for m in range(M)) for b in range(B)])


def test_gaussian_clouds():
    """Li et al. 2022, eqs. 7 to 9."""
    rarity = np.log(COUNTS.max()) - np.log(COUNTS)

    def one(m, b):
        cosine = LOGITS[m, b] / 30 - 0.5 * np.abs(NOISE[b]) * rarity / rarity.max()
        cosine[LABELS[b]] -= 0.1
        return -log_softmax(30 * cosine)[LABELS[b]]

    found = gaussian_clouded(LOGITS, LABELS, COUNTS, NOISE, strength=0.5, margin=0.1, scale=30.0)
    np.testing.assert_allclose(found, over_experts(one), rtol=1e-6)
    even = gaussian_clouded(LOGITS, LABELS, [7] * C, NOISE)
    np.testing.assert_allclose(even, over_experts(lambda m, b: -log_softmax(LOGITS[m, b])[LABELS[b]]), rtol=1e-9)


def test_clouds_are_of_each_image_and_cut_at_one():
    """The noise comes from the image's key: normal, deviation 1/3, cut at -1 and 1."""
    keys = jax.random.split(jax.random.key(1), B)
    inputs = LossInputs(jnp.asarray(LOGITS), None, jnp.asarray(LABELS), jnp.asarray(COUNTS), jnp.zeros(()), key=keys)
    drawn = np.stack([np.asarray(jax.random.normal(key, (C,), jnp.float64)) for key in keys])
    wanted = gaussian_clouded(LOGITS, LABELS, COUNTS, np.clip(drawn / 3, -1, 1), 0.5)
    np.testing.assert_allclose(LOSSES["gcl"].function(inputs, 0.5, 0.0, 30.0), wanted, rtol=1e-9)


def test_label_aware_smoothing():
    """Zhong et al. 2021, sec. 3.3: 0.4 for the most frequent class, 0.1 for the rarest, a sine between them."""
    smoothing = [0.1 + 0.3 * np.sin(np.pi * (n - 2) / (2 * (500 - 2))) for n in COUNTS]
    assert (smoothing[0], smoothing[-1]) == (0.4, 0.1)

    def one(m, b):
        log_p, share = log_softmax(LOGITS[m, b]), smoothing[LABELS[b]]
        return -(1 - share) * log_p[LABELS[b]] - share * log_p.mean()

    np.testing.assert_allclose(label_aware_smoothing(LOGITS, LABELS, COUNTS), over_experts(one), rtol=1e-6)
    alone = label_aware_smoothing(LOGITS[0], LABELS, [3] * C, head=0.4, tail=0.0)  # no smoothing of the rarest
    np.testing.assert_allclose(alone, [-log_softmax(LOGITS[0, b])[LABELS[b]] for b in range(B)], rtol=1e-6)


def test_diversity_of_experts():
    """Wang et al. 2021, eq. 3, with the authors' temperatures."""
    factors = 0.05 * C * COUNTS / COUNTS.sum() + 0.95
    t = 1.5 * factors / factors.max()

    def one(m, b):
        mean = log_softmax(LOGITS[:, b].mean(0) / t)
        own = log_softmax(LOGITS[m, b] / t)
        return -(t.mean() ** 2) * np.sum(np.exp(mean) * (mean - own))

    np.testing.assert_allclose(expert_diversity(LOGITS, COUNTS, temperature=1.5), over_experts(one), rtol=1e-6)
    gradient = jax.grad(lambda z: jnp.sum(expert_diversity(z, COUNTS)))(jnp.asarray(LOGITS))
    # The mean is a constant: d/dz_m of -T^2 KL(mean || m) is T^2 (p_mean - p_m) / T_c.
    t = factors / factors.max()
    by_hand = [
        [
            t.mean() ** 2 * (np.exp(log_softmax(LOGITS[:, b].mean(0) / t)) - np.exp(log_softmax(LOGITS[m, b] / t))) / t
            for b in range(B)
        ]
        for m in range(M)
    ]
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-9)


def test_experts_of_three_distributions():
    """Zhang et al. 2022, eqs. 1 to 3."""
    prior = COUNTS / COUNTS.sum()
    shifts = [np.zeros(C), np.log(prior), np.log(prior) - 2 * np.log(prior[::-1])]  # the counts fall: reversed ranks

    def one(m, b):
        return -log_softmax(LOGITS[m, b] + shifts[m])[LABELS[b]]

    np.testing.assert_allclose(skill_diverse(LOGITS, LABELS, COUNTS), over_experts(one), rtol=1e-6)
    order = [2, 0, 4, 1, 3]  # any order of the classes
    shuffled = skill_diverse(LOGITS[..., order], np.argsort(order)[LABELS], COUNTS[order])
    np.testing.assert_allclose(shuffled, over_experts(one), rtol=1e-6)
    with pytest.raises(UserError, match=r"loss 'sade': 2 experts; expected 3"):
        skill_diverse(LOGITS[:2], LABELS, COUNTS)


def test_generalized_reweighting():
    """Zhang et al. 2021, eqs. 9 and 10: shares to the power -rho, of mean 1."""
    weights = (COUNTS / COUNTS.sum()) ** -1.2
    weights *= C / weights.sum()
    wanted = over_experts(lambda m, b: -weights[LABELS[b]] * log_softmax(LOGITS[m, b])[LABELS[b]])
    np.testing.assert_allclose(generalized_reweight(LOGITS, LABELS, COUNTS), wanted, rtol=1e-5)


def test_alignment():
    """Zhang et al. 2021, eqs. 5 to 7: (1 + s alpha) z + s beta with s a sigmoid of the features."""
    features = DRAW.standard_normal((B, 4))
    kernel, alpha, beta = DRAW.standard_normal((4, 1)), DRAW.standard_normal(C), DRAW.standard_normal(C)
    params = {"confidence": {"kernel": kernel, "bias": np.array([0.3])}, "scale": alpha, "bias": beta}
    found = Alignment(C).apply({"params": params}, jnp.asarray(LOGITS[0]), jnp.asarray(features))
    s = 1 / (1 + np.exp(-(features @ kernel + 0.3)))
    np.testing.assert_allclose(found, (1 + s * alpha) * LOGITS[0] + s * beta, rtol=1e-9)
    fresh = Alignment(C).init(jax.random.key(0), jnp.asarray(LOGITS[0]), jnp.asarray(features))["params"]
    assert (fresh["scale"] == 1).all() and (fresh["bias"] == 0).all()


@pytest.mark.parametrize("size", [16, 128])
def test_contrast_with_distributions(size):
    """Du et al. 2024, eqs. 13, 16 and 17, with SciPy's Bessel functions."""
    z = DRAW.standard_normal((B, size))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    means = DRAW.standard_normal((C, size))
    means *= (np.array([0.1, 0.5, 0.8, 0.95, 0.999]) / np.linalg.norm(means, axis=1))[:, None]
    length = np.linalg.norm(means, axis=1)
    kappa = size * length / (1 - length**2)
    np.testing.assert_allclose(concentration(jnp.asarray(means)), kappa, rtol=1e-9)

    def log_i(x):  # of the Bessel function, divided by x to the power of its order
        return np.log(scipy.special.ive(size / 2 - 1, x)) + x - (size / 2 - 1) * np.log(x)

    wanted = [
        [log_i(np.linalg.norm(kappa[c] * means[c] / length[c] + z[b] / 0.1)) - log_i(kappa[c]) for c in range(C)]
        for b in range(B)
    ]
    found = contrast(jnp.asarray(z), jnp.asarray(means), 0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-4)
    single = contrast(jnp.asarray(z, jnp.float32), jnp.asarray(means, jnp.float32), 0.1)
    np.testing.assert_allclose(single, wanted, rtol=1e-3, atol=2e-3)


def test_agreeing_features_have_a_finite_contrast_and_gradient():
    """One image of a class: a mean of length 1, the largest concentration."""
    means, z = np.eye(3, 16), np.eye(3, 16)[[0, 1]]
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(contrast(z, jnp.asarray(means, jnp.float32), 0.1)))(
        jnp.asarray(z, jnp.float32)
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # With a class whose features all equal mu, log E exp(z . v / T) is z . mu / T.
    np.testing.assert_allclose(contrast(jnp.asarray(z), jnp.asarray(means), 0.1), 10 * z @ means.T, atol=1e-2)


def test_means_of_classes():
    """Every feature counts alike until `most` are remembered; padding counts nothing."""
    features = DRAW.standard_normal((4, 3))
    labels, weights = np.array([1, 1, 0, 1]), np.array([1.0, 1.0, 1.0, 0.0])
    means, amounts = np.array([[9.0, 9, 9], [1, 2, 3]]), np.array([0.0, 6.0])
    found, after = moved_means(*map(jnp.asarray, (means, amounts, features, labels, weights, [5.0, 7.0])))
    np.testing.assert_allclose(found, [features[2], (6 * means[1] + features[0] + features[1]) / 8], rtol=1e-9)
    assert after.tolist() == [1.0, 7.0]


def by_hand_shares(first, second, epochs):
    """SGD with Nesterov's momentum and weight decay as PyTorch writes it; central differences for the gradient."""

    def value(w):
        a = np.exp(w) / np.exp(w).sum()
        p, q = (
            np.exp(np.array([log_softmax(z) for z in np.einsum("m,mnc->nc", a, logits)])) for logits in (first, second)
        )
        return -np.mean((p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1))

    w, buffer = np.full(3, 1 / 3), np.zeros(3)
    for _ in range(epochs):
        gradient = np.array([(value(w + 1e-6 * e) - value(w - 1e-6 * e)) / 2e-6 for e in np.eye(3)]) + 5e-4 * w
        buffer = 0.9 * buffer + gradient
        w = w - 0.025 * (gradient + 0.9 * buffer)
    return np.exp(w) / np.exp(w).sum()


def test_shares_of_experts_without_labels():
    """Zhang et al. 2022, eq. 5: five epochs, here of one batch."""
    first, second = 3 * DRAW.standard_normal((2, 3, 40, C))
    second[1] = first[1] + 0.1 * DRAW.standard_normal((40, C))  # the second expert is stable under augmentation
    found = aggregation_shares(first, second)
    np.testing.assert_allclose(found, by_hand_shares(first, second, 5), rtol=1e-6)
    assert found.argmax() == 1 and found.sum() == pytest.approx(1)
    priors = np.full(C, 1 / C)
    logits = DRAW.standard_normal((3, 40, C))
    inputs = AdjustmentInputs(logits, priors, priors, views=(first, second))
    adjusted = ADJUSTMENTS["sade"].function(inputs, 1.0)
    np.testing.assert_allclose(adjusted.mean(0), np.einsum("m,mnc->nc", found, logits), rtol=1e-9)
    np.testing.assert_allclose(ADJUSTMENTS["sade"].function(inputs, 0.0), logits, rtol=1e-9)


def test_rare_foregrounds():
    """Park et al. 2022, algorithm 1: a box of the partner, labels by its area, in half of the steps."""
    images, partners = np.zeros((2, 8, 8, 3)), np.ones((2, 8, 8, 3))
    plain = 0
    for seed in range(40):
        keys = jax.random.split(jax.random.key(seed), 2)
        given = MixingInputs(images, LABELS[:2], partners, LABELS[2:4], COUNTS, jax.random.key(seed), keys, 1.0)
        mixed, share = map(np.asarray, cmo(given))
        np.testing.assert_allclose(1 - share, mixed.mean(), atol=1e-6)  # foreground pixels are 1
        rows, columns = (np.flatnonzero(mixed[0, ..., 0].any(axis)) for axis in (1, 0))
        box = mixed[0][np.ix_(rows, columns)] if len(rows) else np.ones(1)
        assert (box == 1).all() and (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
        plain += share == 1
    assert 10 <= plain <= 32  # half of the steps, and empty boxes


def test_foregrounds_are_balanced():
    """Backgrounds: each image once. Foregrounds: classes alike, whatever their counts."""
    labels = np.repeat(np.arange(3), [300, 60, 6])
    entry = SAMPLERS["foregrounds"]
    assert sorted(np.asarray(entry.function(jax.random.key(0), labels))) == list(range(366))
    drawn = labels[np.asarray(SAMPLERS[entry.options["partner"]].function(jax.random.key(1), labels))]
    assert (abs(np.bincount(drawn) - 122) < 40).all()
