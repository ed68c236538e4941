"""Tables of what was predicted, against numbers counted by hand."""

import numpy as np

from shike_jax.report import predictions
from shike_jax.report.predictions import Predictions

# Class 0 is a many-shot class, 1 a medium, 2 and 3 few-shot ones; ten test images.
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 0, 2, 0, 2])
EXPERTS = np.stack([PREDICTED, LABELS])
CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.95, 0.4, 0.3, 0.85, 0.2])


def made(predicted=PREDICTED):
    def percent(right):
        return [100 * np.mean(right[c == LABELS]) for c in range(4)]

    scores = {
        "per_class": percent(predicted == LABELS),
        "f1_per_class": [None, 1.0, 2.0, 3.0],
        "experts_per_class": [percent(EXPERTS[0] == LABELS), percent(EXPERTS[1] == LABELS)],
        "examples_per_class": [4, 2, 2, 2],
    }
    names, counts = ("ant", "bee", "cat", "dog"), np.array([200, 50, 10, 5])
    divisions = {"many": np.array([0]), "medium": np.array([1]), "few": np.array([2, 3])}
    return Predictions(names, counts, divisions, LABELS, predicted, EXPERTS, CONFIDENCE, scores)


def test_divisions_confused():
    table = predictions.division_confusion("run", made())
    assert table.header == ("true", "images", "right", "wrong, many", "wrong, medium", "wrong, few")
    # Of four few-shot images one is right, two are taken for the many-shot class and one for the other few-shot class.
    assert table.rows == [
        ("images of many", "4", "75.0", "0.0", "25.0", "0.0"),
        ("images of medium", "2", "50.0", "50.0", "0.0", "0.0"),
        ("images of few", "4", "25.0", "50.0", "0.0", "25.0"),
    ]


def test_most_confused_classes_and_the_class_table():
    rows = predictions.confused_classes("run", made()).rows
    assert ("cat taken for ant", "1", "50 %", "10", "200") in rows and len(rows) == 5
    table = predictions.class_table("run", made())
    assert table.sortable and [row[0] for row in table.rows] == ["ant", "bee", "cat", "dog"]
    assert table.rows[0] == ("ant", "200", "4", "75.0", "-", "75.0", "100.0", "bee")


def test_experts_and_runs_compared():
    # The experts differ on the five images that the first gets wrong.
    rows = predictions.disagreement("run", made()).rows
    assert rows == [("expert 1", "-", "50.0", "50.0", "0.0"), ("expert 2", "50.0", "-", "100.0", "50.0")]
    better = PREDICTED.copy()
    better[8:] = 3
    [table] = predictions.comparisons({"A": made(), "B": made(better)})
    assert table.rows[0] == ("all", "10", "50.0", "0.0", "20.0", "30.0", "+20.0")
    assert table.rows[-1] == ("few", "4", "25.0", "0.0", "50.0", "25.0", "+50.0")


def test_examples_are_right_ones_by_confidence_and_certain_mistakes():
    shown = predictions.examples(made())
    right = [place for place, is_right, _ in shown if is_right]
    wrong = [(place, words) for place, is_right, words in shown if not is_right]
    assert right[0] == 0 and right[-1] == 7
    assert wrong[0] == (5, "bee, taken for ant, 95 %") and [place for place, _ in wrong] == [5, 8, 3, 6, 9]


def test_scores_alone_give_no_predictions():
    summary = {"checkpoint": {"heads": "x"}, "heads": {"x": {}}, "data": {}}
    assert Predictions.of(summary, {}) is None
