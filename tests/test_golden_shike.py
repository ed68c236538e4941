"""The CIFAR network against float64 values of the authors' public PyTorch implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax import config
from shike_jax.convert import names
from shike_jax.methods import losses
from shike_jax.models import build_model, num_parameters
from shike_jax.training import optim
from tests.convert.weights import fill

MODEL = "shike_resnet32_cifar"


@pytest.fixture(scope="module")
def golden(shared):
    return dict(np.load(shared / "golden" / "shike_resnet32_cifar.npz"))


def inputs(golden, step=None):
    """Images and labels of the golden rule; `step` counts the five SGD steps."""
    seed = int(golden["weights_seed"])
    image_seed, label_seed = (seed + 1, seed + 2) if step is None else (seed + 10 + step, seed + 20 + step)
    images = np.random.RandomState(image_seed).standard_normal((16, 32, 32, 3))
    labels = np.random.RandomState(label_seed).randint(0, 100, 16)
    if step is None:
        np.testing.assert_array_equal(labels, golden["labels"])
    return images, labels


def setup(golden, dtype):
    named = zip(golden["names"], golden["shapes"], strict=True)
    shapes = {str(name): tuple(map(int, str(shape).split(","))) for name, shape in named}
    variables, classes = names.to_variables(MODEL, fill(shapes, int(golden["weights_seed"]), np.float64), dtype=dtype)
    return build_model(config.base().model, classes, dtype=dtype), variables


def representation_loss(network, params, batch_stats, images, labels):
    logits, new = network.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train_trunk=True,
        train_experts=True,
        mutable=["batch_stats"],
    )
    value = losses.cross_entropy(logits, labels) + losses.mutual_distillation(logits)
    value = jnp.mean(value + 10 * losses.non_target_distillation(logits, labels))
    return value, (new["batch_stats"], logits)


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_forward_and_gradients(golden, kind):
    exact = kind == "float64"
    with jax.enable_x64(exact):
        network, variables = setup(golden, jnp.dtype(kind))
        images, labels = inputs(golden)
        images, labels = jnp.asarray(images, kind), jnp.asarray(labels)

        @jax.jit
        def evaluate(images):
            found = network.apply(variables, images, method="features")
            pooled = jnp.stack([jnp.mean(f, (1, 2)) for f in found["fused"]])
            heads = {
                h: network.apply(variables, found["fused"], h, method="classify")
                for h in ("representation", "classifier")
            }
            return found, pooled, heads

        found, pooled, heads = evaluate(images)
        close = {"rtol": 1e-6, "atol": 1e-7} if exact else {"rtol": 0, "atol": 1e-4}

        def check_map(actual, name):
            """Maps reach 200 and pooled features 1000 with these weights: 1e-4 is below float32's resolution there."""
            scale = np.abs(golden[name]).max()
            np.testing.assert_allclose(actual, golden[name], rtol=0, atol=scale * (1e-7 if exact else 1e-5))

        for s in (0, 1):
            check_map(found["shared"][s][:2], f"eval_stage{s + 1}")
        for m in range(3):
            check_map(found["deep"][m][:2], f"eval_deep{m}")
            check_map(found["aligned"][m][:2], f"eval_aligned{m}")
        check_map(pooled, "eval_fused_pooled")
        for name, logits in heads.items():
            np.testing.assert_allclose(logits, golden[f"eval_logits_{name}"], **close)

        step = jax.jit(
            jax.value_and_grad(
                lambda p: representation_loss(network, p, variables["batch_stats"], images, labels), has_aux=True
            )
        )
        (value, (stats, logits)), grads = step(variables["params"])
        np.testing.assert_allclose(
            logits, golden["train_logits_representation"], **(close if exact else {"rtol": 0, "atol": 5e-4})
        )
        np.testing.assert_allclose(value, golden["loss_representation"], rtol=1e-6 if exact else 1e-5)
        found = names.to_state_dict(MODEL, {"params": grads, "batch_stats": stats})
        checked = 0
        for key, expected in golden.items():
            if key.startswith("gradnorm/"):
                norm = np.linalg.norm(found[key.removeprefix("gradnorm/")])
                np.testing.assert_allclose(norm, expected, rtol=1e-6 if exact else 5e-3, err_msg=key)
                checked += 1
            elif key.startswith("grad/") and exact:  # stored in float32
                scale = np.abs(expected).max()
                got = found[key.removeprefix("grad/")]
                np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * scale, err_msg=key)
        assert checked > 150


def test_classifier_stage(golden):
    with jax.enable_x64(True):
        network, variables = setup(golden, jnp.float64)
        images, labels = (jnp.asarray(x) for x in inputs(golden))
        counts = jnp.asarray(golden["class_counts"])
        trainable = optim.trainable_mask(variables["params"], ("heads/classifier/.*",))
        frozen = optim.select(variables["params"], trainable, False)

        @jax.jit
        def loss(trained):
            logits, _ = network.apply(
                {"params": optim.merge(trained, frozen), "batch_stats": variables["batch_stats"]},
                images,
                "classifier",
                train_trunk=True,
                train_experts=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(losses.balanced_softmax(logits, labels, counts))

        value, grads = jax.value_and_grad(loss)(optim.select(variables["params"], trainable))
        np.testing.assert_allclose(value, golden["loss_classifier"], rtol=1e-9)
        kernel = grads["heads"]["classifier"]["expert0"]["kernel"]
        expected = golden["grad_classifier_stage/rt_classifiers.0.weight"]
        np.testing.assert_allclose(kernel, expected, rtol=1e-6, atol=1e-9)
        moved = [path for path, leaf in flatten_dict(grads).items() if leaf is not None]
        assert len(moved) == 3 and all(path[:2] == ("heads", "classifier") for path in moved)


def test_five_sgd_steps(golden):
    with jax.enable_x64(True):
        network, variables = setup(golden, jnp.float64)
        optimizer = optim.sgd(0.9, 5e-4)
        params, stats = variables["params"], variables["batch_stats"]
        state = optimizer.init(params)

        @jax.jit
        def step(params, stats, state, images, labels):
            (value, (stats, _)), grads = jax.value_and_grad(
                lambda p: representation_loss(network, p, stats, images, labels), has_aux=True
            )(params)
            updates, state = optimizer.update(grads, state, params)
            return jax.tree.map(lambda p, u: p - 0.05 * u, params, updates), stats, state, value

        found = []
        for i in range(5):
            images, labels = inputs(golden, i)
            params, stats, state, value = step(params, stats, state, images, labels)
            found.append(value)
        np.testing.assert_allclose(found, golden["sgd_losses"], rtol=1e-6)
        torch = names.to_state_dict(MODEL, {"params": params, "batch_stats": stats})
        np.testing.assert_allclose(torch["conv1.weight"], golden["sgd_conv1_weight_after"], rtol=1e-6, atol=1e-7)
        mean = torch["bn1.running_mean"]
        np.testing.assert_allclose(mean, golden["sgd_bn1_running_mean_after"], rtol=1e-6, atol=1e-8)
        # The stored variances are those after the five steps: the file's `bn1_running_mean_after` equals its
        # `sgd_bn1_running_mean_after`. PyTorch moves them towards the unbiased estimate n / (n - 1); so does our layer.
        np.testing.assert_array_equal(golden["bn1_running_mean_after"], golden["sgd_bn1_running_mean_after"])
        np.testing.assert_allclose(torch["bn1.running_var"], golden["bn1_running_var_after"], rtol=1e-6)
        aligned = torch["shallow_exps.0.convs.StridedConv0.conv.1.running_var"]
        np.testing.assert_allclose(aligned, golden["shallow0_bn_running_var_after"], rtol=1e-6)
        logits = jax.jit(network.apply)({"params": params, "batch_stats": stats}, inputs(golden)[0])
        np.testing.assert_allclose(logits, golden["sgd_eval_logits_after"], rtol=1e-6, atol=1e-6)


def test_bfloat16_stays_close(golden):
    """Measured: 0.75 of 30 at most on these random weights; logits are 30 times a cosine."""
    network, variables = setup(golden, jnp.float32)
    network = build_model(config.base().model, 100, dtype=jnp.bfloat16)
    logits = jax.jit(network.apply)(variables, jnp.asarray(inputs(golden)[0], jnp.float32))
    assert logits.dtype == jnp.float32
    error = np.abs(logits - golden["eval_logits_representation"])
    assert 0 < error.max() < 1.5 and error.mean() < 0.2


def test_parameter_count(golden):
    """The authors' three experts, 100 classes, both sets of classifiers."""
    assert num_parameters(setup(golden, jnp.float32)[1]["params"]) == 1_277_008
