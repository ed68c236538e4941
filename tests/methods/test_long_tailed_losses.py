"""The field's losses and adjustments against the published formulas, written out in NumPy float64, loop by loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.methods import ADJUSTMENTS, LOSSES, LossInputs
from shike_jax.methods.adjustment import AdjustmentInputs, prior_of
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

M, B, C = 3, 6, 5
COUNTS = np.array([500, 120, 33, 7, 2])
DRAW = np.random.default_rng(3)
LOGITS = 4 * DRAW.standard_normal((M, B, C))
LABELS = np.array([0, 4, 2, 1, 3, 4])


def inputs(progress=0.0, logits=LOGITS):
    return LossInputs(
        logits=jnp.asarray(logits),
        features=jnp.zeros((len(logits), B, 2)),
        labels=jnp.asarray(LABELS),
        class_counts=jnp.asarray(COUNTS),
        progress=jnp.asarray(progress),
    )


def value(name, *, progress=0.0, **changes):
    with jax.enable_x64(True):
        entry = LOSSES[name]
        return np.asarray(entry.function(inputs(progress), **{**entry.defaults(), **changes}))


def cross_entropy(z, y):
    """-log of softmax(z)_y of one vector."""
    shares = np.exp(z - z.max())
    return -np.log(shares[y] / shares.sum())


def over_experts(function):
    """Sum over the experts for each example of function(expert, logits [C], label)."""
    return np.array([sum(function(m, LOGITS[m, b], LABELS[b]) for m in range(M)) for b in range(B)])


def effective_weights(beta):
    weights = np.array([(1 - beta) / (1 - beta ** float(n)) for n in COUNTS])
    return weights * C / weights.sum()


def test_focal():
    def one(m, z, y):
        p = np.exp(-cross_entropy(z, y))
        return (1 - p) ** 1.5 * cross_entropy(z, y)

    np.testing.assert_allclose(value("focal", focal_gamma=1.5), over_experts(one), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_a_gradient_where_an_example_is_certain(gamma):
    """In float32 p_y is 1 there, and 0 to a power below 1 has no finite derivative."""
    certain = 1e4 * np.eye(C, dtype=np.float32)[LABELS][None]
    gradient = jax.grad(lambda logits: jnp.sum(LOSSES["focal"].function(inputs(logits=logits), focal_gamma=gamma)))
    assert np.isfinite(gradient(jnp.asarray(certain))).all()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("loss.class_balanced_beta=1.0", r"class_balanced_beta=1\.0: expected a number of at least 0 and below 1"),
        ("loss.focal_gamma=-1.0", r"focal_gamma=-1\.0: expected a number of at least 0"),
        ("loss.ldam_scale=16.0", r"ldam_scale=16\.0: expected model\.head_scale=30"),
    ],
)
def test_parameters_out_of_range_are_refused(change, line):
    with pytest.raises(UserError, match=line):
        parse_config(
            [f"--config={ROOT}/configs/baselines_cifar.py:ldam_drw", f"--config.stages.representation.{change}"]
        )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("stages.classifier.loss.gcl_scale=16.0", r"classifier\.loss\.gcl_scale=16\.0: expected model\.head_scale=30"),
        ("model.head=linear", r"model\.head='linear': expected 'cosine' with the loss gcl"),
    ],
)
def test_losses_of_cosines_need_their_classifiers(change, line):
    with pytest.raises(UserError, match=line):
        parse_config([f"--config={ROOT}/configs/baselines_cifar.py:gcl", f"--config.{change}"])


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_class_balanced(beta):
    expected = over_experts(lambda m, z, y: effective_weights(beta)[y] * cross_entropy(z, y))
    np.testing.assert_allclose(value("class_balanced", class_balanced_beta=beta), expected, rtol=1e-5)


def test_ldam_with_deferred_reweighting():
    margins = COUNTS**-0.25
    margins = margins * 0.4 / margins.max()

    def one(m, z, y):
        moved = z.copy()
        moved[y] -= 20 * margins[y]
        return cross_entropy(moved, y)

    settings = {"ldam_margin": 0.4, "ldam_scale": 20.0, "ldam_drw": 0.8, "ldam_beta": 0.999}
    plain = over_experts(one)
    np.testing.assert_allclose(value("ldam", progress=0.79, **settings), plain, rtol=1e-6)
    weighted = effective_weights(0.999)[LABELS] * plain
    np.testing.assert_allclose(value("ldam", progress=0.8, **settings), weighted, rtol=1e-5)


def test_logit_adjusted_and_balanced_softmax():
    prior = COUNTS / COUNTS.sum()
    expected = over_experts(lambda m, z, y: cross_entropy(z + 0.7 * np.log(prior), y))
    np.testing.assert_allclose(value("logit_adjusted", logit_adjusted_tau=0.7), expected, rtol=1e-9)
    # With tau = 1 it is the balanced softmax: a constant added to all logits changes nothing.
    np.testing.assert_allclose(value("logit_adjusted"), value("balanced"), rtol=1e-9)


def test_experts_with_different_priors():
    prior = COUNTS / COUNTS.sum()
    expected = over_experts(lambda m, z, y: cross_entropy(z + (0.0, 1.0, 2.0)[m] * np.log(prior), y))
    np.testing.assert_allclose(value("balanced_experts"), expected, rtol=1e-6)


def adjustment(name, tau, **more):
    given = AdjustmentInputs(LOGITS, prior_of(COUNTS), np.full(C, 1 / C), **more)
    return ADJUSTMENTS[name].function(given, tau)


def test_logit_adjustment_after_training():
    prior = COUNTS / COUNTS.sum()
    found = adjustment("train_prior", 1.0)
    for m in range(M):
        for b in range(B):
            shares = np.exp(LOGITS[m, b]) / prior / C  # Bayes: the likelihood times the uniform prior
            np.testing.assert_allclose(
                np.exp(found[m, b]) / np.exp(found[m, b]).sum(), shares / shares.sum(), rtol=1e-9
            )
    np.testing.assert_allclose(adjustment("test_prior", 1.0), LOGITS, rtol=1e-12)  # uniform: nothing changes


def test_tau_normalisation():
    features, kernels, biases = DRAW.standard_normal((M, B, 4)), DRAW.standard_normal((M, 4, C)), np.ones((M, C))
    logits = np.einsum("mbf,mfc->mbc", features, kernels) + biases[:, None]
    given = AdjustmentInputs(logits, prior_of(COUNTS), prior_of(COUNTS), kernels, biases)
    found = ADJUSTMENTS["tau_norm"].function(given, 0.6)
    for m in range(M):
        for c in range(C):
            weight = kernels[m, :, c] / np.sqrt((kernels[m, :, c] ** 2).sum()) ** 0.6
            np.testing.assert_allclose(found[m, :, c], features[m] @ weight, rtol=1e-9)
    with pytest.raises(UserError, match="linear"):
        adjustment("tau_norm", 1.0)


def test_scaled_classifiers_multiply_the_first_sets_logits():
    from shike_jax import config as schema
    from shike_jax.models import build_model, init_variables

    model = {**schema.base().model.to_dict(), "backbone": "resnet20", "width": 4, "blocks": (1, 1, 1)}
    network = build_model({**model, "head": "linear", "second_head": "scaled"}, C)
    variables = init_variables(network, 0, 16)
    images = DRAW.standard_normal((2, 16, 16, 3)).astype(np.float32)
    first, second = (np.asarray(network.apply(variables, images, heads)) for heads in ("representation", "classifier"))
    np.testing.assert_array_equal(first, second)  # factors begin at 1
    factors = {f"expert{m}": {"scale": DRAW.uniform(0.5, 2, C).astype(np.float32)} for m in range(3)}
    variables["params"]["heads"]["classifier"] = factors
    scaled = np.asarray(network.apply(variables, images, "classifier"))
    expected = first * np.stack([factors[f"expert{m}"]["scale"] for m in range(3)])[:, None]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
