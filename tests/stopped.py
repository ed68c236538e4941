"""Stopping a run within this process after some steps, and comparing how runs ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from shike_jax.cluster.preemption import Preempted, StopRequest
from shike_jax.storage.weights import load_weights
from shike_jax.training import loop


def train_until(config: ConfigDict, workdir: Path, steps: int) -> str:
    """Trains as if SIGTERM came in the midst of the `steps`-th step of this start; returns what is said then."""
    asked = iter([False] * (steps - 1) + [True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "requested", lambda self: next(asked))
        with pytest.raises(Preempted) as stopped:
            loop.train(config, workdir)
    return str(stopped.value)


def weights(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    """The variables at the end of a stage, by path."""
    return flatten_dict(load_weights(workdir / "weights" / stage)[0], sep="/")


def assert_same_end(one: Path, other: Path, stages: tuple[str, ...]) -> None:
    """Weights and running averages after each stage are equal bit for bit."""
    for stage in stages:
        a, b = weights(one, stage), weights(other, stage)
        assert a.keys() == b.keys()
        assert [path for path in a if not np.array_equal(a[path], b[path])] == [], stage
