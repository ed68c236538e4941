"""Published numbers, and the settings that they belong to: top-1 in percent unless a field says otherwise.

From the paper (CVPR 2023): tables 1 to 5. From the authors' public log: one run of CIFAR100-LT. From runs of the public
PyTorch code: the short comparison of 20 + 8 epochs. H2T's numbers are those of its authors.
"""

from __future__ import annotations

import dataclasses

# A data set is known by its classes and training images, whatever a configuration calls it.
DATASETS = {
    (100, 10_847): "CIFAR100-LT, IF 100",
    (100, 12_608): "CIFAR100-LT, IF 50",
    (100, 19_573): "CIFAR100-LT, IF 10",
    (100, 9_502): "CIFAR100-LT, IF 200",
    (10, 12_406): "CIFAR10-LT, IF 100",
    (1000, 115_846): "ImageNet-LT",
    (8142, 437_513): "iNaturalist 2018",
    (365, 62_500): "Places-LT",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """One published result."""

    source: str  # who says so
    dataset: str  # a value of `DATASETS`
    top1: float
    epochs: tuple[int, ...] = ()  # of each stage; empty where the source does not say
    backbone: str = ""  # as in config.model.backbone; empty: the data set's usual one
    method: str = "shike"  # or `h2t`, or the name of another published method (context only)
    top5: float | None = None
    many: float | None = None
    medium: float | None = None
    few: float | None = None


_IF100, _IF50, _IF200 = "CIFAR100-LT, IF 100", "CIFAR100-LT, IF 50", "CIFAR100-LT, IF 200"
_FULL = (180, 20)

REFERENCES = (
    Reference("paper, table 1", _IF100, 56.3, _FULL),
    Reference("authors' log", _IF100, 56.34, _FULL, top5=83.6),
    Reference("public PyTorch run, seed 0", _IF100, 28.44, (20, 8), many=39.9, medium=27.8, few=15.9),
    Reference("public PyTorch run, seed 1", _IF100, 28.48, (20, 8), many=37.5, medium=28.5, few=18.0),
    Reference("paper, table 1", _IF50, 59.8, _FULL),
    Reference("paper, table 2", "ImageNet-LT", 59.7, _FULL, "resnet50"),
    Reference("paper, sec. 4.3", "ImageNet-LT", 60.3, (380, 20), "resnet50"),
    Reference("paper, table 2", "ImageNet-LT", 59.6, _FULL, "resnext50"),
    Reference("paper, table 2", "iNaturalist 2018", 75.4, _FULL, "resnet50"),
    Reference("paper, table 3", "Places-LT", 41.9, (30, 20), "resnet152", many=43.6, medium=39.2, few=44.8),
    Reference("H2T, stage one alone", _IF50, 45.40, (200,), method="h2t"),
    Reference("H2T", _IF50, 52.95, (200, 10), method="h2t"),
    Reference("H2T, stage one alone", _IF100, 39.55, (200,), method="h2t"),
    Reference("H2T", _IF100, 47.80, (200, 10), method="h2t"),
    Reference("H2T, stage one alone", _IF200, 36.01, (200,), method="h2t"),
    Reference("H2T", _IF200, 43.95, (200, 10), method="h2t"),
    # The strongest methods that the paper compares with.
    Reference("paper, table 1", _IF100, 54.2, method="NCL (3 networks)"),
    Reference("paper, table 1", _IF50, 58.2, method="NCL (3 networks)"),
    Reference("paper, table 1", _IF100, 53.6, method="Weight Balancing"),
    Reference("paper, table 1", _IF50, 57.7, method="Weight Balancing"),
    Reference("paper, table 1", _IF100, 52.0, method="BCL"),
    Reference("paper, table 1", _IF50, 56.6, method="BCL"),
    Reference("paper, table 1", _IF100, 48.3, method="RIDE (3 experts)"),
    Reference("paper, table 2", "ImageNet-LT", 59.5, (), "resnet50", "NCL (3 networks)"),
    Reference("paper, table 2", "ImageNet-LT", 60.5, (), "resnext50", "NCL (3 networks)"),
    Reference("paper, table 2", "ImageNet-LT", 55.4, (), "resnet50", "RIDE (3 experts)"),
    Reference("paper, table 2", "ImageNet-LT", 56.8, (), "resnext50", "RIDE (3 experts)"),
    Reference("paper, table 2", "iNaturalist 2018", 74.9, (), "resnet50", "NCL (3 networks)"),
    Reference("paper, table 2", "iNaturalist 2018", 72.6, (), "resnet50", "RIDE (3 experts)"),
    Reference("paper, table 3", "Places-LT", 41.8, (), "resnet152", "NCL (3 networks)"),
    Reference("paper, table 3", "Places-LT", 41.2, (), "resnet152", "PaCo", many=37.5, medium=47.2, few=33.9),
)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row of table 4 (CIFAR100-LT, IF 100): which components are on."""

    name: str
    title: str
    components: tuple[bool, bool, bool, bool]  # several experts, fusion, mutual and non-target distillation
    top1: float


TABLE4_DATASET = _IF100
TABLE4 = (
    Ablation("plain", "plain network", (False, False, False, False), 50.04),
    Ablation("moe", "MoE", (True, False, False, False), 54.23),
    Ablation("moe_dkf", "MoE + DKF", (True, True, False, False), 55.26),
    Ablation("moe_dkf_mu", "MoE + DKF + mu", (True, True, True, False), 55.59),
    Ablation("moe_dkf_nt", "MoE + DKF + nt", (True, True, False, True), 55.79),
    Ablation("moe_mu_nt", "MoE + mu + nt, no DKF", (True, False, True, True), 54.82),
    Ablation("shike", "SHIKE (all)", (True, True, True, True), 56.34),
)

# Table 5 (ImageNet-LT, ResNet-50): experts by the depth of the features that they fuse; A, B, C = stage 1, 2, 3.
TABLE5_DATASET = "ImageNet-LT"
TABLE5 = {
    "A": 54.10,
    "B": 54.75,
    "C": 55.84,
    "AB": 57.39,
    "BC": 58.79,
    "AC": 58.62,
    "ABC": 59.72,
    "ABCA": 59.83,
    "ABCB": 59.90,
    "ABCC": 59.77,
}


def letters(depths: tuple[int, ...]) -> str:
    """Depths as table 5 writes them: (1, 2, 3) is ABC."""
    return "".join(chr(ord("A") + depth - 1) for depth in depths)


def depths_of(arrangement: str) -> tuple[int, ...]:
    """The other way round."""
    return tuple(ord(letter) - ord("A") + 1 for letter in arrangement)
