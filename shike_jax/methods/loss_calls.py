"""Calling a registered loss, function or module, and finding its mistakes before anything is trained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from shike_jax.errors import UserError
from shike_jax.methods.loss_registry import LossInputs, active_losses
from shike_jax.methods.registry import Entry, Failed, explained

Array = jax.Array
PyTree = Any


class NoFeatures(UserError):
    """A loss asks for features, which the network does not have."""


def value_of(
    entry: Entry[Any],
    inputs: LossInputs,
    parameters: Mapping[str, Any],
    variables: Mapping[str, PyTree] | None = None,
) -> tuple[Array, dict[str, PyTree]]:
    """The value float [B] of a registered loss, and a module's variables {collection: tree} that it carries on.

    UserError where the function asks for what `LossInputs` does not have, returns something else, fails, or leaves a
    variable of another shape or dtype.
    """
    variables, after = variables or {}, {}
    features: Any = inputs.features
    if features is None:
        inputs = copy.copy(inputs)
        object.__delattr__(inputs, "features")
    try:
        if entry.options["module"]:
            carried = [name for name in variables if name != "params"]
            value, after = entry.function(**parameters).apply(variables, inputs, mutable=carried)
        else:
            value = entry.function(inputs, **parameters)
    except UserError:
        raise
    except Exception as error:
        raise _explained(entry.name, error, inputs) from error
    wanted = inputs.labels.shape
    if not hasattr(value, "dtype") or value.shape != wanted or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"{value.dtype} {value.shape}" if hasattr(value, "dtype") else type(value).__name__
        raise UserError(f"loss {entry.name!r} returned {what}: expected a float for each image of the batch, {wanted}")
    _check_carried(entry.name, variables, after)
    return value, dict(after)


def _check_carried(name: str, before: Mapping[str, PyTree], after: Mapping[str, PyTree]) -> None:
    """The state of a run has the same arrays in every step."""
    for collection, tree in after.items():
        old, new = (flatten_dict(one, sep="/") for one in (before.get(collection, {}), tree))
        if old.keys() != new.keys():
            odd = sorted(old.keys() ^ new.keys())[0]
            raise UserError(f"loss {name!r}: its variable {collection}/{odd} comes or goes within the run")
        for path, leaf in new.items():
            known, found = (f"{jnp.result_type(x)} {jnp.shape(x)}" for x in (old[path], leaf))
            if known != found:
                raise UserError(f"loss {name!r} makes {found} of its variable {collection}/{path}: expected {known}")


def _explained(name: str, error: Exception, inputs: LossInputs) -> UserError:
    if isinstance(error, AttributeError) and error.obj is inputs:
        if error.name == "features":
            return NoFeatures(f"loss {name!r} uses inputs.features: the network has no method `features`")
        known = ", ".join(field.name for field in dataclasses.fields(LossInputs))
        return UserError(f"loss {name!r} uses inputs.{error.name}: expected one of {known}")
    return explained(f"loss {name!r}", error)


def zeros_like_a_batch(experts: int, features: int | None, class_counts: Any, images: int, views: int) -> LossInputs:
    """Inputs of the right shapes, for finding mistakes and for the first values of a module's variables.

    A network without features has None of them; `views` counts the first one too.
    """
    shape = (experts, images, features or 0)
    return LossInputs(
        logits=jnp.zeros((experts, images, len(class_counts)), jnp.float32),
        features=None if features is None else jnp.zeros(shape, jnp.float32),  # type: ignore[arg-type]
        labels=jnp.zeros((images,), jnp.int32),
        class_counts=jnp.asarray(class_counts),
        progress=jnp.zeros((), jnp.float32),
        mask=jnp.ones((images,), jnp.float32),
        key=jax.random.split(jax.random.key(0), images),
        views=(jnp.zeros(shape, jnp.float32),) * (views - 1),
    )


def first_variables(
    entry: Entry[Any], parameters: Mapping[str, Any], inputs: LossInputs, key: Array
) -> dict[str, PyTree]:
    """The variables {collection: tree} that a module begins with; none of a function. UserError where it fails."""
    if not entry.options["module"]:
        return {}
    try:
        # Compiled as one program: a loss's layers are few, and op by op would take longer.
        return dict(jax.jit(lambda key: entry.function(**parameters).init(key, inputs))(key))
    except UserError:
        raise
    except Exception as error:
        raise _explained(entry.name, error, inputs) from error


def check_losses(
    fields: Mapping[str, Any], experts: int, features: int | None, class_counts: Any, network: str = ""
) -> None:
    """Finds mistakes of a stage's losses before anything is trained, without computing."""
    missing = f"network {network!r} has no methods `features` and `classify`"
    for entry, _, parameters in active_losses(fields):
        views = entry.options["views"]
        if views > 1 and features is None:
            raise UserError(f"loss {entry.name!r} asks for views={views}: {missing}")

        def value(key: Array, entry: Any = entry, parameters: Any = parameters, views: int = views) -> Array:
            inputs = zeros_like_a_batch(experts, features, class_counts, 4, views)
            variables = first_variables(entry, parameters, inputs, key)
            return value_of(entry, dataclasses.replace(inputs, **_traced(inputs, key)), parameters, variables)[0]

        try:
            jax.eval_shape(value, jax.random.key(0))
        except Failed:  # perhaps for want of devices or of other sizes; if not, it fails in training too
            continue
        except NoFeatures:
            raise UserError(f"loss {entry.name!r} uses inputs.features: {missing}") from None


def _traced(inputs: LossInputs, key: Array) -> dict[str, Any]:
    """The arrays of a step that are not known when it is compiled."""
    unknown = jax.random.uniform(key)
    names = ("logits", "features", "labels", "progress", "mask", "views")
    return jax.tree.map(lambda x: (x + unknown).astype(x.dtype), {name: getattr(inputs, name) for name in names})
