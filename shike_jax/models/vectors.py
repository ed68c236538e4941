"""Classifiers over vectors, such as the features of a frozen network: SHIKE's experts and head sets without a trunk."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shike_jax.models.experts import Heads, TwoSets
from shike_jax.models.layers import param_dtype

Array = jax.Array


class VectorNetwork(TwoSets):
    """M experts, each a hidden layer of its own over the vector, or none, and both sets of classifiers."""

    experts: int  # M
    classes: int  # C
    width: int = 0  # units of the hidden layers; 0: the classifiers see the vector itself
    head: str = "cosine"
    head_scale: float = 30.0
    second_head: str = "fresh"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the parts as those of `ExpertNetwork`."""
        self.hidden = [
            nn.Dense(self.width, dtype=self.dtype, param_dtype=param_dtype(self.dtype), name=f"expert{m}")
            for m in range(self.experts if self.width else 0)
        ]
        self.heads = Heads(self.experts, self.classes, self.head, self.head_scale, self.second_head)

    def features(self, images: Array, **mode: Any) -> dict[str, list[Array]]:
        """Arrays [B,...] to `fused`: vectors [B,F] of each expert."""
        vectors = images.reshape(images.shape[0], -1).astype(self.dtype)
        return {"fused": [nn.gelu(layer(vectors)) for layer in self.hidden] or [vectors] * self.experts}

    def classify(self, fused: list[Array], heads: str = "representation") -> Array:
        """Vectors [B,F] of each expert to logits [M,B,C] in float32 (float64)."""
        return self.heads(jnp.stack(fused).astype(param_dtype(self.dtype)), heads)

    def __call__(self, images: Array, heads: str = "representation", **mode: Any) -> Array:
        """Arrays [B,...] to logits [M,B,C]; `init` makes both sets of classifiers."""
        return self.classified(self.features(images)["fused"], heads)
