"""Averaged weights and SAM: against float64 by hand, optax's own SAM, and a run that is stopped in the middle."""

import dataclasses
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from shike_jax import config as schema
from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.config import base, to_plain
from shike_jax.config.loading import parse_config
from shike_jax.data import sampling
from shike_jax.data.feeds import DeviceFeed
from shike_jax.errors import UserError
from shike_jax.methods.averaging import AVERAGES, AverageSettings, moved_average, uphill
from shike_jax.training import bn_estimation as averaging
from shike_jax.training import compiled_steps, loop, setup
from shike_jax.training.bn_estimation import make_estimate
from shike_jax.training.program import make_program
from shike_jax.training.state import start_stage
from tests.conftest import ROOT
from tests.jobs import Job, digits
from tests.restart_drill import Drill
from tests.stopped import assert_same_end, train_until, weights

pytestmark = pytest.mark.usefixtures("quickly_compiled")

DRAW = np.random.default_rng(0)


def running(name, path, decay=0.9, first=1):
    average = jnp.zeros_like(path[0])
    for done, value in enumerate(path, 1):
        share = AVERAGES[name].function(jnp.int32(done), AverageSettings(decay, first))
        average = moved_average(average, jnp.asarray(value), share)
    return np.asarray(average)


def test_averages_are_the_weighted_means_of_all_steps():
    path = DRAW.standard_normal((7, 3)).astype(np.float32)
    rates = 0.9 ** np.arange(6, -1, -1.0)
    np.testing.assert_allclose(running("ema", path), rates @ path / rates.sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(running("ema", path[:1], decay=0.9999), path[0], rtol=1e-5)
    np.testing.assert_allclose(running("uniform", path, first=4), path[3:].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(running("uniform", path, first=8), path[-1])  # not begun: the newest


def test_the_uphill_step_by_hand():
    params, grads = {"a": jnp.array([1.0, 2.0]), "b": None}, {"a": jnp.array([3.0, 4.0]), "b": None}
    np.testing.assert_allclose(uphill(params, grads, 0.5)["a"], [1.3, 2.4], rtol=1e-6)
    np.testing.assert_array_equal(uphill(params, {"a": jnp.zeros(2), "b": None}, 0.5)["a"], [1.0, 2.0])


def test_two_gradients_make_the_step_of_optax_contrib_sam():
    from optax import contrib

    matrix = jnp.asarray(DRAW.standard_normal((4, 4)), jnp.float32)

    def loss(x):
        return jnp.sum(jnp.cosh(matrix @ x))

    x = jnp.asarray(DRAW.standard_normal(4), jnp.float32)
    outer = optax.chain(optax.trace(0.9), optax.scale(-0.01))
    theirs = contrib.sam(outer, optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True)
    own_state, their_state, own, their = outer.init(x), theirs.init(x), x, x
    for _ in range(3):
        updates, own_state = outer.update(jax.grad(loss)(uphill(own, jax.grad(loss)(own), 0.05)), own_state)
        own = optax.apply_updates(own, updates)
        updates, their_state = theirs.update(
            jax.grad(loss)(their), their_state, their, grad_fn=lambda params, _: jax.grad(loss)(params)
        )
        their = optax.apply_updates(their, updates)
    np.testing.assert_allclose(own, their, rtol=1e-5)
    assert np.abs(own - x).max() > 1e-3


def test_a_step_with_sam_takes_its_gradient_uphill():
    """Against two gradients of the cross-entropy written here, in float64; the first alone would end elsewhere."""
    settings = base().model
    settings.update({"backbone": "resnet20", "width": 4, "blocks": (1, 1, 1), "depths": (1,), "fusion": False})
    size, rate, rho = jax.device_count() * 4, 0.1, 0.2
    batch = {
        "image": DRAW.integers(0, 256, (size, 8, 8, 3), np.uint8),
        "label": DRAW.integers(0, 3, size).astype(np.int32),
        "mask": np.ones(size, np.float32),
    }

    def augment(images, keys, mask):
        return images.astype(jnp.float64) / 256 - 0.5

    with jax.enable_x64(True):
        network = models.build_model(to_plain(settings), 3, dtype=jnp.float64, axis_name=parallel.AXIS)
        variables = models.init_variables(network, 1, 8)
        own = schema.stage(sam_rho=rho, schedule="constant", lr=rate, momentum=0.0, weight_decay=0.0)
        program = make_program(own, network, variables["params"], np.ones(3), augment, jax.random.key(0), 1, 1)
        call = compiled_steps.compile_train(program, lambda data, item: item)
        start = start_stage(variables, program)
        inputs = jax.tree.map(lambda x: x[:, None], parallel.split_batch(batch))
        found = parallel.to_host(call(parallel.replicate(start), (), inputs)[0].params)
        alone = dataclasses.replace(network, axis_name=None)

        def loss(params):
            images = augment(batch["image"], None, None)
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, _ = alone.apply(given, images, train_trunk=True, train_experts=True, mutable=["batch_stats"])
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits[0]), batch["label"][:, None], 1))

        params = jax.tree.map(jnp.asarray, variables["params"])
        differentiated = jax.jit(jax.grad(loss))
        gradient = differentiated(params)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        second = differentiated(jax.tree.map(lambda p, g: p + rho * g / norm, params, gradient))
        expected, other = (jax.tree.map(lambda p, g: p - rate * g, params, used) for used in (second, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), found, expected)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), found, other))) > 1e-4


def test_bn_statistics_are_the_two_passes_over_all_images():
    """Each layer's inputs, batch by batch, from the network; their mean and then their variance in NumPy float64."""
    settings = base().model
    settings.update({"backbone": "resnet20", "width": 4, "blocks": (1, 1, 1), "depths": (1,)})
    images = DRAW.integers(0, 256, (11, 8, 8, 3), np.uint8)
    order = DRAW.permutation(11).astype(np.int32)
    plan = sampling.in_order(11, 4)  # the last batch has three images
    plan["index"] = np.where(plan["mask"] > 0, order[plan["index"]], 0)
    with jax.enable_x64(True):
        network = models.build_model(to_plain(settings), 3, dtype=jnp.float64, axis_name=parallel.AXIS)
        variables = models.init_variables(network, 1, 8)

        def transform(images):  # exact, however it is compiled
            return images.astype(jnp.float64) / 256 - 0.5

        feed = DeviceFeed(images, np.zeros(11, np.int32))
        modes = {"train_trunk": True, "train_experts": True}
        key, seen_keys = jax.random.key(5), set()

        def images_of(batch, own):
            jax.debug.callback(lambda value: seen_keys.add(tuple(map(int, value))), jax.random.key_data(own))
            return transform(batch["image"])

        estimate = make_estimate(network, feed, plan, images_of, modes, key)
        found = parallel.to_host(estimate(parallel.replicate(variables)))
        alone = dataclasses.replace(network, axis_name=None)
        inputs = {}
        for start in (0, 4, 8):
            batch = transform(images[order[start : start + 4]])
            _, seen = alone.apply(
                variables,
                batch,
                **modes,
                method="features",
                capture_intermediates=lambda module, _: type(module).__name__ == "Conv",
                mutable=["intermediates"],
            )
            for path, (values,) in flatten_dict(seen["intermediates"], sep="/").items():
                inputs.setdefault(path.removesuffix("/__call__"), []).append(np.asarray(values))
        assert seen_keys == {tuple(map(int, jax.random.key_data(jax.random.fold_in(key, n)))) for n in range(3)}
        frozen = make_estimate(network, feed, plan, images_of, {"train_trunk": False, "train_experts": True}, key)
        kept = parallel.to_host(frozen(parallel.replicate(variables)))
    layers = {path.rpartition("/")[0] for path in flatten_dict(found, sep="/")}
    assert len(layers) == len(inputs) > 10
    for layer in layers:
        values = np.concatenate(inputs[layer.replace("bn", "conv")]).astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        first = values.sum(0) / len(values)
        second = ((values - first) ** 2).sum(0) / (len(values) - 1)
        one = flatten_dict(found, sep="/")
        np.testing.assert_allclose(one[f"{layer}/mean"], first, rtol=1e-9, atol=1e-9, err_msg=layer)
        np.testing.assert_allclose(one[f"{layer}/var"], second, rtol=1e-9, err_msg=layer)
    before, after = (flatten_dict(tree, sep="/") for tree in (variables["batch_stats"], kept))
    for path in before:
        assert np.array_equal(before[path], after[path]) == path.startswith("trunk/"), path


CHANGES = (
    "stages.representation.average=ema",
    "stages.representation.average_decay=0.7",
    "stages.representation.sam_rho=0.05",
    "stages.classifier.average=uniform",
    "stages.classifier.average_epochs=1",
)
SHORT = (
    "stages.representation.max_steps=5",
    "stages.classifier.max_steps=3",
    "log=quiet",
    "model.depths=(1,)",
    "stages.representation.loss.nt=0.0",
    "stages.representation.loss.mu=0.0",
    "train.pictures=0",
)


def test_a_stopped_run_ends_bit_for_bit_with_its_averages(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, _ = parse_config(digits(1, 1, *SHORT, *CHANGES))
    states, estimates = [], []
    fit = loop.fit_epoch
    monkeypatch.setattr(loop, "fit_epoch", lambda *args: states.append(fit(*args)) or states[-1])
    make = averaging.make_estimate
    monkeypatch.setattr(averaging, "make_estimate", lambda *args: _counted(make(*args), estimates))
    clock = {**vars(time), "monotonic": lambda: time.monotonic() + 1000 * len(estimates)}
    monkeypatch.setattr(setup, "time", SimpleNamespace(**clock))
    results = loop.train(config, tmp_path / "whole")
    # The estimation of BN statistics, once a stage here, counts as evaluation.
    assert len(estimates) == 2 and 2000 < results["seconds"]["evaluate"] < 3000
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    final = [parallel.to_host(state) for state, _ in states]
    assert "step 3" in train_until(config, tmp_path / "stopped", 3)
    loop.train(config, tmp_path / "stopped")
    assert_same_end(tmp_path / "whole", tmp_path / "stopped", ("representation", "classifier"))
    # What is handed over are the averages, with other BN statistics than the running ones.
    for state, stage in zip(final, ("representation", "classifier"), strict=True):
        saved = weights(tmp_path / "whole", stage)
        heads = f"heads/{stage}/expert0/kernel"
        average, last = (flatten_dict(tree, sep="/")[heads] for tree in (state.average, state.params))
        np.testing.assert_array_equal(saved[f"params/{heads}"], average)
        assert np.abs(average - last).max() > 1e-4
        running = flatten_dict(state.batch_stats, sep="/")["trunk/bn1/mean"]
        assert np.abs(saved["batch_stats/trunk/bn1/mean"] - running).max() > 1e-4
    # Stage two starts from the averages of stage one, and averages nothing that it does not train.
    assert flatten_dict(final[1].average, sep="/")["trunk/conv1/kernel"] is None
    np.testing.assert_array_equal(
        weights(tmp_path / "whole", "classifier")["params/trunk/conv1/kernel"],
        flatten_dict(final[0].average, sep="/")["trunk/conv1/kernel"],
    )


def _counted(function, calls):
    def call(*args):
        calls.append(function(*args))
        return calls[-1]

    return call


def test_a_state_without_averages_has_no_new_arrays():
    template = setup.TrainState(np.int32(0), {"a": np.zeros(2)}, {}, ())
    from shike_jax.storage.trees import restore_into, to_tree

    assert set(flatten_dict(to_tree(template), sep="/")) == {"step", "params/a"}
    back = restore_into(template, unflatten_dict({"step": np.int32(4), "params/a": np.ones(2)}, sep="/"), "here")
    assert back.average is None and back.step == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("average=mean", "'mean': expected one of none, ema, uniform"),
        ("average_decay=1.0", "expected a number above 0 and below 1"),
        ("average_epochs=0", "expected a whole number from 1 to"),
        ("sam_rho=-0.1", "expected a number of at least 0"),
    ],
)
def test_mistakes_are_named(change, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=words):
        parse_config(digits(1, 1, f"stages.representation.{change}"))


@pytest.mark.slow
def test_kills_change_nothing_where_weights_are_averaged(tmp_path):
    drill = Drill(tmp_path, 2, 0, *CHANGES)
    drill.kill("interrupted", "training")
    drill.kill("interrupted", "saving")
    drill.terminate("interrupted")
    drill.finish("interrupted")
    drill.finish("uninterrupted")
    drill.same_end("uninterrupted", "interrupted")


@pytest.mark.slow
def test_two_devices_average_alike(tmp_path):
    flags = digits(1, 1, "dtype=float64", *SHORT, *CHANGES, "eval.batch_size=56")
    for devices in (1, 2):
        job = Job(tmp_path / str(devices), flags, devices=devices)
        assert job.wait() == [0], job.output()[-2000:]
    for stage in ("representation", "classifier"):
        one, two = (weights(tmp_path / str(devices), stage) for devices in (1, 2))
        for path, value in one.items():
            assert np.abs(two[path] - value).max() <= 1e-8 * np.abs(value).max(), path
