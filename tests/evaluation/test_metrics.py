"""Metrics against scikit-learn and numbers worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from shike_jax.evaluation import metrics
from shike_jax.methods import scores

M, N, C = 3, 400, 7
DIVISIONS = {"many": np.array([0, 1]), "medium": np.array([2, 3, 4]), "few": np.array([5, 6])}


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, C, N).astype(np.int32)
    logits = rng.standard_normal((M, N, C)).astype(np.float32)
    logits += 1.5 * np.eye(C, dtype=np.float32)[labels]
    return logits, labels


@pytest.fixture(scope="module")
def examples(case):
    return {name: np.asarray(value) for name, value in metrics.per_example(*case).items()}


@pytest.fixture(scope="module")
def result(case, examples):
    return metrics.analyse(examples, case[1], C, DIVISIONS)


def probabilities(case):
    mean = case[0].astype(np.float64).mean(0)
    p = np.exp(mean - mean.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def test_scores_agree_with_scikit_learn(case, examples, result):
    labels, p = case[1], probabilities(case)
    predicted = p.argmax(1)
    assert result["top1"] == pytest.approx(100 * sk.accuracy_score(labels, predicted), abs=1e-3)
    assert result["top5"] == pytest.approx(100 * sk.top_k_accuracy_score(labels, p, k=5), abs=1e-3)
    assert result["macro_f1"] == pytest.approx(100 * sk.f1_score(labels, predicted, average="macro"), abs=1e-3)
    assert result["f1_per_class"] == pytest.approx(100 * sk.f1_score(labels, predicted, average=None), abs=1e-3)
    assert result["loss"] == pytest.approx(sk.log_loss(labels, p), rel=1e-5)
    assert result["per_class"] == pytest.approx(100 * sk.recall_score(labels, predicted, average=None), abs=1e-3)
    assert result["experts"] == pytest.approx([100 * np.mean(z.argmax(1) == labels) for z in case[0]], abs=1e-3)
    assert result["examples_per_class"] == np.bincount(labels).tolist()
    np.testing.assert_allclose(examples["confidence"], p.max(1), rtol=1e-5)


def test_divisions_are_means_over_classes(case, result):
    recall = 100 * sk.recall_score(case[1], case[0][2].argmax(1), average=None)
    expected = {name: recall[classes].mean() for name, classes in DIVISIONS.items()}
    assert result["experts_divisions"][2] == pytest.approx(expected, abs=1e-3)
    assert result["few"] == pytest.approx(np.mean(result["per_class"][5:]), abs=1e-3)


def test_ties_count_for_the_lower_class():
    logits = np.zeros((1, 3, 4), np.float32)
    found = metrics.per_example(logits, np.array([0, 1, 3]))
    assert found["rank"].tolist() == [0, 1, 3]
    assert found["predicted"].tolist() == [0, 0, 0]


def test_hardest_negative_is_the_largest_wrong_probability(case, examples):
    p = probabilities(case)
    p[np.arange(N), case[1]] = -1
    np.testing.assert_allclose(examples["hardest_negative"], p.max(1), rtol=1e-5)
    found = scores.hardest_negative(np.array([0.05, 0.12, 0.13, 0.9]), bins=10)
    assert found["share"] == [25, 50, 0, 0, 0, 0, 0, 0, 0, 25]
    assert (found["mean"], found["above_half"]) == (0.3, 25)


def test_calibration_by_hand():
    # Two bins: (0, .5] holds .4 right and .5 wrong: |.45 - .5| * 2/5; (.5, 1] holds .6 wrong, .8 right, 1.0 right:
    # |.8 - 2/3| * 3/5. In all (0.1 + 0.4) / 5.
    confidence, right = np.array([0.4, 0.5, 0.6, 0.8, 1.0]), np.array([True, False, False, True, True])
    found = scores.calibration(confidence, right, bins=2)
    assert found["ece"] == pytest.approx(10.0)
    assert found["count"] == [2, 3]
    assert found["confidence"] == pytest.approx([0.45, 0.8])
    assert found["accuracy"] == pytest.approx([0.5, 2 / 3], abs=1e-6)
    empty = scores.calibration(np.array([0.9]), np.array([True]))
    assert (empty["ece"], empty["accuracy"][0], empty["count"][13]) == (pytest.approx(10.0), None, 1)


def test_f1_leaves_out_classes_that_never_occur():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    found = scores.f1_scores(predicted, labels, 4)
    # class 0: 2*1/(2+1); class 1: 2*1/(2+2); class 2 predicted but never right; class 3 nowhere.
    np.testing.assert_allclose(found[:3], [2 / 3, 0.5, 0])
    assert np.isnan(found[3])
    assert np.nanmean(found) == pytest.approx(sk.f1_score(labels, predicted, average="macro"))


def test_agreement_by_hand():
    labels = np.array([0, 1, 2, 3])
    found = scores.agreement(np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 2, 2, 0]]), labels)
    assert found["pairwise"] == [[100, 75, 50], [75, 100, 50], [50, 50, 100]]
    assert found["disagreement"] == pytest.approx(100 - (75 + 50 + 50) / 3, abs=1e-4)
    assert {k: found[k] for k in ("unanimous", "oracle", "all_right", "none_right")} == {
        "unanimous": 50,
        "oracle": 75,
        "all_right": 25,
        "none_right": 25,
    }
    assert scores.agreement(labels[None], labels)["disagreement"] is None


def test_absent_classes_and_empty_divisions_are_none():
    logits = np.zeros((1, 2, 3), np.float32)
    logits[0, :, 1] = 1
    examples = {k: np.asarray(v) for k, v in metrics.per_example(logits, np.array([1, 1])).items()}
    divisions = {"many": np.array([1]), "medium": np.array([], int), "few": np.array([0, 2])}
    found = metrics.analyse(examples, np.array([1, 1]), 3, divisions)
    assert (found["many"], found["medium"], found["few"]) == (100, None, None)
    assert found["per_class"] == [None, 100, None]
    assert found["f1_per_class"] == [None, 100, None]


def test_logits_that_are_not_finite_are_wrong_in_every_score():
    """Six images of one expert that is sure and right, and one that says the same but for three broken images."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    logits = np.repeat(20 * np.eye(3, dtype=np.float32)[labels][None], 2, 0)
    logits[1, 0, 0], logits[1, 2, 2], logits[1, 4] = np.nan, np.inf, np.nan  # the label's, another's, all
    examples = {name: np.asarray(value) for name, value in metrics.per_example(logits, labels).items()}
    assert examples["rank"].tolist() == [2**31 - 1, 0] * 3
    assert examples["predicted"].tolist() == [-1, 0, -1, 1, -1, 2]
    assert examples["expert_predicted"][0].tolist() == labels.tolist()
    found = metrics.analyse(examples, labels, 3, {"many": np.array([0]), "medium": np.array([1]), "few": np.array([2])})
    assert (found["not_finite"], found["examples"]) == (3, 6)
    assert [found[name] for name in ("top1", "top5", "many", "medium", "few")] == [50, 50, 50, 50, 50]
    assert found["macro_f1"] == pytest.approx(100 * 2 / 3, abs=1e-3)  # of each class 2 * 1 / (2 + 1)
    assert (found["experts"], found["per_class"]) == ([100, 50], [50, 50, 50])
    assert (found["ece"], found["loss"]) == (None, None)
    agreement = found["agreement"]
    assert (agreement["disagreement"], agreement["unanimous"], agreement["all_right"]) == (50, 50, 50)
