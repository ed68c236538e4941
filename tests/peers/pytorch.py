"""The same step in plain PyTorch (an optional dependency): eager or compiled, channels-last, AMP in bfloat16.

Modules carry the names of this package's network, so that its weights go over by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import flatten_dict

from shike_jax import config as schema
from shike_jax.benchmark.workload import LEARNING_RATE, Workload
from shike_jax.errors import UserError
from shike_jax.models import Backbone

if TYPE_CHECKING:
    from shike_jax.benchmark.parts import Layer, Parts

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def require_torch() -> Any:
    """The torch module.

    Raises:
      UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"--against=torch: PyTorch cannot be imported ({error}); pip install torch") from None
    return torch


def build_network(spec: Backbone, depths: tuple[int, ...], classes: int) -> Any:
    """SHIKE's network as an `nn.Module`: (images [B,3,H,W], "representation" | "classifier") to a list of logits."""
    torch = require_torch()
    nn, functional = torch.nn, torch.nn.functional
    Module: Any = nn.Module  # a name that a type checker takes for a base class

    def conv(inputs: int, features: int, size: int = 3, stride: int = 1, groups: int = 1) -> Any:
        return nn.Conv2d(inputs, features, size, stride, size // 2, groups=groups, bias=False)

    class Block(Module):
        """Basic block or bottleneck."""

        def __init__(self, inputs: int, features: int, stride: int) -> None:
            super().__init__()
            if spec.bottleneck:
                inner = features // 4 * spec.group_width * spec.groups // 64
                self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
                self.conv2, self.bn2 = conv(inner, inner, 3, stride, spec.groups), nn.BatchNorm2d(inner)
                self.conv3, self.bn3 = conv(inner, features, 1), nn.BatchNorm2d(features)
            else:
                self.conv1, self.bn1 = conv(inputs, features, 3, stride), nn.BatchNorm2d(features)
                self.conv2, self.bn2 = conv(features, features), nn.BatchNorm2d(features)
            self.changes = stride != 1 or inputs != features
            if self.changes:
                self.shortcut_conv = conv(inputs, features, 1, stride)
                self.shortcut_bn = nn.BatchNorm2d(features)

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            if spec.bottleneck:
                y = self.bn3(self.conv3(functional.relu(y)))
            return functional.relu(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.changes else x))

    def stage(index: int) -> Any:
        features = spec.channels(index)
        inputs = spec.channels(index - 1) if index > 1 else spec.width
        blocks = {"block0": Block(inputs, features, 2 if index > 1 else 1)}
        blocks |= {f"block{i}": Block(features, features, 1) for i in range(1, spec.blocks[index - 1])}
        module = nn.Sequential()
        for name, block in blocks.items():
            module.add_module(name, block)
        return module

    last = len(spec.blocks)

    class Trunk(Module):
        """Stem and shared stages."""

        def __init__(self) -> None:
            super().__init__()
            size, stride = (7, 2) if spec.imagenet_stem else (3, 1)
            self.conv1, self.bn1 = conv(3, spec.width, size, stride), nn.BatchNorm2d(spec.width)
            for index in range(1, last):
                self.add_module(f"stage{index}", stage(index))

        def forward(self, x: Any) -> list[Any]:
            x = functional.relu(self.bn1(self.conv1(x)))
            if spec.imagenet_stem:
                x = functional.max_pool2d(x, 3, 2, 1)
            features = []
            for index in range(1, last):
                x = getattr(self, f"stage{index}")(x)
                features.append(x)
            return features

    class Align(Module):
        """Stride-2 convolutions down to the deep features' shape."""

        def __init__(self, inputs: int, halvings: int) -> None:
            super().__init__()
            self.halvings = halvings
            for i in range(halvings):
                self.add_module(f"conv{i}", conv(inputs << i, inputs << (i + 1), 3, 2))
                self.add_module(f"bn{i}", nn.BatchNorm2d(inputs << (i + 1)))

        def forward(self, x: Any) -> Any:
            for i in range(self.halvings):
                x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
                if i < self.halvings - 1 or self.halvings == 1:
                    x = functional.relu(x)
            return x

    class Expert(Module):
        """An expert's last stage times its aligned intermediate features, pooled."""

        def __init__(self, depth: int) -> None:
            super().__init__()
            self.depth = depth
            self.add_module(f"stage{last}", stage(last))
            self.align = Align(spec.channels(depth), last - depth)

        def forward(self, shared: list[Any]) -> Any:
            deep = getattr(self, f"stage{last}")(shared[-1])
            return (self.align(shared[self.depth - 1]) * deep).float().mean((2, 3))

    class Cosine(Module):
        """30 times the cosine between features and class weights."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(spec.channels(last), classes))

        def forward(self, x: Any) -> Any:
            with torch.autocast(x.device.type, enabled=False):
                return 30.0 * functional.normalize(x) @ functional.normalize(self.weight, dim=0)

    class Network(Module):
        """The whole network."""

        def __init__(self) -> None:
            super().__init__()
            self.trunk = Trunk()
            for m, depth in enumerate(depths):
                self.add_module(f"expert{m}", Expert(depth))
            sets = {
                s: nn.ModuleDict({f"expert{m}": Cosine() for m in range(len(depths))})
                for s in ("representation", "classifier")
            }
            self.heads = nn.ModuleDict(sets)

        def forward(self, images: Any, heads: str) -> list[Any]:
            shared = self.trunk(images)
            return [self.heads[heads][f"expert{m}"](getattr(self, f"expert{m}")(shared)) for m in range(len(depths))]

    return Network()


def load(network: Any, variables: dict[str, Any]) -> None:
    """Copies {`params`, `batch_stats`} of this package's network over, by name; every one must find its place."""
    torch = require_torch()
    state = {}
    for kind in ("params", "batch_stats"):
        for path, value in flatten_dict(variables[kind]).items():
            value = np.asarray(value)
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
            state[".".join((*path[:-1], LEAVES[path[-1]]))] = torch.from_numpy(np.array(value))
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise AssertionError(f"weights do not fit: missing {missing}, unexpected {unexpected}")


def representation_loss(logits: list[Any], labels: Any, alpha: float, beta: float) -> Any:
    """Cross-entropy, non-target distillation and mutual distillation (eq. 10, the authors' form)."""
    torch = require_torch()
    functional = torch.nn.functional

    def divergence(teacher: Any, student: Any) -> Any:
        log_t, log_s = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
        return (log_t.exp() * (log_t - log_s)).mean()

    stacked = torch.stack(logits)
    mean, largest = stacked.mean(0), stacked.max(0).values
    target = functional.one_hot(labels, mean.shape[-1]).bool()
    hardest = functional.one_hot(mean.masked_fill(target, 0).argmax(-1), mean.shape[-1]).bool()
    grand = torch.where(hardest, mean, largest).masked_fill(target, 0)
    loss = sum(functional.cross_entropy(z, labels) for z in logits)
    loss = loss + alpha * sum(divergence(grand, z.masked_fill(target, -30.0)) for z in logits)
    pairs = [(a, b) for j, a in enumerate(logits) for k, b in enumerate(logits) if j != k]
    return loss + beta * sum(divergence(a, b) for a, b in pairs)


def layer_parts(layer: Layer) -> Parts:
    """The same parts as `parts.our_parts`, in float32, channels-last."""
    torch = require_torch()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    where = "cuda" if torch.cuda.is_available() else "cpu"

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, device=where).contiguous(memory_format=torch.channels_last)

    def timed(function: Callable[[], Any]) -> Callable[[int], None]:
        def run(_: int) -> None:
            function()
            if where == "cuda":
                torch.cuda.synchronize()

        return run

    batch, height, width, channels = layer.inputs
    x = draw(batch, channels, height, width)
    if not layer.kernel:
        norm = torch.nn.BatchNorm2d(channels).to(where)
        grad = draw(*x.shape)

        def both() -> Any:
            return torch.autograd.grad(torch.relu(norm(x)), [x, norm.weight, norm.bias], grad)

        x.requires_grad_()
        return {"forward and backward": timed(both)}
    size, _, inputs, features = layer.kernel
    kernel, stride, pad = draw(features, inputs, size, size), [layer.stride] * 2, [size // 2] * 2
    grad = torch.nn.functional.conv2d(x, kernel, None, stride, pad, groups=layer.groups)

    def backward(*wanted: bool) -> Callable[[], Any]:
        arguments = (grad, x, kernel, None, stride, pad, [1, 1], False, [0, 0], layer.groups, [*wanted, False])
        return lambda: torch.ops.aten.convolution_backward(*arguments)

    return {
        "forward": timed(lambda: torch.nn.functional.conv2d(x, kernel, None, stride, pad, groups=layer.groups)),
        "to the input": timed(backward(True, False)),
        "to the weights": timed(backward(False, True)),
    }


class Torch:
    """Compiled, where asked, by its first step; attributes and `run()` as of `ours.Ours`."""

    def __init__(self, workload: Workload, compile_mode: str | None = None) -> None:
        """Args: compile_mode: of `torch.compile`; None: eager."""
        torch = require_torch()
        self._torch = torch
        self._where = where = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.backends.cudnn.benchmark = True
        stage, heads = workload.stage, workload.heads
        network = build_network(workload.spec, tuple(workload.model["depths"]), workload.classes)
        load(network, workload.variables)
        network = network.to(where, memory_format=torch.channels_last).train()
        if heads == "classifier":
            network.requires_grad_(False)
            network.heads["classifier"].requires_grad_(True)
        trained = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            trained, LEARNING_RATE, momentum=stage["momentum"], weight_decay=stage["weight_decay"]
        )
        counts = torch.from_numpy(workload.class_counts).float().to(where)
        mean, std = (torch.tensor(v, device=where)[:, None, None] for v in (schema.CIFAR_MEAN, schema.CIFAR_STD))
        half = workload.dtype == "bfloat16"

        def loss_of(images: Any, labels: Any) -> Any:
            x = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(where, torch.bfloat16, enabled=half):
                logits = network(x, heads)
            if heads == "classifier":
                functional = torch.nn.functional
                return sum(functional.cross_entropy(z + counts.log(), labels) for z in logits)
            return representation_loss(logits, labels, stage["loss"]["nt"], stage["loss"]["mu"])

        self._loss = torch.compile(loss_of, mode=compile_mode) if compile_mode else loss_of
        self._batches = [
            (
                torch.from_numpy(workload.images[rows]).to(where).permute(0, 3, 1, 2),
                torch.from_numpy(workload.labels[rows]).long().to(where),
            )
            for rows in workload.index
        ]
        self.compile_seconds = 0.0
        self.memory_bytes: int | None = None

    def run(self) -> float:
        """Waits for the result; the first call compiles."""
        first = self.memory_bytes is None and self._where == "cuda"
        if first:
            self._torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        losses = []
        for images, labels in self._batches:
            self._optimizer.zero_grad()
            loss = self._loss(images, labels)
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
        if self._where == "cuda":
            self._torch.cuda.synchronize()
        mean = float(self._torch.stack(losses).mean())
        self.compile_seconds = self.compile_seconds or time.perf_counter() - began
        if first:
            self.memory_bytes = self._torch.cuda.max_memory_allocated()
        return mean
