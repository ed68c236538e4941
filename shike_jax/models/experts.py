"""SHIKE's network: shared stages, one last stage per expert, aligned Hadamard fusion, two sets of classifiers."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shike_jax.cluster.axis import Axis
from shike_jax.kernels.relu import relu
from shike_jax.models.initial import torch_default
from shike_jax.models.layers import Conv, CosineClassifier, LinearClassifier, param_dtype
from shike_jax.models.resnet import Backbone, Mode, Stage, Trunk
from shike_jax.models.second_heads import SECOND_HEADS, CorrectedHeadSet

Array = jax.Array
HEAD_SETS = ("representation", "classifier")


class Align(nn.Module):
    """Brings intermediate features to the deep shape by stride-2 3x3 convolutions, channels doubling (sec. 3.2).

    ReLU follows every convolution but the last of a chain of several; a chain of one keeps its ReLU (authors' code).
    `last_relu` adds the missing one. These convolutions start smaller than all others, from PyTorch's default: the
    authors' code draws its He normal weights before it adds them. Batch normalisation makes the output independent of
    the weights' scale, but not the gradient: the smaller the weights, the larger a step is relative to them.
    """

    halvings: int
    last_relu: bool

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """[B,H,W,C] to [B,H/2^n,W/2^n,C*2^n]."""
        features = x.shape[-1]
        for i in range(self.halvings):
            features *= 2
            x = Conv(features, 3, 2, dtype=mode.dtype, init=torch_default, name=f"conv{i}")(x)
            x = mode.normalise(x, f"bn{i}")
            if i < self.halvings - 1 or self.halvings == 1 or self.last_relu:
                x = relu(x)
        return x


class Expert(nn.Module):
    """One expert's own last stage and, with fusion, the alignment of the shared stage `depth` (eq. 3)."""

    spec: Backbone
    depth: int
    fusion: bool
    last_relu: bool

    @nn.compact
    def __call__(self, shared: list[Array], mode: Mode) -> dict[str, Array]:
        """Returns `deep`, `aligned` (with fusion) and `fused`, each [B,H,W,C], C = channels of the last stage."""
        last = len(self.spec.blocks)
        deep = Stage(self.spec, last, name=f"stage{last}")(shared[-1], mode)
        if not self.fusion:
            return {"deep": deep, "fused": deep}
        aligned = Align(last - self.depth, self.last_relu, name="align")(shared[self.depth - 1], mode)
        return {"deep": deep, "aligned": aligned, "fused": aligned * deep}


class HeadSet(nn.Module):
    """One classifier per expert: pooled features [M,B,F] to logits [M,B,C] in float32 (float64)."""

    experts: int
    classes: int
    kind: str
    scale: float

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        names = [f"expert{m}" for m in range(self.experts)]
        if self.kind == "linear":
            classifiers: list[nn.Module] = [LinearClassifier(self.classes, name=name) for name in names]
        else:
            classifiers = [CosineClassifier(self.classes, self.scale, name=name) for name in names]
        return jnp.stack([classify(pooled[m]) for m, classify in enumerate(classifiers)])


class Heads(nn.Module):
    """The two sets of classifiers: one for representation learning, one trained afterwards (sec. 3.4).

    The second set has weights of its own (`fresh`), or corrects the logits of the first (`SECOND_HEADS`).
    """

    experts: int
    classes: int
    kind: str
    scale: float
    second: str

    def setup(self) -> None:
        """Both sets always exist, so that every checkpoint has the same shape."""
        self.representation = HeadSet(self.experts, self.classes, self.kind, self.scale)
        if self.second in SECOND_HEADS:
            self.classifier: nn.Module = CorrectedHeadSet(self.second, self.experts, self.classes)
        else:
            self.classifier = HeadSet(self.experts, self.classes, self.kind, self.scale)

    def __call__(self, pooled: Array, heads: str) -> Array:
        """Pooled features [M,B,F] to logits [M,B,C] of one set (`heads`)."""
        if heads == "classifier" and self.second in SECOND_HEADS:
            return self.classifier(self.representation(pooled), pooled)
        return getattr(self, heads)(pooled)


class TwoSets(nn.Module):
    """What networks with the two sets of classifiers share: `second_head`, `features` and `classify` are theirs."""

    def sets_used_by(self, heads: str) -> tuple[str, ...]:
        """The sets of classifiers on whose parameters the logits of the set `heads` depend."""
        return HEAD_SETS if heads == "classifier" and self.second_head in SECOND_HEADS else (heads,)

    def classified(self, fused: list[Array], heads: str) -> Array:
        """As `classify`, but `init` makes both sets."""
        if self.is_initializing():
            return jnp.stack([self.classify(fused, each) for each in HEAD_SETS])[HEAD_SETS.index(heads)]
        return self.classify(fused, heads)


class ExpertNetwork(TwoSets):
    """M experts over a shared trunk. M = 1 without fusion is a plain ResNet."""

    spec: Backbone  # its last stage is copied per expert
    depths: tuple[int, ...]  # for each expert, the shared stage (1-based) whose features it fuses
    fusion: bool  # depth-wise knowledge fusion on or off
    classes: int  # C
    head: str = "cosine"  # or `linear`
    head_scale: float = 30.0  # of the cosine
    second_head: str = "fresh"  # what the second set of classifiers is: `fresh`, or one of `SECOND_HEADS`
    last_relu: bool = False  # after the last alignment convolution too
    dtype: Any = jnp.float32  # of the computation
    axis_name: Axis = None  # over which BN statistics are summed; None: a single device, or per-device statistics

    def setup(self) -> None:
        """Names the parts as checkpoints do: trunk, expert0, ..., heads."""
        self.trunk = Trunk(self.spec)
        depths = enumerate(self.depths)
        self.experts = [Expert(self.spec, d, self.fusion, self.last_relu, name=f"expert{m}") for m, d in depths]
        self.heads = Heads(len(self.depths), self.classes, self.head, self.head_scale, self.second_head)

    def features(
        self, images: Array, *, train_trunk: bool = False, train_experts: bool = False, mask: Array | None = None
    ) -> dict[str, Any]:
        """Normalised images, float [B,H,W,3], to named features.

        Args:
          train_trunk, train_experts: BN of the shared stages / of the experts uses and updates batch statistics.
          mask: float [B], 1 for real examples; None when all are.

        Returns:
          `shared`: list of [B,H,W,C] after each shared stage; `deep`, `aligned` (with fusion), `fused`: lists over
          experts of [B,h,w,F].
        """
        mode = Mode(train_trunk, mask, self.axis_name, self.dtype)
        shared = self.trunk(images.astype(self.dtype), mode)
        mode = dataclasses.replace(mode, train=train_experts)
        parts = [expert(shared, mode) for expert in self.experts]
        return {"shared": shared, **{key: [part[key] for part in parts] for key in parts[0]}}

    def classify(self, fused: list[Array], heads: str = "representation") -> Array:
        """Fused maps (list over experts of [B,h,w,F]) to logits [M,B,C] in float32 (float64)."""
        kind = param_dtype(self.dtype)
        return self.heads(jnp.stack([jnp.mean(f.astype(kind), (1, 2)) for f in fused]), heads)

    def __call__(
        self,
        images: Array,
        heads: str = "representation",
        *,
        train: bool = False,
        train_trunk: bool | None = None,
        train_experts: bool | None = None,
        mask: Array | None = None,
    ) -> Array:
        """Normalised images [B,H,W,3] to logits [M,B,C] in float32 (float64).

        Args:
          heads: the set of classifiers. `init` makes both.
          train: BN uses and updates batch statistics (`mutable=["batch_stats"]`).
          train_trunk, train_experts: the same for the shared stages and for the experts; None: as `train`.
          mask: as for `features`.
        """
        fused = self.features(
            images,
            train_trunk=train if train_trunk is None else train_trunk,
            train_experts=train if train_experts is None else train_experts,
            mask=mask,
        )["fused"]
        return self.classified(fused, heads)
