"""Residual stages: the CIFAR family (basic blocks) and the ImageNet family (bottlenecks v1.5, grouped)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shike_jax.cluster.axis import Axis
from shike_jax.kernels.pooling import max_pool
from shike_jax.kernels.relu import relu
from shike_jax.models.layers import BatchNorm, Conv

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a ResNet is made of."""

    blocks: tuple[int, ...]  # residual blocks per stage
    width: int  # channels of the stem; stage s has width * 2^(s-1) (times 4 after a bottleneck)
    bottleneck: bool = False  # 1x1, 3x3 (carrying the stride: v1.5), 1x1 blocks instead of two 3x3
    groups: int = 1  # of the bottleneck's 3x3 convolution (ResNeXt 32x4d: 32, each 4 wide)
    group_width: int = 64
    imagenet_stem: bool = False  # 7x7 stride 2 and max-pool instead of one 3x3
    shortcut: str = "B"  # of the basic blocks that change shape: A (zero padding) or B (1x1 convolution and BN)

    def channels(self, stage: int) -> int:
        """Channels of the features after stage 1, 2, ..."""
        return self.width * 2 ** (stage - 1) * (4 if self.bottleneck else 1)


BACKBONES = {
    **{f"resnet{depth}": Backbone(((depth - 2) // 6,) * 3, 16) for depth in (20, 32, 44, 56)},
    "resnet18": Backbone((2, 2, 2, 2), 64, imagenet_stem=True),
    "resnet34": Backbone((3, 4, 6, 3), 64, imagenet_stem=True),
    "resnet50": Backbone((3, 4, 6, 3), 64, bottleneck=True, imagenet_stem=True),
    "resnext50_32x4d": Backbone((3, 4, 6, 3), 64, True, groups=32, group_width=4, imagenet_stem=True),
    "resnet152": Backbone((3, 8, 36, 3), 64, bottleneck=True, imagenet_stem=True),
}


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a network runs."""

    train: bool  # BN in training mode
    mask: Array | None = None  # of real examples [B]
    axis_name: Axis = None  # as `BatchNorm` has it
    dtype: Any = jnp.float32  # of the computation

    def normalise(self, x: Array, name: str) -> Array:
        """Batch normalisation `name` of x [B,H,W,C]; for use inside compact modules."""
        return BatchNorm(self.axis_name, name=name)(x, train=self.train, mask=self.mask)


def conv_bn(
    names: tuple[str, str], x: Array, mode: Mode, features: int, size: int = 3, stride: int = 1, groups: int = 1
) -> Array:
    """A convolution and its batch normalisation, named in this order; for use inside compact modules."""
    conv, bn = names
    return mode.normalise(Conv(features, size, stride, groups, mode.dtype, name=conv)(x), bn)


FIRST, SECOND, THIRD = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
SHORTCUT = ("shortcut_conv", "shortcut_bn")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; [B,H,W,C] to [B,H/stride,W/stride,features]."""

    spec: Backbone
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        y = relu(conv_bn(FIRST, x, mode, self.features, 3, self.stride))
        y = conv_bn(SECOND, y, mode, self.features)
        if self.stride != 1 or x.shape[-1] != self.features:
            if self.spec.shortcut == "A":
                missing = self.features - x.shape[-1]
                before = missing // 2
                x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (before, missing - before)))
            else:
                x = conv_bn(SHORTCUT, x, mode, self.features, 1, self.stride)
        return relu(y + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride, groups), 1x1 with four times the channels; torchvision's v1.5 layout."""

    spec: Backbone
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        inner = self.features // 4 * self.spec.group_width * self.spec.groups // 64
        y = relu(conv_bn(FIRST, x, mode, inner, 1))
        y = relu(conv_bn(SECOND, y, mode, inner, 3, self.stride, self.spec.groups))
        y = conv_bn(THIRD, y, mode, self.features, 1)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv_bn(SHORTCUT, x, mode, self.features, 1, self.stride)
        return relu(y + x)


class Stage(nn.Module):
    """Stage `index` (1, 2, ...) of a backbone: its blocks in order; from stage 2 on the first halves the resolution."""

    spec: Backbone
    index: int

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> Array:
        """[B,H,W,C] to [B,H/2,W/2,channels(index)] (stage 1 keeps the resolution)."""
        block = Bottleneck if self.spec.bottleneck else BasicBlock
        for i in range(self.spec.blocks[self.index - 1]):
            stride = 2 if i == 0 and self.index > 1 else 1
            x = block(self.spec, self.spec.channels(self.index), stride, name=f"block{i}")(x, mode)
        return x


class Trunk(nn.Module):
    """Stem and shared stages: everything that all experts have in common (eq. 1)."""

    spec: Backbone

    @nn.compact
    def __call__(self, x: Array, mode: Mode) -> list[Array]:
        """Returns the features f_1, ..., f_S after each shared stage for images [B,H,W,3]."""
        if self.spec.imagenet_stem:
            x = max_pool(relu(conv_bn(FIRST, x, mode, self.spec.width, 7, 2)))
        else:
            x = relu(conv_bn(FIRST, x, mode, self.spec.width))
        features = []
        for s in range(1, len(self.spec.blocks)):
            x = Stage(self.spec, s, name=f"stage{s}")(x, mode)
            features.append(x)
        return features
