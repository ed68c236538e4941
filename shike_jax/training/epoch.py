"""One epoch of training: call after compiled call, with log records, checkpoints and requests to stop on the way.

What passes through here is one run, or the runs of several seeds that share a compiled step (`loop`). They stand at the
same step of the same stage and differ in nothing but their keys.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel, preemption
from shike_jax.cluster.coordination import CompileTime
from shike_jax.cluster.preemption import Preempted
from shike_jax.data import sampling
from shike_jax.errors import UserError
from shike_jax.methods.loss_registry import further_views
from shike_jax.storage.trouble import check_present
from shike_jax.training import outcome, randomness
from shike_jax.training.finite import EpochSums, check_variables
from shike_jax.training.setup import Run
from shike_jax.training.state import TrainState, variables_of
from shike_jax.training.task import Stage

PyTree = Any


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """What one epoch, or the rest of one, was like: means per example, images per second, seconds left for the run."""

    means: dict[str, float]
    images_per_second: float
    seconds_left: float


def fit_epoch(
    runs: Sequence[Run], stages: Sequence[Stage], call: Callable[..., Any], state: TrainState, step: int
) -> tuple[TrainState, list[EpochReport]]:
    """Trains from `step` to the end of its epoch; saves, logs and stops on the way as the configuration asks.

    `stages` are those that the runs stand in; the first speaks for what is equal in all of them. `state` is replicated;
    that of several runs has a leading axis [S]. Raises `Preempted` when a stop was requested and the states are saved,
    and `UserError` when a loss is not finite.
    """
    run, stage, began, compiled = runs[0], stages[0], time.monotonic(), CompileTime.total
    epoch = step // stage.steps_per_epoch
    where = f"stage {stage.name}, epoch {epoch}"
    names = [where] if len(runs) == 1 else [f"seed {one.config.seed}, {where}" for one in runs]
    sums = [EpochSums(name, one.checkpoints.latest) for name, one in zip(names, runs, strict=True)]
    running, examples = None, 0
    inputs_of_calls = Waiting(_calls_of_all(runs, stages, step))

    def remark() -> tuple[str, float]:
        seconds = max(time.monotonic() - began - (CompileTime.total - compiled), 1e-9)
        wait, speed = 100 * inputs_of_calls.seconds / seconds, examples / seconds
        loss = sums[0].finished_loss()
        note = "" if np.isnan(loss) else f"loss {loss:.4f}  "
        note += f"{speed:,.0f} img/s  wait {min(wait, 100):.0f} %"
        return note, run.progress.left_after(examples, seconds)

    with run.log.meter(f"{stage.name} {epoch + 1}/{stage.settings.epochs}", stage.steps_per_epoch) as update:
        for done, count, inputs in inputs_of_calls:
            run.profile.before(stage.steps_before + step, done)
            with run.profile.step(stage.steps_before + step):
                state, new = call(state, run.feeds["train"].data, inputs)
            for own, part in zip(sums, of_each(new, len(runs)), strict=True):
                own.add(part, step + done)
            preemption.stay()
            step, examples = step + done, examples + count
            _wait(new, running)
            running = new
            if run.profile.after(stage.steps_before + step, new):
                run.log.line(f"profile: {run.workdir / 'profile'}")
            update(step - epoch * stage.steps_per_epoch, remark)
            if passed(step, done, run.config.train.log_every_steps):
                for one, own in zip(runs, sums, strict=True):
                    one.log.scalars(stage.steps_before + step, own.recent(), stage=stage.name, epoch=epoch)
            _save_if_due(runs, stages, state, step, done, sums)
    means = [own.means() for own in sums]  # waits for the last call
    compile_seconds = CompileTime.total - compiled
    seconds = max(time.monotonic() - began - compile_seconds, 1e-9)
    for one in runs:
        if parallel.is_main():
            check_present(one.workdir)
        one.history["seconds"]["compile"] += compile_seconds / len(runs)
        one.history["seconds"]["train"] += seconds / len(runs)
    advanced = [one.progress.advance(examples, seconds) for one in runs]
    return state, [EpochReport(own, *speed) for own, speed in zip(means, advanced, strict=True)]


def side_by_side(trees: Sequence[PyTree], axis: int) -> PyTree:
    """Host arrays of several runs stacked along a new axis; those of a run alone as they are."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def of_each(tree: PyTree, runs: int) -> list[PyTree]:
    """The arrays of each run, from arrays with a leading axis [S]; those of a run alone are handed on as they are."""
    if runs == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, place=place: leaf[place], tree) for place in range(runs)]


class Waiting:
    """Passes items on, and adds up the seconds for which the next one had to be waited for."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items, self.seconds = iter(items), 0.0

    def __iter__(self) -> Iterator[Any]:
        while True:
            began = time.monotonic()
            item = next(self._items, None)
            self.seconds += time.monotonic() - began
            if item is None:
                return
            yield item


def calls(run: Run, stage: Stage, step: int) -> Iterator[tuple[int, int, PyTree]]:
    """Yields (steps, examples, inputs) of each compiled call from `step` to the end of its epoch."""
    settings, feed = stage.settings, run.feeds["train"]
    epoch, first = divmod(step, stage.steps_per_epoch)
    key = randomness.order_key(stage.program.key)
    plan = sampling.epoch_plan(settings.sampler, key, epoch, run.labels, settings.batch_size, settings.keep_last)
    left = stage.steps - epoch * stage.steps_per_epoch
    plan = {name: rows[:left] for name, rows in plan.items()}
    together = steps_per_call(run.config, feed.steps_together, stage.steps_per_epoch)
    seed, views = randomness.host_seed(run.config.seed, stage.index, epoch), further_views(settings.loss)
    for done, inputs in feed.calls(plan, first, together, seed, views):
        yield done, int(np.sum(plan["mask"][first : first + done])), inputs
        first += done


def _calls_of_all(runs: Sequence[Run], stages: Sequence[Stage], step: int) -> Iterator[tuple[int, int, PyTree]]:
    """As `calls`, for all runs of a group: inputs [devices, k, ...] of one, [devices, k, S, ...] of several."""
    for items in zip(*(calls(run, stage, step) for run, stage in zip(runs, stages, strict=True)), strict=True):
        done, count, _ = items[0]
        yield done, count, side_by_side([inputs for _, _, inputs in items], axis=2)


def steps_per_call(config: ConfigDict, can_hold_several: bool, steps_per_epoch: int) -> int:
    """Training steps in one compiled call: as configured, else an epoch on accelerators and one step on the CPU."""
    if not can_hold_several:
        return 1
    # XLA:CPU runs convolutions inside a scan many times slower; accelerators want long calls.
    return config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else steps_per_epoch)


def _wait(new: PyTree, running: PyTree) -> None:
    """Lets one call wait for the running one: more would only delay the answer to a request to stop.

    On several CPU devices not even one: calls in flight can starve each other's all-reduces of threads.
    """
    alone = jax.device_count() > 1 and jax.default_backend() == "cpu"
    jax.block_until_ready(new if alone else running)


def _save_if_due(
    runs: Sequence[Run], stages: Sequence[Stage], state: TrainState, step: int, done: int, sums: Sequence[EpochSums]
) -> None:
    """Saves checkpoints when they are due or a stop was requested; at the end of a stage the hand-over saves.

    Raises `UserError` where a loss, weights or statistics are not finite; the states of the other runs are saved.
    """
    stage, train, stop = stages[0], runs[0].config.train, runs[0].stop.requested()
    if step == stage.steps:
        return
    now = due(step, stage.steps_per_epoch, train.checkpoint_every_epochs)
    if now or passed(step, done, train.checkpoint_every_steps) or stop:
        states = of_each(state if len(runs) == 1 else parallel.to_host(state), len(runs))
        broken: UserError | None = None
        for run, own_stage, own_state, own_sums in zip(runs, stages, states, sums, strict=True):
            try:
                own_sums.fetch()  # refuses to save what is not finite
                check_variables(variables_of(own_state), f"stage {stage.name}", step, run.checkpoints.latest)
            except UserError as error:
                broken = broken or error
            else:
                outcome.save_checkpoint(run, own_stage, own_state, step)
        if broken:
            for run in runs:
                run.checkpoints.wait()
            raise broken
    if stop:
        for run in runs:
            run.checkpoints.close()
        raise Preempted(f"stopped in stage {stage.name} at step {step}; start again to continue")


def is_evaluated(run: Run, stage: Stage, step: int) -> bool:
    """Whether the network is evaluated after that step: at the end of a stage, and in between as configured."""
    return step == stage.steps or due(step, stage.steps_per_epoch, run.config.train.eval_every_epochs)


def due(step: int, steps_per_epoch: int, every_epochs: int) -> bool:
    """True at the end of every `every_epochs`-th epoch of a stage."""
    return bool(every_epochs) and step % (steps_per_epoch * every_epochs) == 0


def passed(step: int, done: int, every: int) -> bool:
    """Whether the last `done` steps reached or passed a multiple of `every` (0: never)."""
    return bool(every) and step // every != (step - done) // every
