"""Warm start: a SHIKE network that begins from a plain backbone's weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shike_jax.common import class_names
from shike_jax.errors import UserError

HEADS = "params/heads/"  # where the classifiers lie


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Which paths of the network were loaded and which stay fresh, and which of the source were left out."""

    loaded: list[str]
    left_out: list[str]
    fresh: list[str]
    classifiers: str = ""  # how the classes of both were matched; empty where the source has no classifier to take

    def summary(self) -> str:
        """Lines: how many arrays of which parts (`expert0/align`, ...), and what became of the classifiers."""
        lines = []
        for what, paths in (("loaded", self.loaded), ("left out", self.left_out), ("fresh", self.fresh)):
            parts = sorted({"/".join(path.split("/")[1:3]) for path in paths})
            lines.append(f"{what}: {len(paths)} arrays ({', '.join(parts) or 'none'})")
        return "\n".join([*lines, f"classifiers: {self.classifiers}"] if self.classifiers else lines)


def warm_start(
    source: Mapping[str, Any],
    fresh: Mapping[str, Any],
    source_classes: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[dict[str, Any], WarmStart]:
    """Starts a network from saved weights: of the same network, or of a plain backbone (sec. 4, Places-LT).

    From the same network everything is taken over. Its classifiers follow the names of their classes; those of other
    classes stay fresh. A source without names is matched by the numbers of its classes. From a plain backbone stem and
    shared stages are taken over, its last stage goes into every expert; alignment and classifiers stay fresh.

    `source` are the variables to start from, `fresh` those of the network that is about to train. Their classes are
    named in the order of the outputs; None: not known. `UserError` for the variables of another network.
    """
    have, want = flatten_dict(source, sep="/"), flatten_dict(fresh, sep="/")
    body, said = {path for path in want if not path.startswith(HEADS)}, ""
    if not body <= have.keys():
        stages = (path for path in want if "/trunk/" in path or "/stage" in path)
        origins = {path: re.sub(r"/expert\d+/stage", "/expert0/stage", path) for path in stages}
    else:
        said = "taken over by the numbers of their classes: the source does not name them"
        if source_classes and classes:
            matching = class_names.match(source_classes, classes)
            said = "taken over by the names of their classes"
            if matching.places:
                places = np.array(matching.places)  # along the last axis of every array of a classifier
                have = {p: np.asarray(a)[..., places] if p.startswith(HEADS) else a for p, a in have.items()}
            else:
                said = f"fresh, as the source has other classes ({matching.differences()})"
                have = {path: array for path, array in have.items() if not path.startswith(HEADS)}
        origins = {path: path for path in want if path in have}
    fits = {}
    for path, origin in origins.items():
        if origin not in have:
            raise UserError(f"warm start: the source has no {origin}; it is not the same backbone")
        if have[origin].shape == want[path].shape:
            fits[path] = origin
        elif path in body:
            raise UserError(f"warm start: {origin} has shape {have[origin].shape}, expected {want[path].shape}")
    left_out = sorted(flatten_dict(source, sep="/").keys() - set(fits.values()))
    classifiers = said if said.startswith("fresh") or fits.keys() > body else ""
    report = WarmStart(sorted(fits), left_out, sorted(want.keys() - fits.keys()), classifiers)
    merged = {path: have[fits[path]] if path in fits else leaf for path, leaf in want.items()}
    return unflatten_dict(merged, sep="/"), report
