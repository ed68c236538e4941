"""PyTorch's tensor names and shapes, spelled out from the published architectures, and the rule that fills them."""

import zipfile

import numpy as np

BASIC = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}  # blocks per stage of two 3x3 convolutions
TORCHVISION = {  # of three convolutions: blocks per stage, groups, width of a group
    "resnet50": ((3, 4, 6, 3), 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), 32, 4),
    "resnet152": ((3, 8, 36, 3), 1, 64),
}


def _bn(name, channels):
    return {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def basic_shapes(name, num_classes):
    shapes, channels = {"conv1.weight": (64, 3, 7, 7), **_bn("bn1", 64)}, 64
    for stage, count in enumerate(BASIC[name]):
        out = 64 * 2**stage
        for i in range(count):
            block = f"layer{stage + 1}.{i}"
            shapes[f"{block}.conv1.weight"] = (out, channels, 3, 3)
            shapes[f"{block}.conv2.weight"] = (out, out, 3, 3)
            shapes |= _bn(f"{block}.bn1", out) | _bn(f"{block}.bn2", out)
            if channels != out:
                shapes[f"{block}.downsample.0.weight"] = (out, channels, 1, 1)
                shapes |= _bn(f"{block}.downsample.1", out)
            channels = out
    return shapes | {"fc.weight": (num_classes, 512), "fc.bias": (num_classes,)}


def torchvision_shapes(name, num_classes):
    if name in BASIC:
        return basic_shapes(name, num_classes)
    blocks, groups, group_width = TORCHVISION[name]
    shapes, channels = {"conv1.weight": (64, 3, 7, 7), **_bn("bn1", 64)}, 64
    for stage, count in enumerate(blocks):
        out = 256 * 2**stage
        inner = group_width * groups * 2**stage
        for i in range(count):
            block = f"layer{stage + 1}.{i}"
            shapes[f"{block}.conv1.weight"] = (inner, channels, 1, 1)
            shapes[f"{block}.conv2.weight"] = (inner, inner // groups, 3, 3)
            shapes[f"{block}.conv3.weight"] = (out, inner, 1, 1)
            shapes |= _bn(f"{block}.bn1", inner) | _bn(f"{block}.bn2", inner) | _bn(f"{block}.bn3", out)
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (out, channels, 1, 1)
                shapes |= _bn(f"{block}.downsample.1", out)
            channels = out
    return shapes | {"fc.weight": (num_classes, 2048), "fc.bias": (num_classes,)}


def authors_shapes(num_classes):
    shapes = {"conv1.weight": (16, 3, 3, 3), **_bn("bn1", 16)}
    layers = [("layer1", 16, 16), ("layer2", 16, 32), *((f"layer3s.{m}", 32, 64) for m in range(3))]
    for layer, before, channels in layers:
        for i in range(5):
            block = f"{layer}.{i}"
            shapes[f"{block}.conv1.weight"] = (channels, before if i == 0 else channels, 3, 3)
            shapes[f"{block}.conv2.weight"] = (channels, channels, 3, 3)
            shapes |= _bn(f"{block}.bn1", channels) | _bn(f"{block}.bn2", channels)
            if i == 0 and before != channels:
                shapes[f"{block}.shortcut.0.weight"] = (channels, before, 1, 1)
                shapes |= _bn(f"{block}.shortcut.1", channels)
    for m in range(3):
        for i, channels in enumerate((32, 64) if m != 1 else (64,)):
            conv = f"shallow_exps.{m}.convs.StridedConv{i}.conv"
            shapes |= {f"{conv}.0.weight": (channels, channels // 2, 3, 3), **_bn(f"{conv}.1", channels)}
        shapes |= {f"classifiers.{m}.weight": (64, num_classes), f"rt_classifiers.{m}.weight": (64, num_classes)}
    return shapes


def shapes_of(name, num_classes):
    return authors_shapes(num_classes) if name == "shike_resnet32_cifar" else torchvision_shapes(name, num_classes)


def fill(shapes, seed, dtype=np.float32):
    """Random weights, one draw per tensor in the order given (how the golden files' weights are made)."""
    rng, state = np.random.RandomState(seed), {}
    normalised = {name.rpartition(".")[0] for name in shapes if name.endswith("running_mean")}
    for name, shape in shapes.items():
        draw, (module, _, leaf) = rng.standard_normal(shape), name.rpartition(".")
        if len(shape) == 4:
            draw *= np.sqrt(2 / np.prod(shape[1:]))
        elif leaf == "running_var":
            draw = 1 + 0.1 * np.abs(draw)
        else:
            draw = 0.1 * draw + (module in normalised and leaf == "weight")
        state[name] = draw.astype(dtype)
    return state


def write_torch_file(path, state):
    """What `torch.save(state, path)` writes of float32 tensors, in its zip format, spelled out without PyTorch."""
    tensors = b""
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, array) in enumerate(state.items()):
            storage = b"((S'storage'\nctorch\nFloatStorage\nS'%d'\nS'cpu'\nI%d\ntQ" % (i, array.size)
            strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
            shape, stride = (
                b"(" + b"".join(b"I%d\n" % n for n in numbers) + b"t" for numbers in (array.shape, strides)
            )
            rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"I0\n" + shape + stride + b"I00\n(dtR"
            tensors += b"S'%s'\n" % name.encode() + rebuilt + b"s"
            archive.writestr(f"resnet/data/{i}", array.astype(np.float32).tobytes())
        archive.writestr("resnet/data.pkl", b"(d" + tensors + b".")
        archive.writestr("resnet/byteorder", "little")
    return path
