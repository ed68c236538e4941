"""This package's own training step as a side of the benchmark: exactly what a run compiles."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax import config as schema
from shike_jax import models, optim, parallel, steps
from shike_jax.augment import make_train_augment
from shike_jax.benchmark.workload import LEARNING_RATE, Workload
from shike_jax.data.feeds import DeviceFeed
from shike_jax.state import start_stage

AUGMENTATIONS = {
    "none": {},
    "autoaugment_cifar": {"crop": "pad", "pad": 4, "flip": True, "policy": "autoaugment_cifar", "cutout": 16},
    "randaugment": {"policy": "randaugment"},
}


class Ours:
    """Compiled when made; `run()` makes all steps of a call and returns their mean loss.

    Attributes:
      compile_seconds: tracing and compiling.
      memory_bytes: of the program: arguments, results and temporaries, as the compiler states them.
      bytes_accessed: by one step, as the compiler estimates them; None where it does not (a scan counts once).
    """

    def __init__(self, workload: Workload, augmentation: str = "none") -> None:
        """Args: augmentation: a name in `AUGMENTATIONS`, inside the step."""
        stage, params, dtype = workload.stage, workload.variables["params"], jnp.dtype(workload.dtype)
        trainable = optim.trainable_mask(params, stage["train"])
        optimizer = optim.sgd(stage["momentum"], stage["weight_decay"])
        augment = {"crop": "none", "pad": 0, "flip": False, "policy": "none", "policy_args": {}, "cutout": 0}
        augment |= AUGMENTATIONS[augmentation]
        program = steps.Program(
            network=models.build_model(workload.model, workload.classes, dtype=dtype, axis_name=parallel.AXIS),
            stage=stage,
            class_counts=jnp.asarray(workload.class_counts),
            trainable=trainable,
            updated=trainable,
            optimizer=optimizer,
            schedule=lambda step: jnp.full((), LEARNING_RATE),
            augment=make_train_augment(**augment, mean=schema.CIFAR_MEAN, std=schema.CIFAR_STD, dtype=dtype),
            key=jax.random.key(0),
        )
        feed = DeviceFeed(workload.images, workload.labels)
        plan = {"index": workload.index, "mask": np.ones(workload.index.shape, np.float32)}
        [(_, inputs)] = feed.calls(plan, 0, workload.steps, None)
        self._data, self._inputs = feed.data, jax.device_put(inputs)
        self._state = parallel.replicate(start_stage(workload.variables, optimizer, trainable))
        began = time.perf_counter()
        self._call = steps.compile_train(program, feed.fetch).lower(self._state, self._data, self._inputs).compile()
        self.compile_seconds = time.perf_counter() - began
        self.memory_bytes = program_memory(self._call)
        self.bytes_accessed = (self._call.cost_analysis() or {}).get("bytes accessed")

    def run(self) -> float:
        """Waits for the result."""
        self._state, sums = self._call(self._state, self._data, self._inputs)
        jax.block_until_ready((self._state, sums))
        return float(sums["loss"] / sums["count"])


def program_memory(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that a compiled program needs, shared ones once; None where the backend does not say."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    used = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return used - analysis.alias_size_in_bytes
