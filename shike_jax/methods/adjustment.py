"""Post-processing of a trained classifier, chosen by name: nothing is trained again.

An adjustment is a pure function of `AdjustmentInputs` and a strength tau to logits [M,N,C]; it may compute with JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from shike_jax.errors import UserError
from shike_jax.methods.loss_registry import LOSSES
from shike_jax.methods.registry import Entry, Option, Registry
from shike_jax.methods.samplers import SAMPLERS
from shike_jax.methods.shifts import accuracy_under

# Of the search for SADE's shares: the authors' settings for CIFAR100-LT.
EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 5, 128, 0.025, 0.9, 5e-4
LEAST = 0.05  # share of an expert at which the search for shares ends
Array = jax.Array
TAUS = tuple(round(0.05 * i, 2) for i in range(41))  # 0 to 2, what `choose_tau` tries


@dataclasses.dataclass(frozen=True, eq=False)
class AdjustmentInputs:
    """What an adjustment may use.

    Attributes:
      logits: float [M,N,C] of the M experts.
      train_prior: float [C], shares of the classes among the training images; sums to 1.
      test_prior: float [C], shares that are assumed for the images to classify; sums to 1.
      kernels: float [M,F,C], weights of the classifiers; None where they are not single matrices.
      biases: float [M,C]; None where there are none.
      views: logits [M,N,C] of further copies of the images, each augmented as in training by draws of its own:
        `views=2` gives one.
    """

    logits: np.ndarray
    train_prior: np.ndarray
    test_prior: np.ndarray
    kernels: np.ndarray | None = None
    biases: np.ndarray | None = None
    views: tuple[np.ndarray, ...] = ()


ADJUSTMENTS: Registry[Callable[[AdjustmentInputs, float], np.ndarray]] = Registry(
    "adjustment",
    "(inputs: AdjustmentInputs, tau: float) to logits [M,N,C] of the whole evaluation set, outside of any trace",
    inputs=AdjustmentInputs,
    given=2,
    parameters=False,
    each_alone=Option(False, "an image's logits do not depend on the other images: large sets are adjusted in pieces"),
    views=Option(1, "views of each image: the plain one, and further ones that are augmented as in training"),
)


@ADJUSTMENTS.register("none", each_alone=True)
def none(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """The logits as they are."""
    return inputs.logits


@ADJUSTMENTS.register("train_prior", each_alone=True)
def train_prior(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """Post-hoc logit adjustment (Menon et al. 2021, eq. 9): z - tau log pi_train + tau log pi_test.

    For a classifier whose outputs follow the training distribution, such as one trained with plain cross-entropy.
    """
    return inputs.logits + tau * (np.log(inputs.test_prior) - np.log(inputs.train_prior))


@ADJUSTMENTS.register("test_prior", each_alone=True)
def test_prior(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """z + tau log pi_test: for a classifier whose outputs are already balanced, such as SHIKE's second set."""
    uniform = np.log(1 / len(inputs.test_prior))
    return inputs.logits + tau * (np.log(inputs.test_prior) - uniform)


@ADJUSTMENTS.register("tau_norm", each_alone=True)
def tau_norm(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """tau-normalisation (Kang et al. 2020, sec. 4): class weights divided by their norm to the power tau, no bias."""
    if inputs.kernels is None or inputs.biases is None:
        raise UserError("adjustment tau_norm: expected linear classifiers (config.model.head=linear)")
    norms = np.linalg.norm(inputs.kernels, axis=1)  # [M,C]
    return (inputs.logits - inputs.biases[:, None]) / norms[:, None] ** tau


@ADJUSTMENTS.register("sade", views=3)
def _aggregated(inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    """Experts in the shares that suit the images (SADE, Zhang et al. 2022, sec. 3.3); tau 0: in equal shares."""
    experts = len(inputs.logits)
    shares = (1 - tau) / experts + tau * aggregation_shares(*inputs.views)
    return inputs.logits * (experts * shares)[:, None, None].astype(inputs.logits.dtype)


def aggregation_shares(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """The shares of the experts with which two augmented views of the same images are classified most alike (eq. 5).

    No labels are used: the expert that knows the images' classes best is the one that is most stable on them. The
    shares are a softmax of one number for each expert, found by stochastic gradient ascent on the mean cosine between
    the two views' probabilities, in batches in the images' order. Logits [M,N,C] of both give float64 [M] of sum 1.
    """
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM, nesterov=True))
    one, two = jnp.asarray(first), jnp.asarray(second)
    scores = jnp.full(len(one), 1 / len(one), one.dtype)
    state = optimizer.init(scores)

    @jax.jit
    def step(scores: Array, state: optax.OptState, one: Array, two: Array) -> tuple[Array, optax.OptState]:
        updates, state = optimizer.update(jax.grad(_difference)(scores, one, two), state, scores)
        return optax.apply_updates(scores, updates), state

    for _ in range(EPOCHS):
        for start in range(0, one.shape[1], BATCH):
            chosen = slice(start, start + BATCH)
            scores, state = step(scores, state, one[:, chosen], two[:, chosen])
        shares = np.asarray(jax.nn.softmax(scores), np.float64)
        if shares.min() < LEAST:
            break
    return shares / shares.sum()


def _difference(scores: Array, one: Array, two: Array) -> Array:
    """Minus the mean cosine of the probabilities of two views."""
    shares = jax.nn.softmax(scores)[:, None, None]
    p, q = (jax.nn.softmax(jnp.sum(shares * logits, 0)) for logits in (one, two))
    lengths = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(q, axis=-1)
    return -jnp.mean(jnp.sum(p * q, -1) / jnp.maximum(lengths, 1e-6))


def predict(inputs: AdjustmentInputs, name: str, tau: float, chunk: int = 4096) -> np.ndarray:
    """The ensemble's classes int [N] after the adjustment `name`: the largest of the experts' averaged logits.

    An image with a logit that is no number has no class: -1. Where each image is adjusted alone, `chunk` of them are at
    once, which bounds the memory.
    """
    entry, images = ADJUSTMENTS[name], inputs.logits.shape[1]
    each, found = chunk if entry.options["each_alone"] else max(images, 1), []
    for start in range(0, images, each):
        rows = slice(start, start + each)
        views = tuple(view[:, rows] for view in inputs.views[: entry.options["views"] - 1])
        part = dataclasses.replace(inputs, logits=inputs.logits[:, rows], views=views)
        mean = np.mean(_adjusted(entry, part, tau), 0)
        found.append(np.where(np.isnan(mean).any(-1), -1, np.argmax(mean, -1)))
    return np.concatenate(found)


def _adjusted(entry: Entry[Callable[..., np.ndarray]], inputs: AdjustmentInputs, tau: float) -> np.ndarray:
    found = np.asarray(entry.call(inputs, tau))
    wanted = inputs.logits.shape[1:]
    if found.ndim != 3 or found.shape[1:] != wanted or not np.issubdtype(found.dtype, np.floating):
        what, expected = f"{found.dtype} {found.shape}", f"logits (experts, {wanted[0]}, {wanted[1]})"
        raise UserError(f"adjustment {entry.name!r} returned {what}: expected {expected}")
    return found


def choose_tau(inputs: AdjustmentInputs, labels: np.ndarray, name: str) -> float:
    """The strength with the highest accuracy under `inputs.test_prior`, the smallest one of several.

    The images and their labels int [N] should not be those that the result is reported on.
    """
    accuracies = [accuracy_under(inputs.test_prior, predict(inputs, name, tau), labels) for tau in TAUS]
    return TAUS[int(np.argmax(accuracies))]


def suited(losses: Mapping[str, float], sampler: str) -> str:
    """`test_prior` where a stage's losses {name: weight} or its sampler balance the classes, else `train_prior`."""
    balanced = any(entry.options["balances"] for entry, _ in LOSSES.active(losses))
    balanced = balanced or (sampler in SAMPLERS and SAMPLERS[sampler].options["balances"])
    return "test_prior" if balanced else "train_prior"


def prior_of(counts: np.ndarray) -> np.ndarray:
    """Shares [C] of non-negative counts; an absent class gets the share of one thousandth of an image."""
    counts = np.maximum(np.asarray(counts, np.float64), 1e-3)
    return counts / counts.sum()
