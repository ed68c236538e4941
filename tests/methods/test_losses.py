"""Losses against float64 values of the public PyTorch implementation, and at the edges of their range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax.errors import UserError
from shike_jax.methods import losses
from tests.conftest import GOLDEN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(params=["losses", "losses_two_experts"])
def golden(request):
    with jax.enable_x64(True):
        yield dict(np.load(GOLDEN / f"{request.param}.npz"))


def official_total(logits, labels):
    value = losses.cross_entropy(logits, labels) + 10 * losses.non_target_distillation(logits, labels)
    return jnp.mean(value + losses.mutual_distillation(logits))


def test_official_form(golden):
    logits, labels = jnp.asarray(golden["logits"]), jnp.asarray(golden["labels"])
    value, grad = jax.value_and_grad(official_total)(logits, labels)
    np.testing.assert_allclose(value, golden["official_total"], rtol=1e-9)
    np.testing.assert_allclose(grad, golden["official_grad"], rtol=1e-6, atol=1e-9)
    bsce = jnp.mean(losses.balanced_softmax(logits, labels, jnp.asarray(golden["class_counts"])))
    np.testing.assert_allclose(bsce, golden["official_bsce"], rtol=1e-9)


def test_printed_equations(golden):
    logits, labels = jnp.asarray(golden["logits"]), jnp.asarray(golden["labels"])
    np.testing.assert_allclose(jnp.mean(losses.cross_entropy(logits, labels)), golden["paper_ce"], rtol=1e-9)
    np.testing.assert_allclose(jnp.mean(losses.mutual_distillation(logits, "paper")), golden["paper_mu"], rtol=1e-9)
    nt = losses.non_target_distillation(logits, labels, "paper")
    np.testing.assert_allclose(jnp.mean(nt), golden["paper_nt"], rtol=1e-9)
    bsce = jnp.mean(losses.balanced_softmax(logits, labels, jnp.asarray(golden["class_counts"])))
    np.testing.assert_allclose(bsce, golden["paper_bsce"], rtol=1e-9)


def test_grand_teacher(golden):
    teacher, hardest = losses.grand_teacher(jnp.asarray(golden["logits"]), jnp.asarray(golden["labels"]))
    rows = [np.delete(np.asarray(row), label) for row, label in zip(teacher, golden["labels"], strict=True)]
    np.testing.assert_allclose(np.stack(rows), golden["grand_teacher"], rtol=1e-12)
    # the golden index counts non-target classes only
    labels, expected = golden["labels"], golden["hardest_negative"]
    shifted = np.asarray(hardest) - (np.asarray(hardest) > labels)
    assert np.array_equal(shifted, expected) or np.array_equal(hardest, expected)


@pytest.mark.parametrize("form", losses.FORMS)
@pytest.mark.parametrize("shape", [(1, 4, 2), (1, 4, 7), (3, 4, 2), (4, 4, 7)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_finite_at_the_edges(form, shape, scale):
    """Ties (scale 0), huge logits, two classes, a single expert: values and gradients stay finite, KL stays >= 0."""
    logits = scale * jax.random.normal(jax.random.key(1), shape).clip(-1, 1)
    labels = jnp.arange(shape[1]) % shape[2]
    counts = jnp.arange(shape[2]) + 1
    functions = {
        "ce": lambda z: losses.cross_entropy(z, labels),
        "nt": lambda z: losses.non_target_distillation(z, labels, form),
        "mu": lambda z: losses.mutual_distillation(z, form),
        "balanced": lambda z: losses.balanced_softmax(z, labels, counts),
    }
    for name, function in functions.items():
        value, grad = function(logits), jax.grad(lambda z, f=function: jnp.sum(f(z)))(logits)
        assert np.isfinite(value).all() and np.isfinite(grad).all(), name
        assert (value > -1e-5).all(), name
    if shape[0] == 1:
        np.testing.assert_array_equal(functions["mu"](logits), 0)
    if shape[2] == 2 and form == "paper":  # one non-target class: nothing to distil
        np.testing.assert_allclose(functions["nt"](logits), 0, atol=1e-6)


def test_teacher_is_a_constant_in_the_printed_form():
    """d KL(t || s) / d s = s - t for one expert whose teacher is fixed: rows sum to zero over the non-targets."""
    logits, labels = jax.random.normal(jax.random.key(0), (2, 3, 5)), jnp.array([0, 1, 2])
    grad = jax.grad(lambda z: jnp.sum(losses.non_target_distillation(z, labels, "paper")))(logits)
    teacher, _ = losses.grand_teacher(logits, labels)
    for m in range(2):
        for b, label in enumerate([0, 1, 2]):
            keep = np.delete(np.arange(5), label)
            expected = jax.nn.softmax(logits[m, b, keep]) - jax.nn.softmax(teacher[b, keep])
            np.testing.assert_allclose(grad[m, b, keep], expected, atol=1e-6)
            assert grad[m, b, label] == 0


def test_shapes_are_checked():
    with pytest.raises(UserError, match=r"logits \(4,\): expected \[B,C\] of one network or \[M,B,C\]"):
        losses.cross_entropy(jnp.zeros(4), jnp.zeros(1, int))
    with pytest.raises(UserError, match=r"labels int\w+ \(2,\): expected whole numbers \(3,\)"):
        losses.cross_entropy(jnp.zeros((3, 4)), jnp.zeros(2, int))
    with pytest.raises(UserError, match=r"labels float32 \(3,\): expected whole numbers"):
        losses.focal(jnp.zeros((3, 4)), jnp.zeros(3))
    with pytest.raises(UserError, match=r"class_counts \(3,\): expected \(4,\)"):
        losses.ldam(jnp.zeros((3, 4)), jnp.zeros(3, int), [5, 5, 5])
    with pytest.raises(UserError, match="expected one of"):
        losses.mutual_distillation(jnp.zeros((2, 3, 4)), "printed")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_logits_of_half_precision_are_computed_with_in_float32(kind):
    """115,846 images, as many as ImageNet-LT has, are more than float16 can count."""
    logits, counts = jnp.zeros((2, 2), kind), [60_000, 55_846]
    found = losses.logit_adjusted(logits, [1, 0], counts)
    expected = np.log(115_846 / np.array([55_846, 60_000]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "balanced_softmax", "shike", "focal", "class_balanced", "ldam", "logit_adjusted"]
)
def test_one_network_is_one_expert_and_lists_serve(name):
    """[B,C] gives what [1,B,C] gives, and Python lists what arrays give."""
    logits, labels, counts = np.random.default_rng(0).normal(size=(2, 3)), [2, 0], [50, 9, 3]
    takes_counts = name in ("balanced_softmax", "class_balanced", "ldam", "logit_adjusted")
    function, more = getattr(losses, name), [counts] if takes_counts else []
    one = function(logits.tolist(), labels, *more)
    assert one.shape == (2,)
    np.testing.assert_allclose(one, function(jnp.asarray(logits)[None], jnp.asarray(labels), *map(np.array, more)))


@pytest.mark.parametrize(("form", "weights"), [("official", (10, 1)), ("paper", (1, 1))])
def test_the_whole_loss_is_the_sum_of_its_terms(golden, form, weights):
    logits, labels = jnp.asarray(golden["logits"]), jnp.asarray(golden["labels"])
    terms = [losses.non_target_distillation(logits, labels, form), losses.mutual_distillation(logits, form)]
    whole = jnp.mean(losses.shike(logits, labels, form))
    rest = sum(weight * jnp.mean(term) for weight, term in zip(weights, terms, strict=True))
    np.testing.assert_allclose(whole - rest, golden["paper_ce"], rtol=1e-6)
