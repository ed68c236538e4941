"""The channel exchange against NumPy: alone, and inside whole training steps on one and on eight devices.

The steps start from classifiers of zeros: every prediction is then uniform, so row k of a classifier's gradient is
`mean_i pooled[i, k] (1/C - onehot_i)` and tells for each channel alone which of the two batches it came from.
"""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.methods import HookInputs
from shike_jax.methods import feature_hooks as fusion
from shike_jax.training import compiled_steps
from shike_jax.training.program import make_program
from shike_jax.training.state import start_stage
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

EXPECTED_DEVICES = "SHIKE_TEST_DEVICES"  # variable set for the copy of this file that runs on several
CLASSES, BATCH, PADDED, LR = 7, 16, 3, 0.5
NARROW = {"backbone": "resnet20", "width": 4, "blocks": (1, 1, 1), "head": "linear", "shortcut": "A", "image_size": 8}
MODELS = {
    "plain": NARROW | {"depths": (1,), "fusion": False},
    "shike": NARROW | {"depths": (1, 2, 1), "fusion": True, "shortcut": "B"},
    "bottlenecks": NARROW
    | {"backbone": "resnet50", "width": 2, "blocks": (1, 1, 1, 1), "depths": (1,), "fusion": False, "image_size": 32},
}


def exchanged(own, other, result):
    """The channels of `result` [B,h,w,K] that are `other`'s in every image and place; the rest must be `own`'s."""
    flags = [np.array_equal(result[..., k], other[..., k]) for k in range(result.shape[-1])]
    expected = own.copy()
    for k, flag in enumerate(flags):
        if flag:
            expected[..., k] = other[..., k]
    np.testing.assert_array_equal(result, expected)
    return np.flatnonzero(flags)


def exchange_channels(key, maps, others, share):
    return fusion.exchange(HookInputs(maps, others, key, share))


def random_maps(channels, experts=1, seed=0):
    random = np.random.RandomState(seed)
    return [random.standard_normal((5, 3, 3, channels)).astype(np.float32) for _ in range(2 * experts)]


@pytest.mark.parametrize(
    ("rho", "channels", "count"),
    [(0.25, 64, 16), (0.3, 10, 3), (0.3, 16, 4), (0.25, 7, 1), (0.29, 100, 29), (0.1, 9, 0), (0.999, 8, 7)],
)
def test_exactly_the_floor_of_the_share_for_the_whole_batch(rho, channels, count):
    own, other = random_maps(channels)
    (result,) = exchange_channels(jax.random.key(1), [own], [other], rho)
    assert len(exchanged(own, other, np.asarray(result))) == count


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_nothing_and_everything_are_the_plain_batches(rho):
    own, other = random_maps(12)
    (result,) = exchange_channels(jax.random.key(0), [own], [other], rho)
    np.testing.assert_array_equal(result, other if rho else own)


def test_every_channel_has_the_same_chance():
    own, other = np.zeros((1, 1, 1, 8), np.float32), np.ones((1, 1, 1, 8), np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: exchange_channels(key, [own], [other], 0.25)[0]))
    drawn = np.asarray(draw(keys)).reshape(4000, 8)
    np.testing.assert_array_equal(drawn.sum(1), 2)
    assert np.abs(drawn.mean(0) - 0.25).max() < 0.03  # more than four standard deviations
    together = drawn.T @ drawn / 4000  # pairs: 1/4 * 1/7 each, so no two channels go together
    assert np.abs(together[~np.eye(8, dtype=bool)] - 1 / 28).max() < 0.015


def test_experts_draw_for_themselves():
    maps = random_maps(32, experts=3)
    results = exchange_channels(jax.random.key(4), maps[:3], maps[3:], 0.25)
    chosen = [exchanged(*trio) for trio in zip(maps[:3], maps[3:], map(np.asarray, results), strict=True)]
    assert [len(c) for c in chosen] == [8, 8, 8]
    assert len({tuple(c) for c in chosen}) == 3


def test_no_gradient_reaches_either_map():
    own, other = random_maps(12)

    def total(own, other):
        return jnp.sum(exchange_channels(jax.random.key(0), [own], [other], 0.5)[0] ** 2)

    for gradient in jax.grad(total, (0, 1))(own, other):
        np.testing.assert_array_equal(gradient, 0)


def batch_of_pairs(image_size):
    """A balanced and an instance-sampled batch with labels of their own, the last examples padding."""
    random = np.random.RandomState(5)
    shape = (BATCH, image_size, image_size, 3)
    image, partner = (random.randint(0, 256, shape).astype(np.uint8) for _ in range(2))
    batch = {"image": image, "label": np.arange(BATCH, dtype=np.int32) % CLASSES}
    batch["partner"] = {"image": partner, "label": np.zeros(BATCH, np.int32)}
    return batch | {"mask": (np.arange(BATCH) < BATCH - PADDED).astype(np.float32)}


def random_variables(network, image_size):
    """Random convolutions and BN scales, classifiers of zeros; drawn by NumPy, so that nothing is compiled."""
    images = jnp.zeros((1, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda key: network.init(key, images), jax.random.key(0))
    random = np.random.RandomState(3)

    def fill(path, leaf):
        names = [key.key for key in path]
        if "heads" in names or names[-1] in ("bias", "mean"):
            return np.zeros(leaf.shape, np.float32)
        if len(leaf.shape) == 4:
            return (random.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:3]))).astype(np.float32)
        return random.uniform(0.8, 1.2, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, dict(shapes))


def normalise(images, keys=None, mask=None):
    """In place of the augmentation."""
    return images.astype(np.float32) / 255 - 0.5


def step_and_references(name, rho, step, cache={}):  # noqa: B006
    """One training step's (heads before and after, BN statistics after, reference rows); compiled once per case.

    The reference rows are float [M,K,C] of either batch, made from the network's own maps by NumPy alone.
    """
    model, batch = MODELS[name], batch_of_pairs(MODELS[name]["image_size"])
    model = {**schema.base().model.to_dict(), **model}
    if (name, rho) not in cache:
        plain = models.build_model(model, CLASSES)
        variables = random_variables(plain, model["image_size"])
        stage = schema.stage(
            heads="classifier",
            train=("heads/classifier/.*",),
            schedule="constant",
            lr=LR,
            exchange=rho,
            sampler="paired" if rho else "balanced",
        )
        network = models.build_model(model, CLASSES, axis_name=parallel.AXIS)
        program = make_program(
            stage, network, variables["params"], np.ones(CLASSES), normalise, jax.random.key(8), 1, 1
        )
        train = {"train_trunk": True, "train_experts": True, "mask": batch["mask"]}
        features = jax.jit(
            lambda x: plain.apply(variables, x, **train, method="features", mutable=["batch_stats"])[0]["fused"]
        )
        maps = [
            [np.asarray(m, np.float64) for m in features(normalise(of["image"]))] for of in (batch, batch["partner"])
        ]
        rows = [np.stack([reference_rows(m, batch) for m in side]) for side in maps]
        cache[name, rho] = (program, compiled_steps.compile_train(program, lambda data, item: item), variables, rows)
    program, call, variables, rows = cache[name, rho]
    state = start_stage(variables, program).replace(step=np.int32(step))
    inputs = jax.tree.map(lambda x: x[:, None], parallel.split_batch(batch))
    after, sums = call(parallel.replicate(state), (), inputs)
    assert float(sums["count"]) == BATCH - PADDED
    return variables, jax.tree.map(np.asarray, after), rows


def reference_rows(maps, batch):
    """Gradient [K,C] of the mean cross-entropy of uniform predictions with the balanced batch's labels."""
    rows = np.zeros((maps.shape[-1], CLASSES))
    for i in range(BATCH - PADDED):
        pooled = maps[i].reshape(-1, maps.shape[-1]).mean(0)
        rows += np.outer(pooled, 1 / CLASSES - np.eye(CLASSES)[batch["label"][i]])
    return rows / (BATCH - PADDED)


def taken_from_partner(after, rows):
    """For each expert the channels whose row is the partner's; each row must be wholly one's or the other's."""
    found = []
    for m, (own, other) in enumerate(zip(*rows, strict=True)):
        gradient = after.params["heads"]["classifier"][f"expert{m}"]["kernel"] / -LR
        scale = np.abs(own).max()
        to_own, to_other = (np.abs(gradient - reference).max(1) / scale for reference in (own, other))
        assert np.abs(own - other).max(1).min() / scale > 1e-3, "the two batches must differ in every channel"
        assert np.minimum(to_own, to_other).max() < 1e-4
        found.append(np.flatnonzero(to_other < to_own))
    return found


@pytest.fixture(autouse=True)
def as_many_devices_as_expected():
    assert jax.device_count() == int(os.environ.get(EXPECTED_DEVICES, jax.device_count()))


@pytest.mark.parametrize(("name", "rho"), [("plain", 0.3), ("shike", 0.3), ("bottlenecks", 0.25)])
def test_step_exchanges_new_channels_each_time(name, rho):
    drawn = []
    for step in range(3):
        _, after, rows = step_and_references(name, rho, step)
        channels = rows[0].shape[1]
        drawn.append(taken_from_partner(after, rows))
        assert [len(c) for c in drawn[-1]] == [int(rho * channels)] * len(rows[0])
    assert len({tuple(map(tuple, d)) for d in drawn}) == 3


def test_step_without_exchange_reads_the_balanced_batch_alone():
    _, after, rows = step_and_references("plain", 0.0, 0)
    (chosen,) = taken_from_partner(after, rows)
    assert not len(chosen)


def test_step_moves_the_classifier_alone():
    before, after, _ = step_and_references("shike", 0.3, 0)
    old, new = before["params"], after.params
    for part in (key for key in old if key != "heads"):
        jax.tree.map(np.testing.assert_array_equal, old[part], new[part])
    jax.tree.map(np.testing.assert_array_equal, old["heads"]["representation"], new["heads"]["representation"])
    assert all(np.abs(head["kernel"]).max() > 0 for head in new["heads"]["classifier"].values())


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_step_moves_running_averages_by_the_balanced_batch_then_by_its_partner(rho):
    before, after, _ = step_and_references("plain", rho, 0)
    kernel, batch = before["params"]["trunk"]["conv1"]["kernel"], batch_of_pairs(8)
    mean = np.zeros(4)
    for of in (batch, batch["partner"]) if rho else (batch,):
        mean += 0.1 * (convolve(normalise(of["image"][:-PADDED]), kernel).mean((0, 1, 2)) - mean)
    np.testing.assert_allclose(after.batch_stats["trunk"]["bn1"]["mean"], mean, rtol=1e-4, atol=1e-6)


def convolve(images, kernel):
    """3 x 3, stride 1, zero padding, by nine matrix products."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [(r, c, padded[:, r : r + height, c : c + width]) for r in range(3) for c in range(3)]
    return sum(window @ kernel[r, c] for r, c, window in shifted)


def test_eight_devices_exchange_the_same_channels():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "NPROC": "16",  # to spare: a collective holds a thread of each device while it waits
        "JAX_PLATFORMS": "cpu",
        EXPECTED_DEVICES: "8",
    }
    names = "new_channels_each_time and plain or then_by_its_partner and 0.3"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", names, __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 passed" in done.stdout


def test_training_names_no_method():
    """H2T's exchange is a registered hook: nothing but the file of hooks, configurations and reports speak of it."""
    package = pathlib.Path(fusion.__file__).parents[1]
    rooms = ("training", "evaluation", "cluster", "storage", "models", "kernels", "augment", "data", "commands")
    files = [path for room in rooms for path in package.glob(f"{room}/*.py") if path.stem not in ("splits", "card")]
    pattern = re.compile("h2t|head.?to.?tail|exchange_channels|[\"']exchange[\"']", re.IGNORECASE)
    assert pattern.search(pathlib.Path(fusion.__file__).read_text())
    assert [f.name for f in files if pattern.search(f.read_text())] == []
