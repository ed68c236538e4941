"""Accuracy under test sets that are long-tailed themselves, from predictions on any test set. NumPy only.

The field reports forward and backward long-tailed test sets with imbalance factors 2 to 50 (LADE, Hong et al. 2021;
SADE, Zhang et al. 2022; BalPoE, Aimar et al. 2023): in forward ones the classes that are frequent in training are
frequent, in backward ones rare. Those papers leave test images out until the classes have the wanted sizes. Here every
image stays and counts by its class's share, which gives the mean over all such subsets: no images are lost and nothing
is drawn.
"""

from __future__ import annotations

import numpy as np

FACTORS = (50, 25, 10, 5, 2)


def longtailed_prior(class_counts: np.ndarray, factor: float, backward: bool = False) -> np.ndarray:
    """Shares [C] of the classes in a long-tailed test set; they sum to 1.

    They fall exponentially, with `factor` the largest over the smallest, in the order of the training images (ties by
    class index), or `backward`: the rarest class in training becomes the most frequent one.
    """
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    order = order[::-1] if backward else order
    shares = np.empty(len(order))
    shares[order] = float(factor) ** -(np.arange(len(order)) / max(len(order) - 1, 1))
    return shares / shares.sum()


def accuracy_under(prior: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent of images that follow `prior`: the class accuracies weighted by the shares.

    The classes may have any sizes in the test set. A class without an image has no accuracy; the shares of the others
    are scaled up to 1. NaN where no class with a positive share has an image.
    """
    count = np.bincount(labels, minlength=len(prior))
    hits = np.bincount(labels[predicted == labels], minlength=len(prior))
    present = (count > 0) & (np.asarray(prior) > 0)
    if not present.any():
        return float("nan")
    return 100 * float(np.average(hits[present] / count[present], weights=np.asarray(prior)[present]))


def distributions(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """The test distributions of the papers, from forward 50 over uniform to backward 50: {name: shares [C]}."""
    forward = {f"forward {factor}": longtailed_prior(class_counts, factor) for factor in FACTORS}
    backward = {f"backward {factor}": longtailed_prior(class_counts, factor, True) for factor in FACTORS[::-1]}
    return {**forward, "uniform": np.full(len(class_counts), 1 / len(class_counts)), **backward}
