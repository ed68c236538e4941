"""SHIKE's losses as pure functions of logits [M,B,C] (M experts) and labels [B]; every result is per example, [B].

Configurations give weights to the registered ones (`LOSSES`), which receive everything a loss may need by name
(`LossInputs`). The functions behind them take plain arrays and serve anybody.

Two forms of the distillation terms exist. `paper` is the printed equations. `official` is the authors' code, which

* divides both KL terms by the number of classes too (`kl_div` with the mean over all elements),
* keeps the target entry in both softmaxes of the non-target term: logit 0 in the teacher's, -30 in the student's, and
  looks for the hardest negative among all entries with the target's set to 0,
* lets gradients flow through the teachers. The `paper` form treats teachers as constants, as distillation usually does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from shike_jax.common.errors import UserError
from shike_jax.methods.registry import Choice, Entry, Registry

Array = jax.Array
FORMS = ("official", "paper")
STUDENT_TARGET_LOGIT = -30.0  # official form only


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """What a registered loss may use.

    Attributes:
      logits: float32 [M,B,C] of the M experts.
      features: float32 [M,B,F], the pooled features that the classifiers receive.
      labels: int32 [B].
      class_counts: int [C], training images of each class.
      progress: float32 [], the share of the stage's steps that are done, 0 at its start.
    """

    logits: Array
    features: Array
    labels: Array
    class_counts: Array
    progress: Array


# A loss is a pure function of `LossInputs` (and of the parameters that it declares) to float [B], per example.
# `uses_labels=False` says that the labels do not matter, so that mixed images need it once instead of for both labels.
# `balances=True` says that it makes up for the class counts: what it trains assumes all classes to be equally frequent.
LOSSES: Registry[Callable[..., Array]] = Registry("loss", given=1, uses_labels=True, balances=False)
FORM = {"form": Choice(FORMS)}


def active_losses(fields: Mapping[str, Any]) -> list[tuple[Entry[Callable[..., Array]], float, dict[str, Any]]]:
    """The losses that a stage trains with: (registered loss, weight, its parameters) for each weight that is not 0.

    Args:
      fields: of `config.stages.NAME.loss`.
    """
    used = [entry for entry in LOSSES.entries() if fields.get(entry.name)]
    return [(entry, fields[entry.name], {name: fields[name] for name in entry.parameters}) for entry in used]


def value_of(entry: Entry[Callable[..., Array]], inputs: LossInputs, parameters: Mapping[str, Any]) -> Array:
    """The value of a registered loss, float [B].

    Raises:
      UserError: the function asks for what `LossInputs` does not have, or returns something else.
    """
    try:
        value = entry.function(inputs, **parameters)
    except AttributeError as error:
        if error.obj is not inputs:
            raise
        known = ", ".join(field.name for field in dataclasses.fields(LossInputs))
        raise UserError(f"loss {entry.name!r} uses inputs.{error.name}: expected one of {known}") from error
    wanted = inputs.labels.shape
    if not hasattr(value, "dtype") or value.shape != wanted or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"{value.dtype} {value.shape}" if hasattr(value, "dtype") else type(value).__name__
        raise UserError(f"loss {entry.name!r} returned {what}: expected a float for each image of the batch, {wanted}")
    return value


def check_losses(fields: Mapping[str, Any], experts: int, features: int, classes: int) -> None:
    """Finds mistakes of a stage's losses before anything is trained, without computing.

    Args:
      fields: of `config.stages.NAME.loss`.
      experts, features, classes: M, F and C.

    Raises:
      UserError: as `value_of`.
    """
    images = 4
    shaped = jax.ShapeDtypeStruct
    arrays = {
        "logits": shaped((experts, images, classes), jnp.float32),
        "features": shaped((experts, images, features), jnp.float32),
        "labels": shaped((images,), jnp.int32),
        "class_counts": shaped((classes,), jnp.int32),
        "progress": shaped((), jnp.float32),
    }
    for entry, _, parameters in active_losses(fields):

        def value(arrays: dict[str, Array], entry: Any = entry, parameters: Any = parameters) -> Array:
            return value_of(entry, LossInputs(**arrays), parameters)

        try:
            jax.eval_shape(value, arrays)
        except UserError:
            raise
        except Exception:  # perhaps for want of real arrays or devices; if not, it fails in training too
            continue


def describe_losses(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`active_losses` as plain data: `name`, `weight` and `parameters` of each."""
    return [{"name": entry.name, "weight": weight, "parameters": p} for entry, weight, p in active_losses(fields)]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy summed over experts (the L_ce of eq. 10).

    Args:
      logits: float [M,B,C].
      labels: int [B], classes 0..C-1.

    Returns:
      float [B], in nats.
    """
    _check(logits, labels)
    return -jnp.sum(at_label(jax.nn.log_softmax(logits), labels), 0)


def balanced_softmax(logits: Array, labels: Array, class_counts: Array) -> Array:
    """Balanced softmax cross-entropy summed over experts (eq. 11): cross-entropy of z + log n.

    Args:
      logits: float [M,B,C].
      labels: int [B].
      class_counts: [C] training examples per class, all positive.

    Returns:
      float [B].
    """
    if class_counts.shape != logits.shape[-1:]:
        raise ValueError(f"class_counts {class_counts.shape} must be [C] for logits {logits.shape} [M,B,C]")
    return cross_entropy(logits + jnp.log(class_counts.astype(logits.dtype)), labels)


def mutual_distillation(logits: Array, form: str = "official") -> Array:
    """KL(p^j || p^k) summed over all ordered pairs of different experts (L_mu, eq. 4).

    Args:
      logits: float [M,B,C]; the result is 0 for M = 1.
      form: `official` divides by C and differentiates through the teacher p^j; `paper` does neither.

    Returns:
      float [B].
    """
    _check_form(form)
    log_p = jax.nn.log_softmax(logits)
    if form == "official":
        # sum_jk p_j (log p_j - log p_k) without a double loop; the terms j = k are 0.
        pairs = jnp.exp(log_p) * (len(logits) * log_p - jnp.sum(log_p, 0))
        return jnp.sum(pairs, (0, 2)) / logits.shape[-1]
    teacher = lax.stop_gradient(log_p)
    return jnp.sum(jnp.exp(teacher) * (len(logits) * teacher - jnp.sum(log_p, 0)), (0, 2))


def grand_teacher(logits: Array, labels: Array, form: str = "paper") -> tuple[Array, Array]:
    """The grand teacher's logits and the consensus hardest negative (eqs. 5-7).

    Args:
      logits: float [M,B,C].
      labels: int [B].
      form: how the target entry is treated when the hardest negative is sought: left out (`paper`) or a logit of 0.

    Returns:
      float [B,C]: the maximum over experts, but their mean at the hardest negative; the target entry means nothing.
      int [B]: the hardest negative class.
    """
    _check(logits, labels)
    _check_form(form)
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    mean = jnp.mean(logits, 0)
    hardest = jnp.argmax(jnp.where(target, 0.0 if form == "official" else -jnp.inf, mean), -1)
    is_hardest = jax.nn.one_hot(hardest, logits.shape[-1], dtype=bool)
    return jnp.where(is_hardest, mean, jnp.max(logits, 0)), hardest


def non_target_distillation(logits: Array, labels: Array, form: str = "official") -> Array:
    """KL(grand teacher || expert) over the non-target classes, summed over experts (L_nt, eqs. 8-9).

    Args:
      logits: float [M,B,C].
      labels: int [B].
      form: see the module's docstring.

    Returns:
      float [B].
    """
    teacher, _ = grand_teacher(logits, labels, form)
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    if form == "official":
        log_t = jax.nn.log_softmax(jnp.where(target, 0.0, teacher))
        log_s = jax.nn.log_softmax(jnp.where(target, STUDENT_TARGET_LOGIT, logits))
        return jnp.sum(jnp.exp(log_t) * (log_t - log_s), (0, 2)) / logits.shape[-1]
    log_t = _log_softmax_without(lax.stop_gradient(teacher), target)
    log_s = _log_softmax_without(logits, target)
    return jnp.sum(jnp.where(target, 0.0, jnp.exp(log_t)) * (log_t - log_s), (0, 2))


def _log_softmax_without(logits: Array, excluded: Array) -> Array:
    """log softmax over the entries that are not excluded; 0 (not -inf, which breaks gradients) where they are."""
    return jnp.where(excluded, 0.0, logits - jax.nn.logsumexp(logits, -1, keepdims=True, where=~excluded))


def at_label(values: Array, labels: Array) -> Array:
    """values [M,B,C] at each label: [M,B]."""
    return jnp.take_along_axis(values, labels[None, :, None], -1)[..., 0]


def _check(logits: Array, labels: Array) -> None:
    if logits.ndim != 3 or labels.shape != logits.shape[1:2]:
        raise ValueError(f"logits {logits.shape} must be [M,B,C] and labels {labels.shape} must be [B]")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")


@LOSSES.register("ce")
def _cross_entropy(inputs: LossInputs) -> Array:
    """Cross-entropy (the L_ce of eq. 10)."""
    return cross_entropy(inputs.logits, inputs.labels)


@LOSSES.register("balanced", balances=True)
def _balanced_softmax(inputs: LossInputs) -> Array:
    """Balanced softmax (eq. 11; Ren et al. 2020): cross-entropy of z + log n."""
    return balanced_softmax(inputs.logits, inputs.labels, inputs.class_counts)


@LOSSES.register("nt", parameters=FORM)
def _non_target_distillation(inputs: LossInputs, form: str) -> Array:
    """Distillation from the grand teacher over the non-target classes (L_nt, eqs. 5 to 9)."""
    return non_target_distillation(inputs.logits, inputs.labels, form)


@LOSSES.register("mu", parameters=FORM, uses_labels=False)
def _mutual_distillation(inputs: LossInputs, form: str) -> Array:
    """Mutual distillation between the experts (L_mu, eq. 4)."""
    return mutual_distillation(inputs.logits, form)
