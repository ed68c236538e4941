"""The losses that configurations give weights to, and what each of them receives (`LossInputs`).

A registered loss is a pure function of `LossInputs`, and of the parameters that it declares, to float [B]. Those that
come with the package call the plain functions of `losses`; their parameters carry the loss's name, so that a user's own
never have the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from shike_jax.errors import UserError
from shike_jax.methods import losses
from shike_jax.methods.registry import Choice, Entry, Number, Registry

Array = jax.Array


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
FORM = {"form": Choice(losses.FORMS)}


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


@LOSSES.register("ce")
def _cross_entropy(inputs: LossInputs) -> Array:
    """Cross-entropy (the L_ce of eq. 10)."""
    return losses.cross_entropy(inputs.logits, inputs.labels)


@LOSSES.register("balanced", balances=True)
def _balanced_softmax(inputs: LossInputs) -> Array:
    """Balanced softmax (eq. 11; Ren et al. 2020): cross-entropy of z + log n."""
    return losses.balanced_softmax(inputs.logits, inputs.labels, inputs.class_counts)


@LOSSES.register("nt", parameters=FORM)
def _non_target_distillation(inputs: LossInputs, form: str) -> Array:
    """Distillation from the grand teacher over the non-target classes (L_nt, eqs. 5 to 9)."""
    return losses.non_target_distillation(inputs.logits, inputs.labels, form)


@LOSSES.register("mu", parameters=FORM, uses_labels=False)
def _mutual_distillation(inputs: LossInputs, form: str) -> Array:
    """Mutual distillation between the experts (L_mu, eq. 4)."""
    return losses.mutual_distillation(inputs.logits, form)


@LOSSES.register("focal", parameters={"focal_gamma": Number(2.0, low=0)})
def _focal(inputs: LossInputs, focal_gamma: float) -> Array:
    """Focal loss (Lin et al. 2017, eq. 4, without alpha)."""
    return losses.focal(inputs.logits, inputs.labels, focal_gamma)


@LOSSES.register("class_balanced", parameters={"class_balanced_beta": Number(0.9999, low=0, below=1)}, balances=True)
def _class_balanced(inputs: LossInputs, class_balanced_beta: float) -> Array:
    """Cross-entropy weighted by the inverse effective number of images (Cui et al. 2019, eqs. 2 and 12)."""
    return losses.class_balanced(inputs.logits, inputs.labels, inputs.class_counts, class_balanced_beta)


@LOSSES.register(
    "ldam",
    parameters={
        "ldam_margin": 0.5,
        "ldam_scale": 30.0,
        "ldam_beta": Number(0.9999, low=0, below=1),
        "ldam_drw": 1.0,
    },
    balances=True,
)
def _ldam(inputs: LossInputs, ldam_margin: float, ldam_scale: float, ldam_beta: float, ldam_drw: float) -> Array:
    """Label-distribution-aware margins with deferred re-weighting (Cao et al. 2019, eq. 13 and algorithm 1).

    The logits must be cosines times `ldam_scale` (head `cosine`, `model.head_scale`). From the share `ldam_drw` of the
    stage on, images are weighted by their class's inverse effective number; the optimiser and the schedule go on.
    """
    late = inputs.progress >= ldam_drw
    return losses.ldam(inputs.logits, inputs.labels, inputs.class_counts, ldam_margin, ldam_scale, ldam_beta, late)


@LOSSES.register("logit_adjusted", parameters={"logit_adjusted_tau": 1.0}, balances=True)
def _logit_adjusted(inputs: LossInputs, logit_adjusted_tau: float) -> Array:
    """Logit-adjusted cross-entropy (Menon et al. 2021, eq. 10): of z + tau log pi, pi being the priors."""
    return losses.logit_adjusted(inputs.logits, inputs.labels, inputs.class_counts, logit_adjusted_tau)


@LOSSES.register(
    "balanced_experts", parameters={"balanced_experts_low": 0.0, "balanced_experts_high": 2.0}, balances=True
)
def _balanced_experts(inputs: LossInputs, balanced_experts_low: float, balanced_experts_high: float) -> Array:
    """Experts with different priors (BalPoE, Aimar et al. 2023, sec. 3): cross-entropy of z^m + tau_m log pi."""
    return losses.balanced_experts(
        inputs.logits, inputs.labels, inputs.class_counts, balanced_experts_low, balanced_experts_high
    )
