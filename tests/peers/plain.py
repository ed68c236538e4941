"""The same step as anybody would write it first in Flax: `nn.Conv`, `nn.BatchNorm`, loops over experts, `optax.sgd`.

Modules carry the names of this package's network, so its weights fit as they are.
"""

from __future__ import annotations

import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from shike_jax import config as schema
from shike_jax.benchmark.workload import LEARNING_RATE, Workload
from shike_jax.cluster.compiled_program import data_bytes
from shike_jax.models import Backbone

Array = jax.Array


def conv_norm(names: tuple[str, str], x: Array, features: int, size: int, stride: int, groups: int, dtype: Any):
    """Convolution and batch normalisation inside a compact module: [B,H,W,C] to [B,H/stride,W/stride,features]."""
    pad = size // 2
    x = nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        name=names[0],
    )(x)
    return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=dtype, name=names[1])(x)


class Block(nn.Module):
    """Basic block or bottleneck."""

    spec: Backbone
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the block."""
        spec, features, stride, dtype = self.spec, self.features, self.stride, self.dtype
        if spec.bottleneck:
            inner = features // 4 * spec.group_width * spec.groups // 64
            y = nn.relu(conv_norm(("conv1", "bn1"), x, inner, 1, 1, 1, dtype))
            y = nn.relu(conv_norm(("conv2", "bn2"), y, inner, 3, stride, spec.groups, dtype))
            y = conv_norm(("conv3", "bn3"), y, features, 1, 1, 1, dtype)
        else:
            y = nn.relu(conv_norm(("conv1", "bn1"), x, features, 3, stride, 1, dtype))
            y = conv_norm(("conv2", "bn2"), y, features, 3, 1, 1, dtype)
        if x.shape != y.shape:
            x = conv_norm(("shortcut_conv", "shortcut_bn"), x, features, 1, stride, 1, dtype)
        return nn.relu(x + y)


class Stage(nn.Module):
    """The blocks of stage `index` = 1, 2, ..."""

    spec: Backbone
    index: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the blocks in order."""
        for i in range(self.spec.blocks[self.index - 1]):
            stride = 2 if i == 0 and self.index > 1 else 1
            x = Block(self.spec, self.spec.channels(self.index), stride, self.dtype, name=f"block{i}")(x)
        return x


class Trunk(nn.Module):
    """Stem and shared stages."""

    spec: Backbone
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """Features after each shared stage."""
        large = self.spec.imagenet_stem
        size, stride = (7, 2) if large else (3, 1)
        x = nn.relu(conv_norm(("conv1", "bn1"), x, self.spec.width, size, stride, 1, self.dtype))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        features = []
        for index in range(1, len(self.spec.blocks)):
            x = Stage(self.spec, index, self.dtype, name=f"stage{index}")(x)
            features.append(x)
        return features


class Align(nn.Module):
    """Stride-2 convolutions down to the deep features' shape."""

    halvings: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies the chain."""
        for i in range(self.halvings):
            x = conv_norm((f"conv{i}", f"bn{i}"), x, 2 * x.shape[-1], 3, 2, 1, self.dtype)
            if i < self.halvings - 1 or self.halvings == 1:
                x = nn.relu(x)
        return x


class Expert(nn.Module):
    """An expert's last stage times its aligned intermediate features, pooled."""

    spec: Backbone
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, shared: list[Array]) -> Array:
        """Returns [B,F] in float32."""
        last = len(self.spec.blocks)
        deep = Stage(self.spec, last, self.dtype, name=f"stage{last}")(shared[-1])
        aligned = Align(last - self.depth, self.dtype, name="align")(shared[self.depth - 1])
        return jnp.mean((aligned * deep).astype(jnp.float32), (1, 2))


class Cosine(nn.Module):
    """30 times the cosine between features and class weights."""

    classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B,F] to [B,classes]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.classes))
        x = x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
        kernel = kernel / (jnp.linalg.norm(kernel, axis=0, keepdims=True) + 1e-12)
        return 30.0 * x @ kernel


class HeadSet(nn.Module):
    """One classifier per expert."""

    classes: int

    @nn.compact
    def __call__(self, pooled: list[Array]) -> list[Array]:
        """Returns each expert's logits."""
        return [Cosine(self.classes, name=f"expert{m}")(x) for m, x in enumerate(pooled)]


class Heads(nn.Module):
    """Both sets of classifiers, of which one is used."""

    classes: int

    @nn.compact
    def __call__(self, pooled: list[Array], heads: str) -> list[Array]:
        """Returns each expert's logits."""
        return HeadSet(self.classes, name=heads)(pooled)


class Network(nn.Module):
    """SHIKE's network in training mode."""

    spec: Backbone
    depths: tuple[int, ...]
    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, heads: str) -> list[Array]:
        """uint8 [B,H,W,3] to each expert's logits [B,C]."""
        mean, std = jnp.asarray(schema.CIFAR_MEAN), jnp.asarray(schema.CIFAR_STD)
        x = ((images / 255.0 - mean) / std).astype(self.dtype)
        shared = Trunk(self.spec, self.dtype, name="trunk")(x)
        pooled = [Expert(self.spec, d, self.dtype, name=f"expert{m}")(shared) for m, d in enumerate(self.depths)]
        return Heads(self.classes, name="heads")(pooled, heads)


def divergence(teacher: Array, student: Array) -> Array:
    """KL(teacher || student) of logits [B,C], averaged over both axes as the authors' code does."""
    log_t, log_s = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.mean(jnp.exp(log_t) * (log_t - log_s))


def representation_loss(logits: list[Array], labels: Array, alpha: float, beta: float) -> Array:
    """Cross-entropy, non-target distillation and mutual distillation (eq. 10, the authors' form)."""
    target = jax.nn.one_hot(labels, logits[0].shape[-1]) > 0
    mean = sum(logits) / len(logits)
    largest = logits[0]
    for z in logits[1:]:
        largest = jnp.maximum(largest, z)
    hardest = jnp.argmax(jnp.where(target, 0, mean), -1)
    is_hardest = jax.nn.one_hot(hardest, target.shape[-1]) > 0
    teacher = jnp.where(target, 0, jnp.where(is_hardest, mean, largest))
    loss = jnp.zeros(())
    for z in logits:
        loss += jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, labels))
        loss += alpha * divergence(teacher, jnp.where(target, -30.0, z))
    for j, teacher in enumerate(logits):
        for k, student in enumerate(logits):
            if j != k:
                loss += beta * divergence(teacher, student)
    return loss


def classifier_loss(logits: list[Array], labels: Array, counts: Array) -> Array:
    """Balanced softmax (eq. 11)."""
    prior = jnp.log(counts)
    losses = [jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z + prior, labels)) for z in logits]
    return jnp.sum(jnp.stack(losses))


class Plain:
    """Compiled when made; attributes and `run()` as of `Ours`."""

    def __init__(self, workload: Workload) -> None:
        """Sends weights and batches to the device and compiles the step."""
        stage, heads = workload.stage, workload.heads
        network = Network(workload.spec, tuple(workload.model["depths"]), workload.classes, jnp.dtype(workload.dtype))
        optimizer = optax.chain(
            optax.add_decayed_weights(stage["weight_decay"]), optax.sgd(LEARNING_RATE, stage["momentum"])
        )
        counts = jnp.asarray(workload.class_counts, jnp.float32)

        def loss_of(logits: list[Array], labels: Array) -> Array:
            if heads == "classifier":
                return classifier_loss(logits, labels, counts)
            return representation_loss(logits, labels, stage["loss"]["nt"], stage["loss"]["mu"])

        def step(params: Any, frozen: Any, batch_stats: Any, opt_state: Any, images: Array, labels: Array) -> Any:
            def objective(params: Any) -> tuple[Array, Any]:
                everything = join(params, frozen)
                logits, new = network.apply(
                    {"params": everything, "batch_stats": batch_stats}, images, heads, mutable=["batch_stats"]
                )
                return loss_of(logits, labels), new["batch_stats"]

            (loss, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), batch_stats, opt_state, loss

        params = jax.device_put(workload.variables["params"])
        self._frozen: Any = {}
        if heads == "classifier":
            params, self._frozen = {"heads": {"classifier": params["heads"]["classifier"]}}, params
        # A copy of its own: what is donated is lost.
        self._params = jax.tree.map(jnp.copy, params)
        self._batch_stats = jax.device_put(workload.variables["batch_stats"])
        self._opt_state = optimizer.init(self._params)
        self._batches = [
            (jax.device_put(workload.images[rows]), jax.device_put(workload.labels[rows])) for rows in workload.index
        ]
        began = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=(0, 2, 3)).lower(
            self._params, self._frozen, self._batch_stats, self._opt_state, *self._batches[0]
        )
        self._step = compiled.compile()
        self.compile_seconds = time.perf_counter() - began
        self.memory_bytes = data_bytes(self._step)

    def run(self) -> float:
        """Waits for the result."""
        losses = []
        for images, labels in self._batches:
            self._params, self._batch_stats, self._opt_state, loss = self._step(
                self._params, self._frozen, self._batch_stats, self._opt_state, images, labels
            )
            losses.append(loss)
        jax.block_until_ready((self._params, losses))
        return sum(map(float, losses)) / len(losses)


def join(trained: Any, frozen: Any) -> Any:
    """The frozen parameters with the trained classifiers in their place; `trained` alone when nothing is frozen."""
    if not frozen:
        return trained
    return {**frozen, "heads": {**frozen["heads"], **trained["heads"]}}
