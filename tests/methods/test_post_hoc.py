"""Adjustment to a known test distribution, and accuracy under long-tailed test sets, against values worked by hand."""

import json

import numpy as np
import pytest

from shike_jax.errors import UserError
from shike_jax.evaluation.post_hoc import Labelled, choose_adjustment, read_prior, scores
from shike_jax.methods.adjustment import ADJUSTMENTS, AdjustmentInputs, choose_tau, predict, prior_of, suited
from shike_jax.methods.shifts import FACTORS, accuracy_under, distributions, longtailed_prior

COUNTS = np.array([8, 64, 1])  # class 1 is the most frequent one, class 2 the rarest


def test_longtailed_priors_by_hand():
    # Three classes and factor 16: shares 1, 1/4, 1/16 of the ranks, together 21/16.
    np.testing.assert_allclose(longtailed_prior(COUNTS, 16), np.array([4, 16, 1]) / 21, rtol=1e-12)
    np.testing.assert_allclose(longtailed_prior(COUNTS, 16, backward=True), np.array([4, 1, 16]) / 21, rtol=1e-12)
    found = distributions(COUNTS)
    assert list(found) == [
        *(f"forward {factor}" for factor in FACTORS),
        "uniform",
        *(f"backward {factor}" for factor in reversed(FACTORS)),
    ]
    for name, shares in found.items():
        assert shares.sum() == pytest.approx(1)
        assert shares.max() / shares.min() == pytest.approx(1 if name == "uniform" else float(name.split()[1]))


def test_weighted_accuracy_is_the_mean_over_subsampled_test_sets():
    """Class accuracies 1/2, 1, 0 with weights 4/21, 16/21, 1/21 give 18/21, as leaving images out does on average."""
    labels = np.repeat([0, 1, 2], [4, 6, 2])
    predicted = np.where(np.arange(12) < 2, 2, labels)  # two of class 0 wrong
    predicted[10:] = 0
    prior = longtailed_prior(COUNTS, 16)
    assert accuracy_under(prior, predicted, labels) == pytest.approx(100 * 18 / 21)
    draw, shares = np.random.default_rng(0), []
    for _ in range(4000):  # the papers' way, with sizes 1, 4 and 0.25 (one draw in four)
        sizes = [1, 4, int(draw.random() < 0.25)]
        kept = np.concatenate([draw.choice(np.flatnonzero(labels == c), n, replace=False) for c, n in enumerate(sizes)])
        shares.append((np.sum(predicted[kept] == labels[kept]), len(kept)))
    hits, kept = np.sum(shares, 0)
    assert 100 * hits / kept == pytest.approx(100 * 18 / 21, abs=1)


def test_classes_without_images_or_share():
    prior = np.array([0.5, 0.25, 0.25])
    labels = np.array([0, 0, 1])  # none of class 2
    assert accuracy_under(prior, np.array([0, 1, 1]), labels) == pytest.approx(100 * (0.5 * 0.5 + 0.25) / 0.75)
    assert np.isnan(accuracy_under(np.array([0.0, 0.0, 1.0]), np.array([0, 1, 1]), labels))


# One expert, two classes, training shares 9/10 and 1/10. The margins z_0 - z_1 of five images:
MARGINS = np.array([3.0, 1.5, 0.5, -0.5, 1.0])
LABELS = np.array([0, 0, 1, 1, 1])
LOGITS = np.stack([MARGINS, np.zeros(5)], -1)[None]
TWO = np.array([90, 10])


def test_adjustment_moves_the_boundary_by_the_ratio_of_the_priors():
    """train_prior with tau = 1 and a uniform test: class 0 wins where the margin is above log 9 = 2.197."""
    given = AdjustmentInputs(LOGITS, prior_of(TWO), prior_of(np.ones(2)))
    assert predict(given, "train_prior", 1.0).tolist() == [0, 1, 1, 1, 1]
    assert predict(given, "train_prior", 0.5).tolist() == [0, 0, 1, 1, 1]  # 1.099
    assert predict(given, "none", 1.0).tolist() == [0, 0, 0, 1, 0]
    for chunk in (1, 2, 5):
        assert predict(given, "train_prior", 0.5, chunk).tolist() == [0, 0, 1, 1, 1]
    # 1.0, the margin of the last error, is passed from tau = 0.46 on; from 0.69 on the second image is lost.
    assert choose_tau(given, LABELS, "train_prior") == 0.5


def test_scores_before_and_after():
    found = scores(Labelled(LOGITS, LABELS), "train_prior", 1.0, prior_of(np.ones(2)), TWO)
    # Before: class 0 2/2, class 1 1/3. After, with tau = 1: 1/2 and 3/3. Uniform prior: the means.
    assert (found["plain"], found["adjusted"]) == (66.6667, 75.0)
    assert found["class_accuracy"] == [50.0, 100.0]
    # Forward 50: shares 50/51 and 1/51, so class 0 wins above log 9 - log 50 < 0: all but none of the margins ...
    assert np.log(9) - np.log(50) < -0.5
    assert found["distributions"]["forward 50"] == {"plain": round(100 * (50 + 1 / 3) / 51, 4), "adjusted": 98.0392}
    # ... and backward 50 above log 9 + log 50 = 6.1: nothing is class 0 any more.
    assert found["distributions"]["backward 50"] == {
        "plain": round(100 * (1 + 50 / 3) / 51, 4),
        "adjusted": 98.0392,
    }
    tuned = scores(
        Labelled(LOGITS, LABELS), "train_prior", 1.0, prior_of(np.ones(2)), TWO, tune=Labelled(LOGITS, LABELS)
    )
    assert (tuned["tau"], tuned["adjusted"]) == (0.5, 100.0)


def test_tau_normalisation_reads_the_classifiers():
    draw = np.random.default_rng(1)
    experts = {f"expert{m}": {"kernel": draw.standard_normal((4, 2)), "bias": np.ones(2)} for m in range(12)}
    features = draw.standard_normal((12, 5, 4))
    logits = np.stack([features[m] @ experts[f"expert{m}"]["kernel"] + 1 for m in range(12)])
    found = scores(Labelled(logits, LABELS), "tau_norm", 0.7, prior_of(np.ones(2)), TWO, experts)
    mean = np.zeros((5, 2))
    for m in range(12):
        kernel = experts[f"expert{m}"]["kernel"]
        mean += features[m] @ (kernel / np.linalg.norm(kernel, axis=0) ** 0.7) / 12
    right = mean.argmax(1) == LABELS
    assert found["class_accuracy"] == [round(100 * right[labels].mean(), 4) for labels in (LABELS < 1, LABELS > 0)]
    with pytest.raises(UserError, match="linear"):
        scores(Labelled(logits, LABELS), "tau_norm", 0.7, prior_of(np.ones(2)), TWO, {"expert0": {"scale": np.ones(2)}})


def test_what_suits_a_classifier_follows_from_its_training():
    assert suited({"ce": 1.0, "balanced": 0.0}, "shuffle") == "train_prior"
    assert suited({"ce": 0.0, "balanced": 1.0}, "shuffle") == "test_prior"
    assert suited({"ce": 1.0}, "balanced") == "test_prior"
    assert suited({"ce": 1.0, "of_a_plugin": 1.0}, "of_a_plugin") == "train_prior"
    run = {
        "run": ["one", "two"],
        "stages": {
            "one": {"heads": "representation", "loss": {"ce": 1.0}, "sampler": "shuffle"},
            "two": {"heads": "classifier", "loss": {"balanced": 1.0}, "sampler": "shuffle"},
        },
    }
    assert choose_adjustment("auto", "representation", run) == "train_prior"
    assert choose_adjustment("auto", "classifier", run) == "test_prior"
    assert choose_adjustment("tau_norm", "classifier", None) == "tau_norm"
    with pytest.raises(UserError, match="expected a name"):
        choose_adjustment("auto", "classifier", None)
    with pytest.raises(UserError, match="unknown adjustment 'nope': expected one of none, train_prior"):
        choose_adjustment("nope", "classifier", run)


def test_priors_from_files(tmp_path):
    names, path = ("ant", "bee", "cat"), tmp_path / "prior.json"
    np.testing.assert_allclose(read_prior("train", names, COUNTS), COUNTS / 73)
    np.testing.assert_allclose(read_prior("uniform", names, COUNTS), np.full(3, 1 / 3))
    path.write_text("[1, 2, 5]")
    np.testing.assert_allclose(read_prior(str(path), names, COUNTS), [0.125, 0.25, 0.625])
    path.write_text(json.dumps({"cat": 5, "ant": 1, "bee": 2}))
    np.testing.assert_allclose(read_prior(str(path), names, COUNTS), [0.125, 0.25, 0.625])
    for text, words in {
        "[1, 2]": "expected 3 numbers",
        '{"ant": 1, "bee": 2}': "class 'cat' is missing or unknown",
        "[1, 2, true]": "expected 3 numbers",
        "[1, -2, 3]": "at least 0",
        "[0, 0, 0]": "at least 0",
        "{": "not uniform, train or a JSON file",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_prior(str(path), names, COUNTS)
    with pytest.raises(UserError, match="No such file"):
        read_prior(str(tmp_path / "absent.json"), names, COUNTS)


def test_an_adjustment_that_looks_at_all_images_sees_all_of_them(monkeypatch):
    """Six images in pieces of two: the mean over all of them is one number, in pieces it would be three."""
    monkeypatch.setattr(ADJUSTMENTS, "_entries", dict(ADJUSTMENTS._entries))

    @ADJUSTMENTS.register("centred")
    def centred(inputs, tau):
        return inputs.logits - tau * inputs.logits.mean(1, keepdims=True)

    margins = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # mean 3.5
    inputs = AdjustmentInputs(np.stack([margins, np.zeros(6)], -1)[None], np.ones(2) / 2, np.ones(2) / 2)
    assert predict(inputs, "centred", 1.0, chunk=2).tolist() == [1, 1, 1, 0, 0, 0]
    assert predict(inputs, "none", 0.0, chunk=2).tolist() == [0] * 6


def test_an_image_whose_logits_are_no_numbers_has_no_class():
    logits = np.array([[[np.nan, 1.0], [2.0, 1.0]]])
    inputs = AdjustmentInputs(logits, np.ones(2) / 2, np.ones(2) / 2)
    assert predict(inputs, "train_prior", 1.0).tolist() == [-1, 0]
