"""Splits: which images train and which are counted, with class counts, divisions and a hash. NumPy only.

`Split` is the single owner of the class counts: losses, samplers and metrics receive them from here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shike_jax.errors import UserError

MANY_ABOVE, FEW_BELOW = 100, 20  # training images of a class: many > 100, medium 20..100, few < 20
H2T_RANGES = {"many": (0, 36), "medium": (36, 71), "few": (71, 100)}  # H2T's head, medium and tail classes


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a split, in the source's own order."""

    members: np.ndarray  # [N] int64 ids, or [N] relative paths (str, dtype object)
    labels: np.ndarray  # [N] int32 class indices

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: np.ndarray) -> Part:
        return Part(self.members[positions], self.labels[positions])


@dataclass(frozen=True, eq=False)
class Split:
    """A long-tailed split: parts `train`, `test` and maybe `val`, and the rule that made them.

    UserError for labels out of range, a class without a training image, two classes of one name, H2T's divisions with
    other than 100 classes.
    """

    name: str
    rule: str
    seed: int
    class_names: tuple[str, ...]
    parts: dict[str, Part]
    division_rule: str = "shots"
    trained: tuple[int, ...] = ()  # images of each class [C], where not the part `train` trained: a checkpoint's

    def __post_init__(self) -> None:
        if len(set(self.class_names)) < len(self.class_names):
            name = next(name for i, name in enumerate(self.class_names) if name in self.class_names[:i])
            raise UserError(f"split {self.name}: two classes are called {name!r}; expected a name for each")
        for name, part in self.parts.items():
            if len(part.members) != len(part.labels):
                sizes = f"{len(part.members)} images but {len(part.labels)} labels"
                raise UserError(f"split {self.name}, part {name}: {sizes}")
            if len(part) and not (part.labels.min() >= 0 and part.labels.max() < self.num_classes):
                raise UserError(
                    f"split {self.name}, part {name}: labels {part.labels.min()}..{part.labels.max()}, "
                    f"expected 0..{self.num_classes - 1}"
                )
        empty = np.flatnonzero(self.class_counts == 0)
        if len(empty):
            names = ", ".join(f"{c} ({self.class_names[c]})" for c in empty[:3]) + ("..." if len(empty) > 3 else "")
            raise UserError(f"split {self.name}: {len(empty)} classes have no training image: {names}")
        if self.division_rule == "h2t" and self.num_classes != 100:
            raise UserError(f"data.divisions='h2t' is defined for 100 classes; {self.name} has {self.num_classes}")

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @functools.cached_property
    def class_counts(self) -> np.ndarray:
        """Training images of each class: int64 [C]."""
        if self.trained:
            return np.array(self.trained, np.int64)
        return np.bincount(self.parts["train"].labels, minlength=self.num_classes).astype(np.int64)

    @functools.cached_property
    def divisions(self) -> dict[str, np.ndarray]:
        """Class indices of `many`, `medium` and `few`, by training images or by H2T's fixed ranges."""
        if self.division_rule == "h2t":
            return {name: np.arange(*bounds) for name, bounds in H2T_RANGES.items()}
        many, few = self.class_counts > MANY_ABOVE, self.class_counts < FEW_BELOW
        return {name: np.flatnonzero(mask) for name, mask in (("many", many), ("medium", ~many & ~few), ("few", few))}

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of rule, seed, class names, members and labels: equal exactly when the split is the same."""
        digest = hashlib.sha256()
        for text in (self.rule, str(self.seed), *self.class_names):
            digest.update(to_bytes(text) + b"\0")
        for name in sorted(self.parts):
            part = self.parts[name]
            digest.update(f"part {name} {len(part)}\0".encode())
            if part.members.dtype.kind in "iu":
                digest.update(part.members.astype("<i8").tobytes())
            else:
                digest.update(to_bytes("\0".join(map(str, part.members))))
            digest.update(part.labels.astype("<i4").tobytes())
        return digest.hexdigest()

    def reordered(self, places: Sequence[int], trained: Sequence[int]) -> Split:
        """The split with its classes in another order: class c is what `places[c]` was; `trained` is in that order."""
        moved = np.argsort(places).astype(np.int32)
        parts = {name: Part(part.members, moved[part.labels]) for name, part in self.parts.items()}
        names = tuple(self.class_names[place] for place in places)
        counts = trained or [self.trained[place] for place in places if self.trained]
        return dataclasses.replace(self, class_names=names, parts=parts, trained=tuple(counts))

    def summary(self) -> dict[str, Any]:
        """What results.json keeps of the split, as plain numbers, strings and lists."""
        return {
            "name": self.name,
            "rule": self.rule,
            "sizes": {name: len(part) for name, part in self.parts.items()},
            "hash": self.hash,
            "class_names": list(self.class_names),
            "class_counts": self.class_counts.tolist(),
            "divisions": {name: classes.tolist() for name, classes in self.divisions.items()},
            "division_rule": self.division_rule,
        }


def to_bytes(text: str) -> bytes:
    """UTF-8; names of files and folders need not be."""
    return text.encode("utf-8", "surrogateescape")


def longtail_counts(largest: int, num_classes: int, imbalance_factor: float, profile: str) -> np.ndarray:
    """How many training images each class keeps: int64 [C], non-increasing from the `largest`, that of class 0.

    The profile `exponential` is floor(largest * (1/IF)^(c/(C-1))), the authors' rule; with `step` the first half of the
    classes keep `largest` and the rest `largest / IF`. UserError where a class would keep nothing.
    """
    if profile == "step":
        exponents = [float(c >= num_classes // 2) for c in range(num_classes)]
    else:
        exponents = [c / max(num_classes - 1, 1) for c in range(num_classes)]
    # The small term undoes rounding: 49 * (1/49) is 0.99... in floating point, and must stay 1.
    counts = np.array([math.floor(largest * (1.0 / imbalance_factor) ** e + 1e-9) for e in exponents], np.int64)
    if counts[-1] < 1:
        raise UserError(
            f"config.data.imbalance_factor={imbalance_factor:g}: the rarest class would keep no image; "
            f"expected at most {largest} (images of the largest class)"
        )
    return counts


def feasible_longtail_counts(available: np.ndarray, imbalance_factor: float, profile: str) -> np.ndarray:
    """Returns counts int64 [C] of the requested profile for classes of unequal size, the largest that all can meet.

    Classes are ranked by their available images (ties by class index), so frequent classes stay frequent.
    """
    order = np.argsort(-available, kind="stable")
    longtail_counts(int(available.max()), len(available), imbalance_factor, profile)  # says why it is impossible at all
    for largest in range(int(available.max()), 0, -1):
        if largest < imbalance_factor:
            raise UserError(
                f"config.data.imbalance_factor={imbalance_factor:g}: no {profile} profile fits classes of "
                f"{available.max()} to {available.min()} images; expected a smaller factor"
            )
        curve = longtail_counts(largest, len(available), imbalance_factor, profile)
        if np.all(curve <= available[order]):
            break
    counts = np.empty_like(curve)
    counts[order] = curve
    return counts


def longtailed(
    labels: np.ndarray,
    num_classes: int,
    data: Any,
    rule: str,
    ranked: bool = True,
    natural: str = ", natural counts",
    notes: list[str] | None = None,
) -> tuple[np.ndarray, str]:
    """The long-tailed subset that `config.data` asks for, and the rule of the split with it named.

    Args:
      labels: [N] classes of the training images, in the data set's own order.
      data: `config.data`: `profile`, `imbalance_factor`, `subset`, `subset_seed`.
      rule: what is said of the split so far.
      ranked: classes keep their rank by number of images, as befits classes of unequal size; False takes the classes
        in the order of their indices and as many of the first as the smallest class has (CIFAR, digits).
      natural: what is added to the rule when every image stays.
      notes: gets a remark on how many images stay when a profile leaves some out.

    Returns:
      The positions kept, ascending, int64; and the rule. UserError where the factor leaves a class without images.
    """
    if data.profile == "natural":
        return np.arange(len(labels)), f"{rule}{natural}"
    available = np.bincount(labels, minlength=num_classes)
    if ranked:
        counts = feasible_longtail_counts(available, data.imbalance_factor, data.profile)
    else:
        counts = longtail_counts(int(available.min()), num_classes, data.imbalance_factor, data.profile)
    kept = longtail_subset(labels, counts, data.subset, data.subset_seed)
    if notes is not None and len(kept) < len(labels):
        notes.append(
            f"profile {data.profile}, imbalance factor {data.imbalance_factor:g}: {len(kept):,} of {len(labels):,} "
            "training images stay (config.data.profile='natural' keeps all)"
        )
    return kept, f"{rule}{profile_rule(data)}"


def longtailed_split(
    name: str, rule: str, class_names: tuple[str, ...], parts: dict[str, Part], data: Any, **how: Any
) -> tuple[Split, np.ndarray]:
    """The split of `parts` with the training images that `longtailed` keeps (it takes `how`), and their positions."""
    kept, rule = longtailed(parts["train"].labels, len(class_names), data, rule, **how)
    parts = {**parts, "train": parts["train"][kept]}
    return Split(name, rule, data.subset_seed, class_names, parts, data.divisions), kept


def profile_rule(data: Any) -> str:
    """How the rule of a split ends that `config.data` made long-tailed."""
    return f", {data.profile} imbalance {data.imbalance_factor:g}, {data.subset}"


def longtail_subset(labels: np.ndarray, counts: np.ndarray, subset: str, seed: int) -> np.ndarray:
    """The positions kept, ascending int64 [sum(counts)], of images with labels [N]; `counts` [C] are those to keep.

    `first` keeps the first ones of each class in the data set's own order (SHIKE); `random` a choice by `seed`,
    independent per class; `h2t` shuffles class after class with one NumPy generator of seed 0 and keeps the first ones
    (H2T, LDAM-DRW). UserError where a class holds fewer images than it should keep.
    """
    h2t = np.random.RandomState(0)
    kept = []
    for c, count in enumerate(counts):
        positions = np.flatnonzero(labels == c)
        if len(positions) < count:
            raise UserError(f"class {c} has {len(positions)} images; the requested profile needs {count}")
        if subset == "random":
            positions = np.random.default_rng([seed, c]).permutation(positions)
        elif subset == "h2t":
            h2t.shuffle(positions)
        kept.append(positions[:count])
    return np.sort(np.concatenate(kept)).astype(np.int64)
