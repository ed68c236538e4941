"""How a network is called: one of this package, or a registered one that may have less.

Every network is a Flax module whose call takes images [B,...] and the keywords `heads` (the set of classifiers,
`representation` or `classifier`), `train_trunk`, `train_experts` (whether batch normalisation uses and updates batch
statistics) and `mask` (float [B], 1 for real examples), and returns logits float32 [M,B,C]. It may ignore them. Its
variables are `params` and perhaps `batch_stats`. It may also have

* `features(images, *, train_trunk, train_experts, mask)` to a dict whose `fused` lists the experts' maps [B,h,w,F] or
  vectors [B,F], and `classify(fused, heads)` to logits: what losses on features, feature hooks and several views need;
* `sets_used_by(heads)`: the sets of classifiers whose parameters the logits of `heads` depend on. Without it the
  network has one set, whatever `heads` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shike_jax.errors import UserError
from shike_jax.kernels import onednn as onednn  # for rooms above, which compile what calls a network
from shike_jax.methods.registry import explained
from shike_jax.models.experts import HEAD_SETS, ExpertNetwork

Array = jax.Array
PyTree = Any


def name_of(network: nn.Module) -> str:
    """What messages call a network."""
    return network.name or type(network).__name__


def has_features(network: nn.Module) -> bool:
    """Whether a network can be called in two halves, `features` and `classify`."""
    return hasattr(network, "features") and hasattr(network, "classify")


def head_sets(network: nn.Module) -> tuple[str, ...]:
    """The sets of classifiers that a network tells apart; none of one that has a single set."""
    return HEAD_SETS if hasattr(network, "sets_used_by") else ()


def sets_used_by(network: nn.Module, heads: str) -> tuple[str, ...]:
    """The sets of classifiers that the logits of `heads` depend on; all where the network does not say."""
    return network.sets_used_by(heads) if hasattr(network, "sets_used_by") else HEAD_SETS


def pooled(fused: Sequence[Array]) -> Array:
    """The features [M,B,F] that the classifiers receive, of maps [B,h,w,F] or vectors [B,F] of each expert."""

    def pool(maps: Array) -> Array:
        values = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
        return jnp.mean(values, (1, 2)) if maps.ndim == 4 else values

    return jnp.stack([pool(maps) for maps in fused])


def logits_of(network: nn.Module, variables: PyTree, images: Array, heads: Sequence[str]) -> list[Array]:
    """Logits [M,B,C] of each set of classifiers, with running averages; features are computed once for all."""
    if not has_features(network):
        return [network.apply(variables, images, heads=name) for name in heads]
    fused = network.apply(variables, images, method="features")["fused"]
    return [network.apply(variables, fused, name, method="classify") for name in heads]


def sizes_of(
    network: nn.Module, variables: Mapping[str, PyTree], images: Any, classes: int | None = None
) -> tuple[int, int | None]:
    """How many experts a network has, M, and how many pooled features each has, F; None without `features`.

    Variables {`params`, `batch_stats`} and images [B,...] may be shapes. `UserError` for a network that fails, or
    returns something else than logits [M,B,C], of any C where `classes` is None.
    """
    if isinstance(network, ExpertNetwork):
        return len(network.depths), network.spec.channels(len(network.spec.blocks))
    mode = {"train_trunk": False, "train_experts": False}  # as a step passes them; no device axis is bound here

    def call(variables: PyTree, images: Array) -> tuple[Array, Array | None]:
        mask = jnp.ones(images.shape[:1], jnp.float32)
        if not has_features(network):
            return network.apply(variables, images, heads="representation", mask=mask, **mode), None
        fused = network.apply(variables, images, mask=mask, method="features", **mode)["fused"]
        return network.apply(variables, fused, "representation", method="classify"), pooled(fused)

    logits, features = tried(f"network {name_of(network)!r}", jax.eval_shape, call, dict(variables), images)
    if not hasattr(logits, "shape"):
        expected = f"logits (experts, {images.shape[0]}, {classes or 'classes'}) alone"
        raise UserError(f"network {name_of(network)!r} returned a {type(logits).__name__}: expected {expected}")
    fits = len(logits.shape) == 3 and logits.shape[1] == images.shape[0] and classes in (None, logits.shape[2])
    if not fits or not jnp.issubdtype(logits.dtype, jnp.floating):
        expected = f"logits (experts, {images.shape[0]}, {classes or 'classes'})"
        raise UserError(f"network {name_of(network)!r} returned {logits.dtype} {logits.shape}: expected {expected}")
    return logits.shape[0], None if features is None else features.shape[-1]


def applied(network: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """As `network.apply`; what a network from outside this package raises becomes one line that names it."""
    if type(network).__module__.startswith("shike_jax."):
        return network.apply(*arguments, **keywords)
    return tried(f"network {name_of(network)!r}", network.apply, *arguments, **keywords)


def tried(what: str, function: Any, *arguments: Any, **keywords: Any) -> Any:
    """The result of a function that calls somebody else's; its exceptions become a `UserError` that names `what`."""
    try:
        return function(*arguments, **keywords)
    except UserError:
        raise
    except Exception as error:
        raise explained(what, error) from error
