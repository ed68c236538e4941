"""Post-processing of a trained classifier, chosen by name: nothing is trained again.

An adjustment is a pure function of `AdjustmentInputs` and a strength tau to logits [M,N,C]. NumPy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from shike_jax.errors import UserError
from shike_jax.methods.registry import Registry


@dataclasses.dataclass(frozen=True, eq=False)
class AdjustmentInputs:
    """What an adjustment may use.

    Attributes:
      logits: float [M,N,C] of the M experts.
      train_prior: float [C], shares of the classes among the training images; sums to 1.
      test_prior: float [C], shares that are assumed for the images to classify; sums to 1.
      kernels: float [M,F,C], weights of the classifiers; None where they are not single matrices.
      biases: float [M,C]; None where there are none.
    """

    logits: np.ndarray
    train_prior: np.ndarray
    test_prior: np.ndarray
    kernels: np.ndarray | None = None
    biases: np.ndarray | None = None


ADJUSTMENTS: Registry[Callable[[AdjustmentInputs, float], np.ndarray]] = Registry("adjustment")


@ADJUSTMENTS.register("none")
def none(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """The logits as they are."""
    return inputs.logits


@ADJUSTMENTS.register("train_prior")
def train_prior(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """Post-hoc logit adjustment (Menon et al. 2021, eq. 9): z - tau log pi_train + tau log pi_test.

    For a classifier whose outputs follow the training distribution, such as one trained with plain cross-entropy.
    """
    return inputs.logits + tau * (np.log(inputs.test_prior) - np.log(inputs.train_prior))


@ADJUSTMENTS.register("test_prior")
def test_prior(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """z + tau log pi_test: for a classifier whose outputs are already balanced, such as SHIKE's second set."""
    uniform = np.log(1 / len(inputs.test_prior))
    return inputs.logits + tau * (np.log(inputs.test_prior) - uniform)


@ADJUSTMENTS.register("tau_norm")
def tau_norm(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """tau-normalisation (Kang et al. 2020, eq. 5): class weights divided by their norm to the power tau, no bias.

    Raises:
      UserError: the classifiers are not linear.
    """
    if inputs.kernels is None or inputs.biases is None:
        raise UserError("adjustment tau_norm: expected linear classifiers (config.model.head=linear)")
    norms = np.linalg.norm(inputs.kernels, axis=1)  # [M,C]
    return (inputs.logits - inputs.biases[:, None]) / norms[:, None] ** tau


def prior_of(counts: np.ndarray) -> np.ndarray:
    """Shares [C] of non-negative counts; an absent class gets the share of one thousandth of an image."""
    counts = np.maximum(np.asarray(counts, np.float64), 1e-3)
    return counts / counts.sum()
