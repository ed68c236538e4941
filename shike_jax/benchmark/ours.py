"""This package's own training step as a side of the benchmark: exactly what a run compiles."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax import config as schema
from shike_jax import models
from shike_jax.benchmark.workload import LEARNING_RATE, Workload
from shike_jax.cluster import parallel
from shike_jax.cluster.compiled_program import data_bytes
from shike_jax.data.feeds import DeviceFeed
from shike_jax.data.views import device_augment
from shike_jax.training.compiled_steps import compile_train, gains_by_onednn
from shike_jax.training.epoch import side_by_side
from shike_jax.training.program import make_program
from shike_jax.training.state import start_stage

# name: fields of `config.augment`
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"crop": "none", "flip": False},
    "autoaugment_cifar": {"crop": "pad", "pad": 4, "flip": True, "policy": "autoaugment_cifar", "cutout": 16},
    "randaugment": {"crop": "none", "flip": False, "policy": "randaugment"},
}


class Ours:
    """Compiled when made; `run()` makes all steps of a call and returns their mean loss.

    `augmentation` is a name in `AUGMENTATIONS`. So many `seeds` train in one program, each on the same images.
    """

    def __init__(self, workload: Workload, augmentation: str = "none", *, seeds: int = 1) -> None:
        stage, params, dtype = workload.stage, workload.variables["params"], jnp.dtype(workload.dtype)
        config = schema.base()
        config.augment.update(AUGMENTATIONS[augmentation])
        program = make_program(
            schema.stage(**{**stage, "schedule": "constant", "lr": LEARNING_RATE}),
            models.build_model(workload.model, workload.classes, dtype=dtype, axis_name=parallel.AXIS),
            params,
            workload.class_counts,
            device_augment(config, dtype),
            jax.random.key(0),
            steps_per_epoch=workload.steps,
            steps=workload.steps,
        )
        feed = DeviceFeed(workload.images, workload.labels)
        plan = {"index": workload.index, "mask": np.ones(workload.index.shape, np.float32)}
        [(_, inputs)] = feed.calls(plan, 0, workload.steps, None)
        self._data, self._inputs = feed.data, jax.device_put(side_by_side([inputs] * seeds, axis=2))
        start = start_stage(workload.variables, program)
        self._state = parallel.replicate(side_by_side([start] * seeds, axis=0))
        keys = None if seeds == 1 else jax.random.split(program.key, seeds)
        by_onednn = gains_by_onednn((workload.index.shape[1], *workload.images.shape[1:]))
        call = compile_train(program, feed.fetch, keys, by_onednn=by_onednn)
        began = time.perf_counter()
        self._call = call.compiled_from(call.lower(self._state, self._data, self._inputs))
        self.compile_seconds = time.perf_counter() - began
        self.memory_bytes = data_bytes(self._call.compiled)
        # By one call, as the compiler estimates them, the body of a scan counted once; None where it does not.
        self.bytes_accessed = (self._call.compiled.cost_analysis() or {}).get("bytes accessed")

    def run(self) -> float:
        self._state, sums = self._call(self._state, self._data, self._inputs)
        jax.block_until_ready((self._state, sums))
        return float(jnp.sum(sums["loss"]) / jnp.sum(sums["count"]))
