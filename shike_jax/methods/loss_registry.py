"""The losses that configurations give weights to, and what each of them receives (`LossInputs`).

A registered loss is a pure function of `LossInputs`, and of the parameters that it declares, to float [B]. One that has
layers or remembers something is a Flax module, registered with `module=True`; it is called with `LossInputs` too:

    @LOSSES.register("centres", parameters={"centres_rate": 0.1}, module=True, views=2)
    class Centres(nn.Module):
        centres_rate: float = 0.1

        @nn.compact
        def __call__(self, inputs): ...

Its parameters train where a pattern of `stage.train` matches `losses/centres/...`. Its other variables, whatever their
collection, are carried from step to step like running averages of batch normalisation. Both begin with the run, lie in
its checkpoints and are left out of what is served.

Those that come with the package call the plain functions of `losses`; their parameters carry the loss's name, so that a
user's own never have the same.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from shike_jax.methods import losses
from shike_jax.methods.registry import Choice, Entry, Number, Option, Registry

Array = jax.Array


def _itself(x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """What a registered loss may use. B is a device's share of the global batch.

    Attributes:
      logits: float32 [M,B,C] of the M experts.
      features: float32 [M,B,F], the pooled features that the classifiers receive. A network without features has none.
      labels: int32 [B].
      class_counts: int [C], training images of each class; numbers, not traced.
      progress: float32 [], the share of the stage's steps that are done, 0 at its start.
      mask: float32 [B], 1 for real examples and 0 for padding, whose values count nowhere.
      key: PRNG keys [B], by the loss, the step and the image's place in the global batch: the same on any number of
        devices.
      views: features [M,B,F] of each further, independently augmented view of the images: `views=2` gives one. They are
        never mixed, and normalised with their own batch statistics.
      gather: a function of an array [B,...] of this device to the arrays of all devices, in the order of the global
        batch; differentiable. The identity where there is one device.
    """

    logits: Array
    features: Array
    labels: Array
    class_counts: Array
    progress: Array
    mask: Array | None = None
    key: Array | None = None
    views: tuple[Array, ...] = ()
    gather: Callable[[Any], Any] = _itself


def _check_loss(entry: Entry[Callable[..., Any]]) -> None:
    is_module = isinstance(entry.function, type) and issubclass(entry.function, nn.Module)
    if entry.options["module"] != is_module:
        found, expected = ("a Flax module", True) if is_module else ("no subclass of flax.linen.Module", False)
        raise ValueError(f"loss {entry.name!r} is {found}: expected module={expected}")
    views = entry.options["views"]
    if isinstance(views, bool) or not isinstance(views, int) or not 1 <= views <= MOST_VIEWS:
        raise ValueError(f"loss {entry.name!r}: views={views!r}, expected a whole number from 1 to {MOST_VIEWS}")


MOST_VIEWS = 16
LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    "(inputs: LossInputs, **parameters) to float [B], one value for each image; of a module its call with `inputs`",
    inputs=LossInputs,
    given=1,
    check=_check_loss,
    uses_labels=Option(True, "False: the labels do not matter, so that mixed images need it once, not for both labels"),
    balances=Option(False, "it makes up for the class counts: what it trains takes all classes for equally frequent"),
    module=Option(
        False,
        "a Flax module: parameters train as `losses/NAME/...`, other variables are carried; under mixing it is called "
        "once, with the images' own labels",
    ),
    cosine=Option("", "its parameter that must be `config.model.head_scale`: the logits are cosines times that"),
    views=Option(1, "independently augmented views of each image, the one that the logits are of included"),
)
FORM = {"form": Choice(losses.FORMS)}


def active_losses(fields: Mapping[str, Any]) -> list[tuple[Entry[Callable[..., Any]], float, dict[str, Any]]]:
    """The losses that a stage trains with: (registered loss, weight, its parameters) for each weight that is not 0.

    Args:
      fields: of `config.stages.NAME.loss`.
    """
    used = [entry for entry in LOSSES.entries() if fields.get(entry.name)]
    return [(entry, fields[entry.name], {name: fields[name] for name in entry.parameters}) for entry in used]


def further_views(fields: Mapping[str, Any]) -> int:
    """How many views of each image a stage's losses want besides the one that the logits are of."""
    return max((entry.options["views"] for entry, _, _ in active_losses(fields)), default=1) - 1


def number_of(name: str) -> int:
    """A number that tells losses apart in random keys, whatever else is registered: uint32."""
    return zlib.crc32(name.encode())


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
    cosine="ldam_scale",
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
