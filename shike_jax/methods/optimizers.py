"""Optimisers by name: the registered ones, and every optimiser of optax that takes a learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shike_jax.errors import UserError
from shike_jax.methods.registry import Registry

LearningRate = Callable[[jax.Array], jax.Array]
OPTIMIZERS: Registry[Callable[..., optax.GradientTransformation]] = Registry(
    "optimiser",
    "(learning_rate: step to rate, momentum, weight_decay, **optimizer_options) to an optax.GradientTransformation; "
    "any function of optax that takes a learning rate serves without registering",
    parameters=False,
)


@OPTIMIZERS.register("sgd")
def sgd(learning_rate: LearningRate, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as in PyTorch: weight decay joins the gradient, then the momentum buffer, then the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.trace(momentum), optax.scale_by_learning_rate(learning_rate)
    )


def matrices(params: Any) -> Any:
    """True for kernels and all else of two axes or more; False for biases and what belongs to batch normalisation,
    which have a single axis in the networks (not in every loss that has parameters)."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@OPTIMIZERS.register("lars")
def lars(
    learning_rate: LearningRate, momentum: float, weight_decay: float, **options: Any
) -> optax.GradientTransformation:
    """LARS (You et al., arXiv 1708.03888) as optax has it; biases and BN take plain steps and do not decay.

    `options` are those of `optax.lars`, which also replace `weight_decay_mask` and `trust_ratio_mask`.
    """
    masks = {"weight_decay_mask": matrices, "trust_ratio_mask": matrices}
    return optax.lars(learning_rate, weight_decay, momentum=momentum, **{**masks, **options})


@OPTIMIZERS.register("lamb")
def lamb(
    learning_rate: LearningRate,
    momentum: float,
    weight_decay: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    mask: Callable[[Any], Any] = matrices,
) -> optax.GradientTransformation:
    """LAMB (You et al., arXiv 1904.00962): Adam whose step has each kernel's own length.

    SGD's momentum is not used. The parameters in `mask` decay and get a trust ratio: not biases and BN.
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def is_optimizer(name: str) -> bool:
    """Whether `make_optimizer` knows the name."""
    return name in OPTIMIZERS or _of_optax(name) is not None


def make_optimizer(
    name: str, learning_rate: LearningRate, momentum: float, weight_decay: float, options: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Builds an optimiser whose update is added to the parameters.

    Its name is registered, or that of a function of optax that takes `learning_rate`, such as `adamw` or `lars`, which
    gets momentum and weight decay where it has parameters of these names. `options` are further keyword arguments.

    Raises:
      UserError: an unknown name, an option that the optimiser does not have, a weight decay that it would not apply,
        or an optimiser that needs more than gradients and parameters.
    """
    known = {"learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    if both := sorted(known.keys() & options.keys()):
        raise UserError(f"optimiser {name!r} with option {both[0]}: expected the stage's field that sets it")
    function = OPTIMIZERS[name].function if name in OPTIMIZERS else _of_optax(name)
    if function is None:
        raise UserError(f"unknown optimiser {name!r}: expected {', '.join(OPTIMIZERS)} or one of optax, as adamw")
    if name not in OPTIMIZERS:
        known = {key: value for key, value in known.items() if key in inspect.signature(function).parameters}
        if weight_decay and "weight_decay" not in known:
            raise UserError(
                f"optimiser {name!r} has no weight decay: expected weight_decay=0 instead of {weight_decay:g}, or an "
                "optimiser that has it, such as adamw"
            )
    try:
        optimizer = function(**{**known, **options})
        if name not in OPTIMIZERS:
            one = {"weights": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
            jax.eval_shape(lambda params: optimizer.update(params, optimizer.init(params), params), one)
    except TypeError as error:  # an unknown option, or one (lbfgs) that needs more than a gradient
        raise UserError(f"optimiser {name!r} with options {dict(options)}: {error}") from error
    return optimizer


def _of_optax(name: str) -> Callable[..., optax.GradientTransformation] | None:
    public = name.isidentifier() and not name.startswith(("_", "scale_by_"))
    function = getattr(optax, name, None) if public else None
    if function is None or not inspect.isfunction(function):
        return None
    return function if "learning_rate" in inspect.signature(function).parameters else None
