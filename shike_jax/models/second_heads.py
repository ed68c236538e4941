"""What the second set of classifiers may be when it has no weights of its own but corrects the first set's logits.

Each is a Flax module `Module(classes)` of logits [B,C] and pooled features [B,F] of one expert to logits [B,C]; its
name is a value of `config.model.second_head`, next to `fresh`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from shike_jax.models.initial import ones, zeros

Array = jax.Array


class ClassScales(nn.Module):
    """Learnable weight scaling (Kang et al. 2020, sec. 4): one factor for each class, which begins at 1."""

    classes: int

    @nn.compact
    def __call__(self, logits: Array, features: Array) -> Array:
        return logits * self.param("scale", ones, (self.classes,), logits.dtype)


class Alignment(nn.Module):
    """Adaptive calibration (DisAlign, Zhang et al. 2021, eqs. 5 to 7): z + s(x) (alpha z + beta).

    alpha and beta are learnt for each class and begin at 1 and 0, as in the authors' code; s(x), the confidence, is a
    dense layer of the features with a sigmoid.
    """

    classes: int

    @nn.compact
    def __call__(self, logits: Array, features: Array) -> Array:
        confidence = jax.nn.sigmoid(nn.Dense(1, name="confidence", param_dtype=logits.dtype)(features))
        scale = self.param("scale", ones, (self.classes,), logits.dtype)
        bias = self.param("bias", zeros, (self.classes,), logits.dtype)
        return logits + confidence * (scale * logits + bias)


SECOND_HEADS: dict[str, type[nn.Module]] = {"scaled": ClassScales, "aligned": Alignment}


class CorrectedHeadSet(nn.Module):
    """One correction for each expert: logits [M,B,C] and pooled features [M,B,F] to logits [M,B,C]."""

    kind: str
    experts: int
    classes: int

    @nn.compact
    def __call__(self, logits: Array, pooled: Array) -> Array:
        make = SECOND_HEADS[self.kind]
        return jnp.stack([make(self.classes, name=f"expert{m}")(logits[m], pooled[m]) for m in range(self.experts)])
