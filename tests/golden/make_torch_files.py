"""Writes the small PyTorch files beside it (PyTorch 2.13): `python make_torch_files.py`.

All values are ramps, so that the tests can derive what must be read without PyTorch.
"""

import argparse
import collections
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(int(np.prod(shape))).to(dtype).reshape(shape)


def wrapped_network() -> dict[str, torch.Tensor]:
    """A real module's state dict: OrderedDict with metadata, parameters, BN buffers, `module.` prefixes."""
    layers = [("conv", torch.nn.Conv2d(2, 3, (3, 2), bias=False)), ("bn", torch.nn.BatchNorm2d(3))]
    network = torch.nn.DataParallel(torch.nn.Sequential(collections.OrderedDict(layers)))
    with torch.no_grad():
        network.module.conv.weight.copy_(ramp(3, 2, 3, 2))
        network.module.bn.running_var.copy_(ramp(3) + 0.5)
    return network.state_dict()


def unusual_tensors() -> dict[str, torch.Tensor]:
    base = ramp(5, 6)
    return {
        "base": base,
        "slice": base[1:4, ::2],  # shares the storage of base
        "transposed": ramp(3, 4).t(),
        "channels_last": ramp(1, 2, 2, 3).contiguous(memory_format=torch.channels_last),
        "expanded": torch.tensor([7.0]).expand(2, 3),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "parameter": torch.nn.Parameter(ramp(4)),
        "half": ramp(3, dtype=torch.float16) / 4,
        "bfloat16": ramp(3, dtype=torch.bfloat16) / 4,
        "int64": ramp(3, dtype=torch.int64) - 1,
        "bool": torch.tensor([True, False, True]),
        "uint16": ramp(3, dtype=torch.int32).to(torch.uint16),
        "numpy": np.arange(6.0).reshape(2, 3).T,
    }


def trainer_file() -> dict[str, object]:
    """What the usual ImageNet-style trainer saves."""
    return {
        "epoch": 3,
        "arch": "toy",
        "best_acc1": torch.tensor(56.34),
        "numpy_acc": np.float64(56.34),
        "history": [1, 2.5, None, (True, "x"), {1, 2}],
        "milestones": collections.Counter([160, 180]),
        "device": torch.device("cpu"),
        "args": argparse.Namespace(lr=0.05, data="cifar100"),
        "state_dict": wrapped_network(),
        "optimizer": {"state": {0: {"momentum_buffer": ramp(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }


if __name__ == "__main__":
    for name, content in {"trainer": trainer_file(), "unusual": unusual_tensors()}.items():
        torch.save(content, HERE / f"torch_{name}.pth")
        torch.save(content, HERE / f"torch_{name}_older.pth.tar", _use_new_zipfile_serialization=False)
