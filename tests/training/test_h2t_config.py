"""The H2T configuration: the authors' settings, and the exchange as an option elsewhere."""

import functools

import jax
import numpy as np
import pytest

from shike_jax import models
from shike_jax.config import loading as flags
from shike_jax.data import splits
from shike_jax.errors import UserError
from shike_jax.methods import LOSSES, SCHEDULES, StageLength
from shike_jax.models.resnet import BasicBlock, Mode
from shike_jax.training.trainable import select, trainable_mask

FILE = "configs/h2t_cifar.py"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def load(*arguments):
    return flags.parse_config([*arguments])[0]


def rates(stage, epochs):
    """The learning rate of each epoch, 85 steps long."""
    length = StageLength(stage.lr, stage.epochs, 85)
    at = functools.partial(SCHEDULES[stage.schedule].function, stage=length)
    return [float(at(np.int32(85 * e))) for e in range(epochs)]


def test_stages_follow_the_authors_settings():
    config = load(f"--config={FILE}")
    one, two = (config.stages[name] for name in config.run)
    assert tuple(config.run) == ("mixup", "h2t")
    assert (one.epochs, two.epochs, one.batch_size, two.batch_size) == (200, 10, 128, 128)
    assert (one.mixup, one.exchange, one.sampler, tuple(one.train)) == (1.0, 0.0, "shuffle", (".*",))
    assert (two.mixup, two.exchange, two.sampler) == (0.0, 0.25, "paired")
    assert one.heads == two.heads == "representation"  # stage two goes on with stage one's classifier
    assert {one.weight_decay, two.weight_decay} == {5e-4}
    for stage in (one, two):
        assert {name: stage.loss[name] for name in LOSSES if stage.loss[name]} == {"ce": 1.0}
        assert (stage.bn_trunk, stage.bn_experts, stage.momentum, stage.keep_last) == ("batch", "batch", 0.9, True)
    assert (config.data.subset, config.data.divisions) == ("h2t", "h2t")
    # 0.1 and 0.1 * 0.2, times (1 + cos(pi e / T)) / 2 by hand.
    np.testing.assert_allclose(rates(one, 101)[::50], [0.1, 0.0853553, 0.05], rtol=1e-5)
    np.testing.assert_allclose(rates(two, 6)[::5], [0.02, 0.01], rtol=1e-5)


def test_the_network_is_the_plain_resnet32():
    config = load(f"--config={FILE}")
    network = models.build_model(config.model, 100)
    shapes = jax.eval_shape(lambda key: network.init(key, np.zeros((1, 32, 32, 3), np.float32)), jax.random.key(0))
    # He et al.'s 0.46 M with a classifier of 10: 464,154; less 650, plus two of 6,500 (100 classes).
    assert models.num_parameters(shapes["params"]) == 464_154 - 650 + 2 * 6_500
    trained = select(shapes["params"], trainable_mask(shapes["params"], config.stages.h2t.train))
    assert models.num_parameters(trained) == 6_500


def test_shortcut_a_pads_channels_on_both_sides():
    """With BN scales of zero behind it, a block is its shortcut: strided identity, C / 4 zero channels on each side."""
    spec = models.Backbone((1, 1, 1), 4, shortcut="A")
    block = BasicBlock(spec, 8, 2)
    image = np.random.RandomState(0).uniform(0.1, 1, (2, 6, 6, 4)).astype(np.float32)
    variables = block.init(jax.random.key(0), image, Mode(False))
    variables["params"]["bn2"]["scale"] = np.zeros(8, np.float32)
    found = np.asarray(block.apply(variables, image, Mode(False)))
    expected = np.zeros((2, 3, 3, 8), np.float32)
    expected[..., 2:6] = image[:, ::2, ::2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_arguments():
    config = load(f"--config={FILE}:imbalance_factor=50,epochs=15,classifier_epochs=4,exchange=0,weight_decay=2e-4")
    assert config.name == "h2t_cifar100_lt_if50"
    assert config.data.imbalance_factor == 50
    assert (config.stages.mixup.epochs, config.stages.h2t.epochs) == (15, 4)
    assert (config.stages.h2t.exchange, config.stages.h2t.sampler) == (0.0, "balanced")
    assert config.stages.mixup.weight_decay == config.stages.h2t.weight_decay == 2e-4
    assert tuple(load(f"--config={FILE}", '--config.run=("h2t",)').run) == ("h2t",)


@pytest.mark.parametrize(("factor", "images"), [(50, 12_608), (100, 10_847), (200, 9_502)])
def test_split_sizes(factor, images):
    assert splits.longtail_counts(500, 100, factor, "exponential").sum() == images


def test_the_exchange_is_an_option_of_other_classifier_stages():
    overrides = ("--config.stages.classifier.exchange=0.25", "--config.stages.classifier.sampler=paired")
    for file in ("configs/cifar_lt.py", "configs/imagenet_lt.py"):
        stage = load(f"--config={file}", *overrides).stages.classifier
        assert (stage.exchange, stage.sampler) == (0.25, "paired")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("--config.stages.h2t.sampler=balanced",),
            r"sampler='balanced': expected a sampler of pairs \(paired.*\) with exchange > 0",
        ),
        (("--config.stages.h2t.exchange=1.5",), "exchange=1.5: expected a number from 0 to 1"),
        (('--config.stages.h2t.train=(".*",)',), "parameters under heads/ with exchange > 0"),
    ],
)
def test_impossible_exchanges_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load(f"--config={FILE}", *overrides)
