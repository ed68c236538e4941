"""Streams: exactly once, right frequencies, the same on any number of processes and after a restart."""

import jax
import numpy as np
import pytest

from shike_jax.data import sampling

COUNTS = np.array([60, 25, 10, 5])
LABELS = np.repeat(np.arange(4), COUNTS).astype(np.int32)


def plan(sampler="shuffle", seed=0, epoch=0, batch=16, keep_last=True, labels=LABELS):
    return sampling.epoch_plan(sampler, jax.random.key(seed), epoch, labels, batch, keep_last)


def test_an_epoch_holds_each_example_exactly_once():
    made = plan()
    assert made["index"].shape == made["mask"].shape == (7, 16)  # 100 = 6 * 16 + 4
    np.testing.assert_array_equal(made["mask"].sum(1), [16] * 6 + [4])
    np.testing.assert_array_equal(np.sort(made["index"][made["mask"] > 0]), np.arange(100))


def test_the_last_partial_batch_can_be_dropped():
    made = plan(keep_last=False)
    assert made["index"].shape == (6, 16)
    assert made["mask"].all()
    assert len(np.unique(made["index"])) == 96


@pytest.mark.parametrize("sampler", ["shuffle", "balanced", "sqrt", "paired"])
def test_epochs_and_seeds_differ_and_repeat(sampler):
    for name in plan(sampler):
        one = plan(sampler)[name]
        np.testing.assert_array_equal(one, plan(sampler)[name])
        if name != "mask":
            assert not np.array_equal(one, plan(sampler, epoch=1)[name])
            assert not np.array_equal(one, plan(sampler, seed=1)[name])


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [("balanced", np.full(4, 0.25)), ("sqrt", np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()), ("shuffle", COUNTS / 100)],
)
def test_class_frequencies(sampler, expected):
    labels = np.tile(LABELS, 100)
    index = plan(sampler, labels=labels)["index"].reshape(-1)[: len(labels)]
    found = np.bincount(labels[index], minlength=4)
    chi_square = ((found - expected * len(labels)) ** 2 / (expected * len(labels))).sum()
    assert chi_square < 16.27  # 99.9 % quantile, 3 degrees of freedom


def test_balanced_sampling_is_uniform_within_a_class():
    labels = np.tile(np.arange(2), 10)
    draws = np.concatenate([plan("balanced", epoch=e, labels=np.tile(labels, 20))["index"].ravel() for e in range(5)])
    found = np.bincount(draws, minlength=400)
    assert ((found - found.mean()) ** 2 / found.mean()).sum() < 492  # 99.9 % quantile, 399 degrees of freedom


def test_paired_plans_hold_a_balanced_and_a_shuffled_stream():
    made = plan("paired")
    np.testing.assert_array_equal(np.sort(made["partner"][made["mask"] > 0]), np.arange(100))
    np.testing.assert_array_equal(made["index"], plan("balanced")["index"])


def test_evaluation_counts_each_example_once():
    made = sampling.in_order(1000, 64)
    assert made["index"].shape == (16, 64)
    np.testing.assert_array_equal(made["index"][made["mask"] > 0], np.arange(1000))
    assert made["mask"].sum() == 1000


def test_fewer_examples_than_a_batch_are_one_step():
    made = plan(batch=128, keep_last=False)
    assert made["index"].shape == (1, 128)
    assert made["mask"].sum() == 100
