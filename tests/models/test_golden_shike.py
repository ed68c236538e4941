"""The CIFAR network and its training step against float64 values of the authors' public PyTorch implementation.

Losses, gradients and updates are those of the compiled step that training runs, not of a copy written for the test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax import config as schema
from shike_jax.cluster import parallel
from shike_jax.convert import names
from shike_jax.kernels import onednn
from shike_jax.models import build_model, num_parameters
from shike_jax.training import compiled_steps
from shike_jax.training.program import make_program
from shike_jax.training.state import start_stage, variables_of
from tests.conftest import GOLDEN
from tests.convert.weights import fill

MODEL = "shike_resnet32_cifar"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "shike_resnet32_cifar.npz"))


def batch_of(golden, kind, step=None):
    """Images and labels of the golden rule; `step` counts the five SGD steps."""
    seed = int(golden["weights_seed"])
    image_seed, label_seed = (seed + 1, seed + 2) if step is None else (seed + 10 + step, seed + 20 + step)
    images = np.random.RandomState(image_seed).standard_normal((16, 32, 32, 3))
    labels = np.random.RandomState(label_seed).randint(0, 100, 16)
    if step is None:
        np.testing.assert_array_equal(labels, golden["labels"])
    return {"image": images.astype(kind), "label": labels.astype(np.int32), "mask": np.ones(16, kind)}


def golden_variables(golden, dtype):
    named = zip(golden["names"], golden["shapes"], strict=True)
    shapes = {str(name): tuple(map(int, str(shape).split(","))) for name, shape in named}
    variables, _ = names.to_variables(MODEL, fill(shapes, int(golden["weights_seed"]), np.float64), dtype=dtype)
    return variables


def training(golden, kind, name="representation", class_counts=None, by_onednn=False, **changes):
    """(state at the golden weights, function of state and batch): the compiled step of a stage of SHIKE."""
    config = schema.base()
    schema.shike_stages(config, "official")
    settings = config.stages[name]
    settings.update({"schedule": "constant", "lr": 0.05, **changes})
    variables = golden_variables(golden, jnp.dtype(kind))
    network = build_model(config.model, 100, dtype=jnp.dtype(kind), axis_name=parallel.AXIS)
    counts = np.ones(100) if class_counts is None else class_counts
    key = jax.random.key(0)
    # The golden images are normalised already.
    program = make_program(
        settings, network, variables["params"], counts, lambda images, keys, mask: images, key, 85, 850
    )
    call = compiled_steps.compile_train(program, lambda data, item: item, by_onednn=by_onednn)
    assert call.by_onednn == by_onednn

    def step(state, batch):
        inputs = jax.tree.map(lambda x: x[:, None], parallel.split_batch(batch))
        state, sums = call(state, (), inputs)
        sums = parallel.to_host(sums)
        return state, {name: value / sums["count"] for name, value in sums.items()}

    state = start_stage(variables, program)
    return parallel.replicate(state), step


def gradients(state):
    """What the momentum buffer holds after one step without weight decay: the gradient."""
    return state.opt_state[1].trace


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_evaluation_mode_maps_and_logits(golden, kind):
    exact = kind == "float64"
    with jax.enable_x64(exact):
        variables = golden_variables(golden, jnp.dtype(kind))
        network = build_model(schema.base().model, 100, dtype=jnp.dtype(kind))

        @jax.jit
        def evaluate(images):
            found = network.apply(variables, images, method="features")
            pooled = jnp.stack([jnp.mean(f, (1, 2)) for f in found["fused"]])
            sets = ("representation", "classifier")
            return found, pooled, {h: network.apply(variables, found["fused"], h, method="classify") for h in sets}

        found, pooled, heads = evaluate(batch_of(golden, kind)["image"])

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
        close = {"rtol": 1e-6, "atol": 1e-7} if exact else {"rtol": 0, "atol": 1e-4}
        for name, logits in heads.items():
            np.testing.assert_allclose(logits, golden[f"eval_logits_{name}"], **close)


def test_training_mode_logits(golden):
    with jax.enable_x64(True):
        variables = golden_variables(golden, jnp.float64)
        network = build_model(schema.base().model, 100, dtype=jnp.float64)
        train = {"train_trunk": True, "train_experts": True, "mutable": ["batch_stats"]}
        logits, _ = jax.jit(lambda x: network.apply(variables, x, **train))(batch_of(golden, np.float64)["image"])
        np.testing.assert_allclose(logits, golden["train_logits_representation"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "by_onednn"),
    [
        ("float64", False),
        ("float32", False),
        pytest.param(
            "float32", True, marks=pytest.mark.skipif(not onednn.usable(), reason="this JAX has no oneDNN to call")
        ),
    ],
)
def test_loss_and_gradients_of_the_training_step(golden, kind, by_onednn):
    exact = kind == "float64"
    with jax.enable_x64(exact):
        state, step = training(golden, kind, by_onednn=by_onednn, weight_decay=0.0)
        state, means = step(state, batch_of(golden, kind))
        np.testing.assert_allclose(means["loss"], golden["loss_representation"], rtol=1e-6 if exact else 1e-5)
        weighted = means["ce"] + 10 * means["nt"] + means["mu"]
        np.testing.assert_allclose(means["loss"], weighted, rtol=1e-9 if exact else 1e-6)
        # The other set of classifiers takes no part: its gradient is 0.
        grads = jax.tree.map(
            lambda p, g: np.zeros_like(p) if g is None else np.asarray(g),
            parallel.to_host(state.params),
            gradients(state),
            is_leaf=lambda x: x is None,
        )
        found = names.to_state_dict(MODEL, {"params": grads, "batch_stats": parallel.to_host(state.batch_stats)})
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
        state, step = training(golden, "float64", "classifier", golden["class_counts"], weight_decay=0.0)
        before = parallel.to_host(state.params)
        state, means = step(state, batch_of(golden, np.float64))
        np.testing.assert_allclose(means["loss"], golden["loss_classifier"], rtol=1e-9)
        kernel = gradients(state)["heads"]["classifier"]["expert0"]["kernel"]
        expected = golden["grad_classifier_stage/rt_classifiers.0.weight"]
        np.testing.assert_allclose(kernel, expected, rtol=1e-6, atol=1e-9)
        old, new = flatten_dict(before), flatten_dict(parallel.to_host(state.params))
        moved = [path for path in old if not np.array_equal(old[path], new[path])]
        assert len(moved) == 3 and all(path[:2] == ("heads", "classifier") for path in moved)


def test_five_sgd_steps(golden):
    with jax.enable_x64(True):
        # The golden steps decay every weight, those of the unused classifiers too.
        state, step = training(golden, "float64", decay_frozen=True)
        found = []
        for i in range(5):
            state, means = step(state, batch_of(golden, np.float64, i))
            found.append(means["loss"])
        np.testing.assert_allclose(found, golden["sgd_losses"], rtol=1e-6)
        variables = parallel.to_host(variables_of(state))
        torch = names.to_state_dict(MODEL, variables)
        np.testing.assert_allclose(torch["conv1.weight"], golden["sgd_conv1_weight_after"], rtol=1e-6, atol=1e-7)
        mean = torch["bn1.running_mean"]
        np.testing.assert_allclose(mean, golden["sgd_bn1_running_mean_after"], rtol=1e-6, atol=1e-8)
        # The stored variances are those after the five steps: the file's `bn1_running_mean_after` equals its
        # `sgd_bn1_running_mean_after`. PyTorch moves them towards the unbiased estimate n / (n - 1); so does our layer.
        np.testing.assert_array_equal(golden["bn1_running_mean_after"], golden["sgd_bn1_running_mean_after"])
        np.testing.assert_allclose(torch["bn1.running_var"], golden["bn1_running_var_after"], rtol=1e-6)
        aligned = torch["shallow_exps.0.convs.StridedConv0.conv.1.running_var"]
        np.testing.assert_allclose(aligned, golden["shallow0_bn_running_var_after"], rtol=1e-6)
        network = build_model(schema.base().model, 100, dtype=jnp.float64)
        logits = jax.jit(network.apply)(variables, batch_of(golden, np.float64)["image"])
        np.testing.assert_allclose(logits, golden["sgd_eval_logits_after"], rtol=1e-6, atol=1e-6)


def test_bfloat16_stays_close(golden):
    """Measured: 0.75 of 30 at most on these random weights; logits are 30 times a cosine."""
    variables = golden_variables(golden, jnp.float32)
    network = build_model(schema.base().model, 100, dtype=jnp.bfloat16)
    logits = jax.jit(network.apply)(variables, batch_of(golden, np.float32)["image"])
    assert logits.dtype == jnp.float32
    error = np.abs(logits - golden["eval_logits_representation"])
    assert 0 < error.max() < 1.5 and error.mean() < 0.2


def test_parameter_count(golden):
    """The authors' three experts, 100 classes, both sets of classifiers."""
    assert num_parameters(golden_variables(golden, jnp.float32)["params"]) == 1_277_008
