"""Scores of a checkpoint after an adjustment to the classes' shares in the images to classify; nothing is trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from shike_jax.common.text import parse_json
from shike_jax.errors import UserError, naming
from shike_jax.methods import ADJUSTMENTS
from shike_jax.methods.adjustment import AdjustmentInputs, choose_tau, predict, prior_of, suited
from shike_jax.methods.shifts import accuracy_under, distributions

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Logits float [M,N,C] of one set of classifiers, the labels int [N] of the images, and further views' logits."""

    logits: np.ndarray
    labels: np.ndarray
    views: tuple[np.ndarray, ...] = ()


def read_prior(text: str, class_names: tuple[str, ...], class_counts: np.ndarray) -> np.ndarray:
    """The shares [C] of the classes that `--prior` names.

    That is `uniform`; `train`, those of the training images; or a JSON file with a list of C numbers in the order of
    the classes, or with an object {class name: number} that names every class. Numbers need not sum to 1.
    """
    if text == "uniform":
        return prior_of(np.ones(len(class_names)))
    if text == "train":
        return prior_of(class_counts)
    with naming(f"--prior={text}", "uniform, train or a JSON file"):
        found = parse_json(Path(text).read_text(encoding="utf-8"))
    expected = f"expected {len(class_names)} numbers, or an object with a number for every class"
    if isinstance(found, dict):
        if set(found) != set(class_names):
            wrong = sorted(set(found) ^ set(class_names))[0]
            raise UserError(f"--prior={text}: class {wrong!r} is missing or unknown; {expected}")
        found = [found[name] for name in class_names]
    numbers = isinstance(found, list) and all(type(value) in (int, float) for value in found)
    if not numbers or len(found) != len(class_names):
        raise UserError(f"--prior={text}: {expected}")
    total = sum(map(float, found)) if all(0 <= value <= sys.float_info.max for value in found) else 0.0
    if not 0 < total < np.inf:
        raise UserError(f"--prior={text}: expected numbers of at least 0, not all of them 0")
    shares = np.asarray(found, np.float64)
    return prior_of(shares / shares.sum() * class_counts.sum())


def choose_adjustment(name: str, heads: str, config: Mapping[str, Any] | None) -> str:
    """The adjustment to use for a set of classifiers: `name`, or for `auto` what suits the losses that trained it.

    UserError where the name is unknown, or how the run of `config` (None: not known) trained the set.
    """
    if name != "auto":
        return ADJUSTMENTS[name].name
    stages = (config or {}).get("stages", {})
    trained = [stages[stage] for stage in (config or {}).get("run", ()) if stages[stage]["heads"] == heads]
    if not trained:
        raise UserError(f"--adjust=auto: nothing is known of how the {heads} heads were trained; expected a name")
    return suited(trained[-1]["loss"], trained[-1]["sampler"])


def scores(
    test: Labelled,
    adjust: str,
    tau: float,
    prior: np.ndarray,
    class_counts: np.ndarray,
    heads_params: PyTree = None,
    tune: Labelled | None = None,
) -> dict[str, Any]:
    """Accuracies in percent before and after an adjustment, under a prior and under long-tailed test distributions.

    tau is chosen again on the images `tune` where these are given. The prior [C] is that of the images to classify, the
    class counts [C] those of the training images; `heads_params` serve tau-normalisation.

    Returns:
      `adjust`; `tau`; `plain` and `adjusted`, the accuracies under `prior`; `class_accuracy` after the adjustment
      (None without images); and `distributions`: {name: {`plain`, `adjusted`}}, where the adjustment knows each
      distribution.
    """
    kernels, biases = _matrices(heads_params)

    def inputs(of: Labelled, shares: np.ndarray) -> AdjustmentInputs:
        return AdjustmentInputs(of.logits, prior_of(class_counts), shares, kernels, biases, of.views)

    if tune is not None:
        tau = choose_tau(inputs(tune, prior), tune.labels, adjust)
    plain = predict(inputs(test, prior), "none", 0.0)

    def accuracies(shares: np.ndarray) -> dict[str, float]:
        moved = predict(inputs(test, shares), adjust, tau)
        return {
            "plain": round(accuracy_under(shares, plain, test.labels), 4),
            "adjusted": round(accuracy_under(shares, moved, test.labels), 4),
        }

    right = predict(inputs(test, prior), adjust, tau) == test.labels
    each = [right[test.labels == c] for c in range(len(prior))]
    return {
        "adjust": adjust,
        "tau": tau,
        **accuracies(prior),
        "class_accuracy": [round(100 * float(one.mean()), 4) if len(one) else None for one in each],
        "distributions": {name: accuracies(shares) for name, shares in distributions(class_counts).items()},
    }


def _matrices(heads_params: PyTree) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weights [M,F,C] and biases [M,C] of linear classifiers; None for other kinds."""
    flat = flatten_dict(heads_params or {}, sep="/")
    experts = sorted({path.split("/")[0] for path in flat}, key=lambda name: (len(name), name))  # expert10 is last
    if not experts or any(f"{m}/kernel" not in flat or f"{m}/bias" not in flat for m in experts):
        return None, None
    stacked = [np.stack([np.asarray(flat[f"{m}/{name}"], np.float64) for m in experts]) for name in ("kernel", "bias")]
    return stacked[0], stacked[1]
