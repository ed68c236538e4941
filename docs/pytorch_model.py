"""The networks of shike_jax in PyTorch, for weights that `python -m shike_jax convert --reverse` wrote.

    network, facts = load("if100.safetensors")       # facts: class_names, image_size, mean, std, ...
    logits = network(images)                         # [experts, N, classes]; average over experts to predict

Needs torch and safetensors. Images are float32 [N,3,H,W]: RGB in 0..1, minus facts["mean"], divided by facts["std"].
"""

import json
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

CIFAR = {f"resnet{depth}": ((depth - 2) // 6,) * 3 for depth in (20, 32, 44, 56)}
BASIC = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
BOTTLENECK = {"resnet50": (3, 4, 6, 3), "resnext50_32x4d": (3, 4, 6, 3), "resnet152": (3, 8, 36, 3)}


def conv(inputs, outputs, size=3, stride=1, groups=1):
    """A convolution with symmetric padding and without bias."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Block(nn.Module):
    """A basic block, or with `group_width` a bottleneck; `zero_padding` is the shortcut without parameters."""

    def __init__(self, inputs, outputs, stride, group_width=0, groups=1, zero_padding=False):
        super().__init__()
        if group_width:
            inner = outputs // 4 * group_width * groups // 64
            sizes = [(inputs, inner, 1), (inner, inner, 3, stride, groups), (inner, outputs, 1)]
        else:
            sizes = [(inputs, outputs, 3, stride), (outputs, outputs)]
        self.depth, self.stride = len(sizes), stride
        for i, size in enumerate(sizes, 1):
            self.add_module(f"conv{i}", conv(*size))
            self.add_module(f"bn{i}", nn.BatchNorm2d(size[1]))
        changes = stride != 1 or inputs != outputs
        self.padding = (outputs - inputs) if changes and zero_padding and not group_width else 0
        if changes and not self.padding:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        if self.padding:
            before = self.padding // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before))
        elif hasattr(self, "shortcut"):
            x = self.shortcut(x)
        return F.relu(x + y)


class Align(nn.Module):
    """Stride-2 convolutions that bring a shared stage's features to the shape of the last stage's."""

    def __init__(self, channels, halvings, last_relu):
        super().__init__()
        self.convs = nn.ModuleDict()
        for i in range(halvings):
            inputs = channels * 2**i
            layer = nn.Module()
            layer.conv = nn.Sequential(conv(inputs, 2 * inputs, 3, 2), nn.BatchNorm2d(2 * inputs))
            self.convs[f"StridedConv{i}"] = layer
        self.last_relu = last_relu or halvings == 1

    def forward(self, x):
        for i, layer in enumerate(self.convs.values(), 1):
            x = layer.conv(x)
            x = F.relu(x) if i < len(self.convs) or self.last_relu else x
        return x


class Cosine(nn.Module):
    """`scale` times the cosine between features and a class's weights, [features, classes] as the authors have them."""

    def __init__(self, features, classes, scale):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.empty(features, classes)), scale

    def forward(self, x):
        return self.scale * F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)


class Factors(nn.Module):
    """One factor for each class, on the logits of the first set of classifiers."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(classes))

    def forward(self, logits, pooled):
        return logits * self.weight


class Calibration(nn.Module):
    """DisAlign: logits of the first set of classifiers with factors and shifts, as far as the features ask for them."""

    def __init__(self, classes, features):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(classes)), nn.Parameter(torch.zeros(classes))
        self.confidence = nn.Linear(features, 1)

    def forward(self, logits, pooled):
        return logits + torch.sigmoid(self.confidence(pooled)) * (self.weight * logits + self.bias)


class Network(nn.Module):
    """Shared stages, a last stage for each expert, fusion, and two sets of classifiers; see `model` in config.json."""

    def __init__(self, model, classes):
        super().__init__()
        name, depths = model["backbone"], model["depths"]
        bottleneck, wide = name in BOTTLENECK, name not in CIFAR
        blocks = tuple(model["blocks"]) or {**CIFAR, **BASIC, **BOTTLENECK}[name]
        width, last = model["width"] or (64 if wide else 16), len(blocks)
        groups, group_width = (32, 4) if name == "resnext50_32x4d" else (1, 64 * bottleneck)
        channels = [width, *(width * 2**s * (4 if bottleneck else 1) for s in range(last))]

        def stage(s):
            inputs, found = channels[s - 1], []
            for i in range(blocks[s - 1]):
                stride, zeros = 2 if i == 0 and s > 1 else 1, model["shortcut"] == "A"
                found.append(Block(inputs, channels[s], stride, group_width, groups, zeros))
                inputs = channels[s]
            return nn.Sequential(*found)

        self.pools, self.last = wide, last
        self.fusion, self.depths = model["fusion"], depths
        self.conv1 = conv(3, width, 7, 2) if wide else conv(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        for s in range(1, last):
            self.add_module(f"layer{s}", stage(s))
        self.add_module(f"layer{last}s", nn.ModuleList(stage(last) for _ in depths))
        if self.fusion:
            aligns = (Align(channels[depth], last - depth, model["align_last_relu"]) for depth in depths)
            self.shallow_exps = nn.ModuleList(aligns)

        def classifier():
            if model["head"] == "cosine":
                return Cosine(channels[-1], classes, model["head_scale"])
            return nn.Linear(channels[-1], classes)

        self.classifiers = nn.ModuleList(classifier() for _ in depths)
        second = model.get("second_head", "fresh")
        self.corrects = second != "fresh"  # the first set's logits
        corrections = {"scaled": lambda: Factors(classes), "aligned": lambda: Calibration(classes, channels[-1])}
        self.rt_classifiers = nn.ModuleList(corrections.get(second, classifier)() for _ in depths)

    def forward(self, images, heads="classifier"):
        """Images [N,3,H,W] to logits [experts,N,classes] of one set of classifiers (`representation`, `classifier`)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1) if self.pools else x
        shared = []
        for s in range(1, self.last):
            x = getattr(self, f"layer{s}")(x)
            shared.append(x)
        logits = []
        for m, deep in enumerate(getattr(self, f"layer{self.last}s")):
            x = deep(shared[-1])
            if self.fusion:
                x = x * self.shallow_exps[m](shared[self.depths[m] - 1])
            second = heads == "classifier"
            pooled = x.mean((2, 3))
            found = (self.rt_classifiers if second and not self.corrects else self.classifiers)[m](pooled)
            logits.append(self.rt_classifiers[m](found, pooled) if second and self.corrects else found)
        return torch.stack(logits)


def load(path):
    """The network in evaluation mode, and the facts about it, from a file of `convert --reverse`."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["shike_jax"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = Network(facts["model"], facts["num_classes"])
    missing, extra = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or extra:
        raise ValueError(f"{path}: missing {missing}, unexpected {extra}")
    return network.eval(), facts


if __name__ == "__main__":
    network, facts = load(sys.argv[1])
    size = facts["image_size"]
    print(network(torch.zeros(1, 3, size, size)).shape, "logits of", facts["num_classes"], "classes")
