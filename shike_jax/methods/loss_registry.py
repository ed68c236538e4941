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
"""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shike_jax.methods import losses
from shike_jax.methods.registry import Choice, Entry, Number, Option, Registry

Array = jax.Array


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
    gather: Callable[[Any], Any] = lambda x: x


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


def active_losses(fields: Mapping[str, Any]) -> list[tuple[Entry[Callable[..., Any]], float, dict[str, Any]]]:
    """(registered loss, weight, its parameters) for each weight that is not 0 among `config.stages.NAME.loss`."""
    return [
        (entry, weight, {name: fields[name] for name in entry.parameters}) for entry, weight in LOSSES.active(fields)
    ]


def further_views(fields: Mapping[str, Any]) -> int:
    """How many views of each image a stage's losses want besides the one that the logits are of."""
    return max((entry.options["views"] for entry, _, _ in active_losses(fields)), default=1) - 1


def number_of(name: str) -> int:
    """A number that tells losses apart in random keys, whatever else is registered: uint32."""
    return zlib.crc32(name.encode())


def describe_losses(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`active_losses` as plain data: `name`, `weight` and `parameters` of each."""
    return [{"name": entry.name, "weight": weight, "parameters": p} for entry, weight, p in active_losses(fields)]


def _register(
    name: str, loss: Callable[..., Array], parameters: Mapping[str, Any] | None = None, **options: Any
) -> None:
    """Registers a plain loss; the parameters carry its name, so that a user's own never have the same."""
    takes = inspect.signature(loss).parameters
    fields = [field for field in ("logits", "labels", "class_counts") if field in takes]

    def of_inputs(inputs: LossInputs, **chosen: Any) -> Array:
        named = {key.removeprefix(f"{name}_"): value for key, value in chosen.items()}
        return loss(*(getattr(inputs, field) for field in fields), **named)

    of_inputs.__doc__ = loss.__doc__
    LOSSES.register(name, parameters=parameters, uses_labels="labels" in takes, **options)(of_inputs)


_BETA = Number(0.9999, low=0, below=1)
_FORM = {"form": Choice(losses.FORMS)}
_register("ce", losses.cross_entropy)
_register("balanced", losses.balanced_softmax, balances=True)
_register("nt", losses.non_target_distillation, _FORM)
_register("mu", losses.mutual_distillation, _FORM)
_register("focal", losses.focal, {"focal_gamma": Number(2.0, low=0)})
_register("class_balanced", losses.class_balanced, {"class_balanced_beta": _BETA}, balances=True)


@LOSSES.register(
    "ldam",
    parameters={"ldam_margin": 0.5, "ldam_scale": 30.0, "ldam_beta": _BETA, "ldam_drw": 1.0},
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


_register("logit_adjusted", losses.logit_adjusted, {"logit_adjusted_tau": 1.0}, balances=True)
_register(
    "balanced_experts",
    losses.balanced_experts,
    {"balanced_experts_low": 0.0, "balanced_experts_high": 2.0},
    balances=True,
)
_register(
    "generalized_reweight", losses.generalized_reweight, {"generalized_reweight_rho": Number(1.2, low=0)}, balances=True
)


@LOSSES.register(
    "gcl",
    parameters={"gcl_strength": Number(0.5, low=0), "gcl_margin": Number(0.0, low=0), "gcl_scale": 30.0},
    balances=True,
    cosine="gcl_scale",
)
def _gcl(inputs: LossInputs, gcl_strength: float, gcl_margin: float, gcl_scale: float) -> Array:
    """Gaussian clouded logit adjustment (Li et al. 2022, eqs. 7 to 9); cosines times `gcl_scale` as logits."""
    logits, classes = inputs.logits, inputs.logits.shape[-1]
    drawn = jax.vmap(lambda key: jax.random.normal(key, (classes,), logits.dtype))(inputs.key)
    noise = jnp.clip((1 / 3) * drawn, -1, 1)
    return losses.gaussian_clouded(
        logits, inputs.labels, inputs.class_counts, noise, gcl_strength, gcl_margin, gcl_scale
    )


_SHARE = {"low": 0, "below": 1}
_register(
    "label_aware",
    losses.label_aware_smoothing,
    {"label_aware_head": Number(0.4, **_SHARE), "label_aware_tail": Number(0.1, **_SHARE)},
)
_register(
    "diversity",
    losses.expert_diversity,
    {"diversity_temperature": Number(1.0, low=1e-3), "diversity_reweighting": Number(0.05, **_SHARE)},
)
_register("sade", losses.skill_diverse, {"sade_tau": 2.0}, balances=True)
