"""Training steps compiled over all devices: one call makes one step or several, of one run or of several seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shike_jax.cluster import parallel
from shike_jax.models.calling import onednn
from shike_jax.training.program import Course, Program
from shike_jax.training.state import TrainState
from shike_jax.training.steps import train_step

Array = jax.Array
PyTree = Any
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainCall:
    """A stage's training steps over all devices; the state is donated."""

    compiled: Any  # takes the course with the data
    course: Course  # of the stage, replicated
    by_onednn: bool = False  # what computes the convolutions; the program cannot be kept in JAX's cache then

    def __call__(self, state: TrainState, data: PyTree, inputs: PyTree) -> tuple[TrainState, PyTree]:
        """Makes k steps, to (state, sums): `state` and `data` replicated, inputs [devices, k, ...]."""
        with self._unkept():  # the first call compiles
            return self.compiled(state, (data, self.course), inputs)

    def lower(self, state: TrainState, data: PyTree, inputs: PyTree) -> Any:
        """The program for such arguments, traced (`jax.stages.Lowered`)."""
        return self.compiled.lower(state, (data, self.course), inputs)

    def compiled_from(self, lowered: Any) -> TrainCall:
        """The same, compiled now from what `lower` has returned."""
        with self._unkept():
            return dataclasses.replace(self, compiled=lowered.compile())

    def _unkept(self) -> contextlib.AbstractContextManager:
        return onednn.unkept() if self.by_onednn else contextlib.nullcontext()


def gains_by_onednn(images: Sequence[int]) -> bool:
    """Whether steps on images of this shape [B,H,W,3] gain from oneDNN on a CPU.

    Such a program is compiled at every start, which takes longer than a run of smaller batches would gain.
    """
    return len(images) == 4 and images[0] * images[1] * images[2] >= 2**16


def compile_train(
    program: Program,
    fetch: Callable[[PyTree, PyTree], Batch],
    keys: Array | None = None,
    *,
    by_onednn: bool = False,
) -> TrainCall:
    """Compiles `train_call` over all devices, for the program's course.

    `keys` are those of several runs [S], whose programs differ in the key alone; None: one run, with the program's key.
    With `by_onednn`, oneDNN computes the convolutions of one run on the one device of a CPU, where JAX can call it.
    """
    course, several = program.course, keys is not None
    if keys is not None:
        course = dataclasses.replace(course, key=np.asarray(jax.random.key_data(keys)))
    by_onednn = by_onednn and not several and jax.device_count() == 1 and onednn.usable()
    call = train_call(program, fetch, several)

    def call_by_onednn(*arguments: PyTree) -> tuple[TrainState, PyTree]:
        with onednn.chosen():
            return call(*arguments)

    compiled = parallel.compile_step(call_by_onednn if by_onednn else call, **TRAIN_CALL)
    return TrainCall(compiled, parallel.replicate(course), by_onednn)


TRAIN_CALL: dict[str, Any] = {"replicated_in": (True, True, False), "donate": True}


def train_call(
    program: Program, fetch: Callable[[PyTree, PyTree], Batch], several: bool = False
) -> Callable[[TrainState, tuple[PyTree, Course], PyTree], tuple[TrainState, PyTree]]:
    """The steps of one call on each device: a function of state, (data, course) and inputs [k, ...] to (state, sums).

    The function makes k steps, k being free to vary, and adds their sums. For several runs, which differ in their keys
    alone, states, sums and the course's key have a leading axis [S], and inputs are [k, S, ...].

    Args:
      program: of the stage; its own course is not used.
      fetch: turns (data, one step's inputs) into a batch; runs inside the compiled step.
    """

    def one(course: Course, state: TrainState, data: PyTree, item: PyTree) -> tuple[TrainState, PyTree]:
        return train_step(program.during(course), state, fetch(data, item))

    def call(state: TrainState, data_and_course: tuple[PyTree, Course], inputs: PyTree) -> tuple[TrainState, PyTree]:
        data, course = data_and_course
        step = jax.vmap(one, (Course(0, None, None, None, None), 0, None, 0)) if several else one
        if len(jax.tree.leaves(inputs)[0]) == 1:  # XLA:CPU runs convolutions inside a scan many times slower
            return step(course, state, data, jax.tree.map(lambda x: x[0], inputs))
        state, sums = lax.scan(lambda state, item: step(course, state, data, item), state, inputs)
        return state, jax.tree.map(lambda x: jnp.sum(x, 0), sums)

    return call
