"""The policies on the host: drawn from an image's own stream with the policies' probabilities, and placed as asked."""

import collections

import jax
import numpy as np
import pytest
from scipy.stats import chi2, chisquare, norm

from shike_jax import config as schema
from shike_jax.augment import host, make_train_augment, policies
from shike_jax.augment.host import make_host_policy
from shike_jax.data import views
from shike_jax.data.images import CROP_DRAWS, uniforms_of
from shike_jax.errors import UserError

RANDAUGMENT = {"layers": 2, "magnitude": 9.0, "magnitude_std": 0.5, "prob": 0.5}


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 20, 3), np.uint8)


def test_autoaugment_outcomes_have_their_probabilities(monkeypatch):
    """Operations and signs of 20,000 draws; nothing is done to an image."""
    seen = collections.Counter()
    calls = []
    monkeypatch.setattr(host, "autoaugment_operation", lambda image, *what: calls.append(what) or image)
    apply, draws = make_host_policy("autoaugment_cifar", {}, (0, 0, 0))
    image, count = pictures(1)[0], 20_000
    for uniforms in np.random.default_rng(1).random((count, draws)):
        calls.clear()
        apply(image, uniforms)
        seen[tuple(calls)] += 1
    expected = collections.Counter()
    for pair in policies.AUTOAUGMENT_CIFAR:
        outcomes = []
        for chance, name, level in pair:
            signed = {((name, level, sign),): chance / 2 for sign in (-1, 1)}
            outcomes.append({(): 1 - chance} | signed)
        for first, a in outcomes[0].items():
            for second, b in outcomes[1].items():
                expected[first + second] += count * a * b / 25
    assert set(seen) <= {key for key, value in expected.items() if value}
    statistic = sum((seen[key] - value) ** 2 / value for key, value in expected.items() if value)
    assert chi2.sf(statistic, sum(value > 0 for value in expected.values()) - 1) > 1e-3


def test_randaugment_draws_operations_levels_filters_and_signs(monkeypatch):
    calls = []
    monkeypatch.setattr(host, "randaugment_operation", lambda image, *what: calls.append(what) or image)
    apply, draws = make_host_policy("randaugment", RANDAUGMENT, (0.5, 0.25, 1.0))
    image, count = pictures(1)[0], 10_000
    for uniforms in np.random.default_rng(2).random((count, draws)):
        apply(image, uniforms)
    assert abs(len(calls) / count - 2 * 0.5) < 0.03  # four standard deviations of the gates
    names = collections.Counter(name for name, *_ in calls)
    assert chisquare([names[name] for name, _, _ in policies.RANDAUGMENT]).pvalue > 1e-3
    assert {fill for *_, fill in calls} == {(128, 64, 255)}
    assert abs(np.mean([cubic for _, _, cubic, _ in calls]) - 0.5) < 0.03
    turned = np.array([argument for name, argument, *_ in calls if name == "Rotate"]) / 30 * 10
    assert abs(np.mean(turned > 0) - 0.5) < 0.1
    levels = np.abs(turned)
    assert levels.max() <= 10 and abs(np.median(levels) - 9) < 0.1
    assert abs(np.mean(levels == 10) - norm.sf(2)) < 0.03  # clipped


def test_an_operation_on_the_host_is_the_devices(monkeypatch):
    """One layer of one operation on both: the kind and level that the host has drawn, given to the device."""
    image = pictures(1)[0]
    apply, _ = make_host_policy("randaugment", RANDAUGMENT | {"layers": 1, "prob": 1.0}, (0.5, 0.5, 0.5))
    policy = policies.randaugment(16, 20, np.full(3, 128 / 255), layers=1)
    device = jax.jit(lambda image, choice: policy.apply(image, choice, policies.compute_all))
    for number, (name, kind, _) in enumerate(policies.RANDAUGMENT):
        if kind == "interpolated":  # one grey level apart, see docs/augmentation.md
            continue
        found = apply(image, np.array([(number + 0.5) / 15, 0.5, 0.2, 0.2, 0.0]))
        one = policies.randaugment_choice(number, 9.0, 1.0, True, 16, 20)
        choice = policies.Choice(*(np.asarray(leaf)[None] for leaf in one))
        np.testing.assert_array_equal(found, device(image, choice), err_msg=name)


def test_where_the_policy_runs():
    config = schema.base()
    config.augment.policy = "randaugment"
    config.data.source = "folder"
    places = {}
    for place in ("auto", "device", "host"):
        config.augment.place = place
        places[place] = [views.policy_on_host(config, platform) for platform in ("cpu", "cuda", "tpu")]
    assert places == {"auto": [False, False, True], "device": [False] * 3, "host": [True] * 3}
    image = pictures(1)[0]
    seed = np.array([3, 4], np.uint32)
    found = views.host_augment(config)(image, seed)
    apply, draws = make_host_policy("randaugment", config.augment.randaugment.to_dict(), config.data.mean)
    np.testing.assert_array_equal(found, apply(image, uniforms_of(seed, CROP_DRAWS + draws)[CROP_DRAWS:]))
    config.augment.place = "device"
    assert views.host_augment(config) is None
    config.data.source, config.augment.place = "digits", "host"
    with pytest.raises(UserError, match=r"augment.place=.host.: expected .device. or .auto."):
        views.policy_on_host(config)


def test_the_device_leaves_to_the_host_what_the_host_does(monkeypatch):
    asked = []
    monkeypatch.setattr(views, "make_train_augment", lambda **what: asked.append(what) or make_train_augment(**what))
    config = schema.base()
    config.augment.update({"policy": "randaugment", "place": "auto", "crop": "random_resized"})
    config.data.source = "lists"
    for platform in ("cuda", "tpu"):
        views.device_augment(config, np.float32, platform)
    assert [what["policy"] for what in asked] == ["randaugment", "none"]
