"""This package's own training step as a side of the benchmark: exactly what a run compiles."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax import config as schema
from shike_jax import models
from shike_jax.augment import make_train_augment
from shike_jax.benchmark.program import data_bytes
from shike_jax.benchmark.workload import LEARNING_RATE, Workload
from shike_jax.cluster import parallel
from shike_jax.data.feeds import DeviceFeed
from shike_jax.training import steps
from shike_jax.training.program import Program, make_program
from shike_jax.training.state import TrainState, start_stage

PyTree = Any
NO_AUGMENTATION: dict[str, Any] = {
    "crop": "none",
    "pad": 0,
    "flip": False,
    "policy": "none",
    "policy_args": {},
    "cutout": 0,
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "autoaugment_cifar": {"crop": "pad", "pad": 4, "flip": True, "policy": "autoaugment_cifar", "cutout": 16},
    "randaugment": {"policy": "randaugment"},
}


class Ours:
    """Compiled when made; `run()` makes all steps of a call and returns their mean loss.

    Attributes:
      compile_seconds: tracing and compiling.
      memory_bytes: of the program: arguments, results and temporaries, as the compiler states them.
      bytes_accessed: by one call, as the compiler estimates them, the body of a scan counted once; None where it does
        not.
    """

    def __init__(self, workload: Workload, augmentation: str = "none", *, updates_together: bool = False) -> None:
        """Compiles.

        Args:
          workload: what is computed.
          augmentation: a name in `AUGMENTATIONS`, inside the step.
          updates_together: as `config.train` has it.
        """
        stage, params, dtype = workload.stage, workload.variables["params"], jnp.dtype(workload.dtype)
        augment = NO_AUGMENTATION | AUGMENTATIONS[augmentation]
        self._program = make_program(
            schema.stage(**{**stage, "schedule": "constant", "lr": LEARNING_RATE}),
            models.build_model(workload.model, workload.classes, dtype=dtype, axis_name=parallel.AXIS),
            params,
            workload.class_counts,
            make_train_augment(**augment, mean=schema.CIFAR_MEAN, std=schema.CIFAR_STD, dtype=dtype),
            jax.random.key(0),
            steps_per_epoch=workload.steps,
            steps=workload.steps,
            updates_together=updates_together,
        )
        feed = DeviceFeed(workload.images, workload.labels)
        plan = {"index": workload.index, "mask": np.ones(workload.index.shape, np.float32)}
        [(_, inputs)] = feed.calls(plan, 0, workload.steps, None)
        self._data, self._inputs = feed.data, jax.device_put(inputs)
        self._fetch = feed.fetch
        start = start_stage(workload.variables, self._program.optimizer, self._program.updated)
        self._state = parallel.replicate(self._stacked(start))
        began = time.perf_counter()
        self._call = self._compiled().lower(self._state, self._data, self._inputs).compile()
        self.compile_seconds = time.perf_counter() - began
        self.memory_bytes = data_bytes(self._call)
        self.bytes_accessed = (self._call.cost_analysis() or {}).get("bytes accessed")

    def _stacked(self, state: TrainState) -> TrainState:
        return state

    def _compiled(self) -> Any:
        return steps.compile_train(self._program, self._fetch)

    def run(self) -> float:
        """Waits for the result."""
        self._state, sums = self._call(self._state, self._data, self._inputs)
        jax.block_until_ready((self._state, sums))
        return float(sums["loss"] / sums["count"])


class OursManySeeds(Ours):
    """The same step for several seeds in one program (`vmap` over states and keys), on the same batch of images."""

    def __init__(self, workload: Workload, augmentation: str = "none", *, seeds: int) -> None:
        """Args: seeds: S; a call makes S times the steps of `Ours`."""
        self._seeds = seeds
        super().__init__(workload, augmentation)

    def _stacked(self, state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], self._seeds, 0), state)

    def _compiled(self) -> Any:
        keys = jax.random.split(self._program.key, self._seeds)

        def call(states: TrainState, data: PyTree, inputs: PyTree) -> tuple[TrainState, PyTree]:
            def one(program: Program, states: TrainState, item: PyTree) -> tuple[TrainState, PyTree]:
                batch = self._fetch(data, item)

                def step(state: TrainState, key: jax.Array) -> tuple[TrainState, PyTree]:
                    return steps.train_step(dataclasses.replace(program, key=key), state, batch)

                return jax.vmap(step)(states, keys)

            states, sums = steps.several_steps(self._program, one, states, inputs, jax.vmap)
            return states, jax.tree.map(jnp.sum, sums)

        return parallel.compile_step(call, replicated_in=(True, True, False), donate=True)
