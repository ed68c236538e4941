"""Learning rates against the published values, patterns, and SGD against PyTorch's rule written out."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax import config
from shike_jax.errors import UserError
from shike_jax.methods import SCHEDULES, StageLength
from shike_jax.methods.optimizers import make_optimizer, sgd
from shike_jax.methods.schedules import scale, warmed_up
from shike_jax.training.trainable import merge, select, trainable_mask
from tests.conftest import GOLDEN


def learning_rate(stage, epochs, steps):
    length = StageLength(stage.lr, epochs, steps, stage.warmup_lr, stage.warmup_epochs)
    return lambda step: SCHEDULES[stage.schedule].function(step, length)


def rates(stage, epochs, steps=3):
    schedule = learning_rate(stage, epochs, steps)
    return [float(schedule(jnp.int32(epoch * steps + steps - 1))) for epoch in range(epochs)]


def test_official_schedule_of_the_reference():
    first = rates(config.stage(), 180)
    np.testing.assert_allclose(first[:6], [0.025, 0.05, 0.075, 0.1, 0.125, 0.15], rtol=1e-6)
    assert 0.1499 < first[6] < 0.15 and first[-1] < 1e-4
    second = rates(config.stage(lr=0.1), 20)
    np.testing.assert_allclose(second[:2], [0.0375, 0.05], rtol=1e-6)


def test_official_schedule_epoch_by_epoch():
    """Every learning rate that the public 20 + 8 run logged."""
    with open(GOLDEN / "official_20_8.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0"]
    expected = [float(row["learning_rate"]) for row in rows]
    np.testing.assert_allclose(rates(config.stage(), 20) + rates(config.stage(lr=0.1), 8), expected, atol=5e-7)


def test_cosine_schedules_start_at_the_peak_and_fall_to_zero():
    stage = config.stage(schedule="cosine", lr=0.2)
    np.testing.assert_allclose(rates(stage, 4), [0.2 * (1 + np.cos(np.pi * e / 4)) / 2 for e in range(4)], rtol=1e-6)
    per_step = learning_rate(config.stage(schedule="cosine_per_step", lr=0.2), 2, 5)
    np.testing.assert_allclose([per_step(0), per_step(5), per_step(10)], [0.2, 0.1, 0.0], atol=1e-7)
    assert learning_rate(config.stage(schedule="constant", lr=0.3), 2, 5)(7) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changes", "lowest"),
    [
        ({"warmup_epochs": 2}, "0.075"),
        ({"warmup_epochs": 1}, "0.075"),
        ({"warmup_lr": 0.0}, "0.03"),
        ({"warmup_epochs": 3, "lr": 0.2}, "0.0666667"),
    ],
)
def test_a_warm_up_that_starts_below_zero_is_refused(changes, lowest):
    stage = config.stage(**changes)
    assert rates(stage, 20)[0] < 0
    whole = config.base()
    whole.run, whole.stages.first = ("first",), stage
    with pytest.raises(UserError, match=rf"first\.warmup_lr={stage.warmup_lr}: expected at least {lowest} with lr="):
        config.validate(whole)
    stage.warmup_lr = stage.lr / max(stage.warmup_epochs, 2)
    config.validate(whole)
    assert rates(stage, 20)[0] == pytest.approx(0, abs=1e-8) and min(rates(stage, 20)) > -1e-8
    stage.warmup_epochs, stage.warmup_lr = 0, 0.0
    config.validate(whole)
    assert min(rates(stage, 20)) > 0


PARAMS = {"trunk": {"conv1": {"kernel": np.ones(2)}}, "heads": {"classifier": {"expert0": {"kernel": np.ones(3)}}}}


def test_patterns_cover_and_name_what_they_miss():
    mask = trainable_mask(PARAMS, ("heads/classifier/.*",))
    assert mask == {"trunk": {"conv1": {"kernel": False}}, "heads": {"classifier": {"expert0": {"kernel": True}}}}
    with pytest.raises(UserError, match=r"'head/.*' matches no parameter"):
        trainable_mask(PARAMS, ("head/.*",))


def test_parameters_without_part_do_not_train():
    mask = trainable_mask(PARAMS, (".*",), ("heads/classifier/",))
    assert mask == {"trunk": {"conv1": {"kernel": True}}, "heads": {"classifier": {"expert0": {"kernel": False}}}}


def test_halves_come_together_again_and_frozen_ones_have_no_momentum():
    mask = trainable_mask(PARAMS, ("heads/.*",))
    trained, frozen = select(PARAMS, mask), select(PARAMS, mask, False)
    jax.tree.map(np.testing.assert_array_equal, merge(trained, frozen), PARAMS)
    momentum = jax.tree.leaves(sgd(lambda step: 0.1, 0.9, 1e-4).init(trained))
    assert [leaf.shape for leaf in momentum if leaf.shape] == [(3,)]  # beside the step counter


def test_sgd_is_pytorchs():
    """g = grad + wd * p; buffer = momentum * buffer + g; p -= lr * buffer."""
    rng, learning_rates = np.random.default_rng(0), (0.1, 0.2, 0.05)
    p, buffer = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    optimizer = sgd(lambda step: jnp.asarray(learning_rates)[step], 0.9, 0.01)
    ours = jnp.asarray(p)
    state = optimizer.init(ours)
    for lr in learning_rates:
        grad = rng.normal(size=3)
        buffer = 0.9 * buffer + grad + 0.01 * p
        p = p - lr * buffer
        updates, state = optimizer.update(jnp.asarray(grad), state, ours)
        ours = ours + updates
    np.testing.assert_allclose(ours, p, rtol=1e-6)


def test_optimisers_of_optax_by_name():
    """AdamW's first step is the learning rate times the sign of the gradient, plus the decayed weight."""
    p, grad = jnp.asarray([1.0, -2.0]), jnp.asarray([0.3, -0.2])
    optimizer = make_optimizer("adamw", lambda step: 0.1, 0.9, 0.01, {"b1": 0.8})
    updates, _ = optimizer.update(grad, optimizer.init(p), p)
    np.testing.assert_allclose(updates, -0.1 * (np.sign(grad) + 0.01 * p), rtol=1e-5)
    with pytest.raises(UserError, match=r"unknown optimiser 'adamv': expected sgd, lars, lamb or one of optax"):
        make_optimizer("adamv", lambda step: 0.1, 0.9, 0.0, {})
    with pytest.raises(UserError, match="nonsense"):
        make_optimizer("adamw", lambda step: 0.1, 0.9, 0.0, {"nonsense": 1})
    with pytest.raises(UserError, match=r"'adam' has no weight decay: expected weight_decay=0 instead of 0\.01"):
        make_optimizer("adam", lambda step: 0.1, 0.9, 0.01, {})
    with pytest.raises(UserError, match="'sgd' with option momentum: expected the stage's field that sets it"):
        make_optimizer("sgd", lambda step: 0.1, 0.9, 0.0, {"momentum": 0.5})
    for name in ("lbfgs", "scale_by_learning_rate"):  # one needs more than gradients, the other is a part of one
        with pytest.raises(UserError, match=name):
            make_optimizer(name, lambda step: 0.1, 0.9, 0.0, {})


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_learning_rates_follow_the_batch(rule, factor):
    assert scale(rule, 512, 128) == factor


def test_a_warm_up_in_steps_rises_every_step():
    schedule = warmed_up(learning_rate(config.stage(schedule="cosine_per_step", lr=0.8), 2, 10), 0.2, 4)
    whole = [0.8 * (1 + np.cos(np.pi * step / 20)) / 2 for step in range(20)]
    expected = [0.2 + (rate - 0.2) * min((step + 1) / 4, 1) for step, rate in enumerate(whole)]
    np.testing.assert_allclose([float(schedule(jnp.int32(step))) for step in range(20)], expected, atol=1e-6)


def test_lars_leaves_biases_and_bn_out():
    """One step written out: kernels move by their own length over that of the decayed gradient, vectors do not."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
    optimizer = make_optimizer("lars", lambda step: 0.5, 0.9, 0.01, {})
    moved, _ = optimizer.update(jax.tree.map(jnp.asarray, grads), optimizer.init(params), params)
    decayed = grads["kernel"] + 0.01 * params["kernel"]
    ratio = 0.001 * np.linalg.norm(params["kernel"]) / np.linalg.norm(decayed)
    np.testing.assert_allclose(moved["kernel"], -0.5 * ratio * decayed, rtol=1e-5)
    np.testing.assert_allclose(moved["bias"], -0.5 * grads["bias"], rtol=1e-6)


def test_lamb_leaves_biases_and_bn_out():
    """Adam's first step is the sign of the gradient; the kernel's has the kernel's own length."""
    rng = np.random.default_rng(1)
    params = {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "scale": rng.normal(size=4).astype(np.float32)}
    grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
    optimizer = make_optimizer("lamb", lambda step: 0.5, 0.9, 0.01, {})
    moved, _ = optimizer.update(jax.tree.map(jnp.asarray, grads), optimizer.init(params), params)
    step = np.sign(grads["kernel"]) + 0.01 * params["kernel"]
    length = np.linalg.norm(params["kernel"]) / np.linalg.norm(step)
    np.testing.assert_allclose(moved["kernel"], -0.5 * length * step, rtol=1e-3)
    np.testing.assert_allclose(moved["scale"], -0.5 * np.sign(grads["scale"]), rtol=1e-4)
