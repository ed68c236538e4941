"""What may happen to feature maps between the stages and the classifiers; H2T's exchange is the first such hook.

A hook is a function of `HookInputs` to feature maps of the same shapes. Each registered hook is a field of a stage,
with its strength as the value: `config.stages.NAME.exchange = 0.25`; 0 is off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from shike_jax.errors import UserError
from shike_jax.methods.registry import Entry, Option, Registry

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class HookInputs:
    """What a feature hook receives.

    Attributes:
      maps: float [B,h,w,K] of each expert.
      partner: the same of the images that a sampler of pairs has drawn with them; None without such a sampler.
      key: PRNG key of the step, the same on all devices.
      strength: the value of the hook's field.
    """

    maps: list[Array]
    partner: list[Array] | None
    key: Array
    strength: float


FEATURE_HOOKS: Registry[Callable[[HookInputs], list[Array]]] = Registry(
    "feature hook",
    "(inputs: HookInputs) to maps of the same shapes, a list over the experts",
    inputs=HookInputs,
    given=1,
    parameters=False,
    about=Option("strength; 0: off", "describes the field `config.stages.STAGE.NAME`, whose value is the strength"),
    high=Option(1.0, "the largest strength"),
    pairs=Option(False, "it needs a sampler of pairs"),
    frozen=Option(False, "only classifiers may train, as no gradient passes"),
)


def hooked(entry: Entry[Callable[[HookInputs], list[Array]]], inputs: HookInputs) -> list[Array]:
    """The maps that a hook makes; UserError where it failed, or returned something else than maps of these shapes."""
    found = entry.call(inputs)
    wanted = [x.shape for x in inputs.maps]
    shapes = [getattr(x, "shape", None) for x in found] if isinstance(found, list | tuple) else type(found).__name__
    if shapes != wanted:
        raise UserError(f"feature hook {entry.name!r} returned {shapes}: expected a list of maps {wanted}")
    return list(found)


@FEATURE_HOOKS.register(
    "exchange",
    about="share of feature-map channels taken from the partner image (sampler paired); 0: off",
    pairs=True,
    frozen=True,
)
def exchange(inputs: HookInputs) -> list[Array]:
    """Head-to-tail fusion (H2T, Li et al. 2024): replaces a random share of the channels by the partner's.

    Exactly floor(strength K) channels are exchanged, the same for the whole batch, drawn again for each step and
    expert. `maps` are the class-balanced batch, whose labels stay, `partner` the instance-sampled one. The extractor is
    frozen: no gradient flows into either.
    """
    assert inputs.partner is not None
    pairs = zip(inputs.maps, inputs.partner, strict=True)
    exchanged = []
    for expert, (own, other) in enumerate(pairs):
        channels = own.shape[-1]
        order = jax.random.permutation(jax.random.fold_in(inputs.key, expert), channels)
        chosen = order < int(inputs.strength * channels + 1e-9)
        exchanged.append(jax.lax.stop_gradient(jnp.where(chosen, other, own)))
    return exchanged
