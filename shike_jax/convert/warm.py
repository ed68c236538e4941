"""Warm start: a SHIKE network that begins from a plain backbone's weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from shike_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Which paths of the network were loaded and which stay fresh, and which of the source were left out."""

    loaded: list[str]
    left_out: list[str]
    fresh: list[str]

    def summary(self) -> str:
        """Three lines: how many arrays of which parts."""
        return "\n".join(
            f"{what}: {len(paths)} arrays ({', '.join(_parts(paths)) or 'none'})"
            for what, paths in (("loaded", self.loaded), ("left out", self.left_out), ("fresh", self.fresh))
        )


def _parts(paths: list[str]) -> list[str]:
    """The two leading components below the collection, once each: `expert0/align`, `trunk/stage1`."""
    return sorted({"/".join(path.split("/")[1:3]) for path in paths})


def torchvision_to_shike(backbone: Mapping[str, Any], fresh: Mapping[str, Any]) -> tuple[dict[str, Any], WarmStart]:
    """Starts a SHIKE network from a plain backbone (sec. 4, Places-LT).

    Stem and shared stages are taken over, the last stage is copied into every expert, the backbone's classifier is left
    out; alignment and classifiers stay as in `fresh`.

    Args:
      backbone: variables {`params`, `batch_stats`} of the plain network, as `convert` writes them.
      fresh: initialised variables of the SHIKE network of the same backbone.

    Returns:
      The variables, with the structure of `fresh`, and what became of every path.

    Raises:
      UserError: the backbone's shapes are those of another network, or a shared array is missing from it.
    """
    source, target = flatten_dict(backbone, sep="/"), flatten_dict(fresh, sep="/")
    origins = {path: re.sub(r"/expert\d+/stage", "/expert0/stage", path) for path in target}
    loaded = {path: origin for path, origin in origins.items() if "/trunk/" in path or "/stage" in path}
    for path, origin in loaded.items():
        if origin not in source:
            raise UserError(f"warm start: the source has no {origin}; it is not the same backbone")
        if source[origin].shape != target[path].shape:
            raise UserError(
                f"warm start: {origin} has shape {tuple(source[origin].shape)}, expected {tuple(target[path].shape)}"
            )
    merged = {path: source[loaded[path]] if path in loaded else leaf for path, leaf in target.items()}
    used = set(loaded.values())
    report = WarmStart(
        loaded=list(loaded),
        left_out=[path for path in source if path not in used],
        fresh=[path for path in target if path not in loaded],
    )
    return unflatten_dict(merged, sep="/"), report


def warm_start(source: Mapping[str, Any], fresh: Mapping[str, Any]) -> tuple[dict[str, Any], WarmStart]:
    """Starts a network from saved weights: of the same network, or of a plain backbone.

    From the same network everything is taken over; a classifier set for another number of classes stays fresh.

    Args:
      source: variables {`params`, `batch_stats`} to start from.
      fresh: initialised variables of the network that is about to train.

    Returns:
      The variables, with the structure of `fresh`, and what became of every path.

    Raises:
      UserError: the source is another network.
    """
    have, want = flatten_dict(source, sep="/"), flatten_dict(fresh, sep="/")
    body = {path for path in want if not path.startswith("params/heads/")}
    if not body <= have.keys():
        return torchvision_to_shike(source, fresh)
    fits = {path for path in want if path in have and have[path].shape == want[path].shape}
    if wrong := sorted(body - fits):
        path = wrong[0]
        raise UserError(f"warm start: {path} has shape {have[path].shape}, expected {want[path].shape}")
    report = WarmStart(sorted(fits), sorted(have.keys() - fits), sorted(want.keys() - fits))
    return unflatten_dict({path: have[path] if path in fits else leaf for path, leaf in want.items()}, sep="/"), report
