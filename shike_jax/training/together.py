"""Several seeds of one configuration in one program: their states stand side by side and one `vmap` trains them.

A network as small as CIFAR's fills a small part of an accelerator, whose kernels are shorter than their launches:
several of them in one program take little longer than one. Each seed is a run of its own, with its work directory,
checkpoints, logs and results, equal to what it would be alone; only the training step is shared. Runs that stand at
different steps (some were stopped later than others) train in turn, those furthest behind first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from shike_jax.cluster import parallel, preemption
from shike_jax.cluster.coordination import CompileTime
from shike_jax.common.errors import UserError
from shike_jax.config import to_plain, with_defaults
from shike_jax.storage.logs import RunLog
from shike_jax.storage.trouble import naming_disk_trouble
from shike_jax.storage.workdir import claimed, discard_untrained, open_workdir
from shike_jax.training import averaging, loop, outcome, steps
from shike_jax.training.epoch import fit_epoch, is_evaluated, of_each, side_by_side
from shike_jax.training.program import Program
from shike_jax.training.setup import Run, Stage, check_devices, make_stage, prepare
from shike_jax.training.state import TrainState

PyTree = Any


@dataclasses.dataclass
class Member:
    """One seed's run, and where it stands.

    Attributes:
      run, stage: as of a run alone.
      state: on the host.
      variables_of: the network that the stage gives out, from a replicated state (`averaging.make_outcome`).
    """

    run: Run
    stage: Stage
    state: TrainState

    def __post_init__(self) -> None:
        """Nothing is compiled yet."""
        self.variables_of = averaging.make_outcome(self.run, self.stage)

    @property
    def position(self) -> tuple[int, int]:
        """Stage and step of it."""
        return self.stage.index, int(self.state.step)


def train_seeds(config: ConfigDict, workdir: Path, started: float | None = None) -> list[dict[str, Any]]:
    """Trains `config.seeds` together, each in WORKDIR/seedN; finished ones are left as they are.

    Args:
      config: validated, with `seeds`.
      workdir: of all of them.
      started: `time.time()` when the program began, for the start-up time.

    Returns:
      The results of the seeds that were not finished before.

    Raises:
      UserError: anything a user can mend.
      Preempted: a signal asked to stop; all states are saved.
    """
    compiled = CompileTime.total if started is None else 0.0  # by this process before these runs
    started = started or time.time()
    parallel.use_backend(config.train.backend)
    check_devices(config)
    if jax.process_count() > 1:
        raise UserError(f"config.seeds={tuple(config.seeds)!r}: expected one process, not {jax.process_count()}")
    folders = {seed: workdir / f"seed{seed}" for seed in config.seeds}
    with contextlib.ExitStack() as held:
        held.callback(preemption.stay)
        held.enter_context(naming_disk_trouble(workdir, list(folders.values())))
        members: list[Member] = []
        opened: list[Path] = []
        for seed, folder in folders.items():
            member = _opened(_alone(config, seed), folder, held, opened)
            members += [member] if member else []
        compiling = CompileTime.total - compiled
        starting = time.time() - started - compiling
        for member in members:  # time spent for all is divided among them
            member.run.history["seconds"]["start_up"] += starting / len(members)
            member.run.history["seconds"]["compile"] += compiling / len(members)
        results: list[dict[str, Any]] = []
        calls: dict[Any, Callable] = {}
        while members:
            first = min(member.position for member in members)
            group = [member for member in members if member.position == first]
            which = group[0].stage.index, *(member.run.config.seed for member in group)
            if which not in calls:
                fetch = group[0].run.feeds["train"].fetch
                call = compile_group([member.stage.program for member in group], fetch)
                what = f"the training step of {group[0].stage.name}, {len(group)} seeds together"
                calls = {which: group[0].run.log.announced(call, what)}
            _fit_epoch(group, calls[which])
            for member in group:
                if member.position[1] == member.stage.steps and (ended := _hand_over(member)):
                    members.remove(member)
                    results.append(ended)
        return results


def _alone(config: ConfigDict, seed: int) -> ConfigDict:
    """The configuration of one seed's own run."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.seed, own.seeds = seed, ()
    return own


def _opened(config: ConfigDict, workdir: Path, held: contextlib.ExitStack, opened: list[Path]) -> Member | None:
    """The run of one seed where it stands; None when it is finished.

    Args:
      held: what is closed when all runs end.
      opened: the work directories that are this process's; gets this one.
    """
    plain = to_plain(config)
    finished = open_workdir(workdir, plain, with_defaults)
    if finished is None and held.enter_context(claimed(workdir)):
        finished = open_workdir(workdir, plain, with_defaults)
    if finished is not None:
        print(f"{workdir} is finished (top-1 {finished['top1']:.2f} %)")
        return None
    log = RunLog(workdir, config.log, True, config.train.tensorboard)
    held.callback(log.close)
    opened.append(workdir)
    preemption.leave_at_once(lambda: _discard_untrained(opened))
    try:
        member = Member(*prepare(config, workdir, log))
    except UserError:
        preemption.stay()
        discard_untrained(workdir)
        raise
    held.callback(member.run.profile.close)
    if member.run.source.images is None:
        discard_untrained(workdir)
        raise UserError(
            f"config.seeds: expected a data source whose images lie on the device, not {config.data.source!r}"
        )
    return member


def _discard_untrained(folders: Sequence[Path]) -> None:
    for folder in folders:
        discard_untrained(folder)


def compile_group(programs: Sequence[Program], fetch: Callable[[PyTree, PyTree], PyTree]) -> Any:
    """Compiles (states, data, inputs) -> (states, sums) over all devices: as `steps.compile_train`, for S runs.

    Of several runs, states and sums have a leading axis [S] and inputs are [devices, S, k, ...]; their programs differ
    in the key alone. A run alone has the step of any other run.
    """
    if len(programs) == 1:
        return steps.compile_train(programs[0], fetch)
    program, keys = programs[0], jnp.stack([program.key for program in programs])

    def call(states: TrainState, data: PyTree, inputs: PyTree) -> tuple[TrainState, PyTree]:
        def one(program: Program, states: TrainState, items: PyTree) -> tuple[TrainState, PyTree]:
            def step(state: TrainState, key: jax.Array, item: PyTree) -> tuple[TrainState, PyTree]:
                return steps.train_step(dataclasses.replace(program, key=key), state, fetch(data, item))

            return jax.vmap(step)(states, keys, items)

        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), inputs)
        return steps.several_steps(program, one, states, inputs, jax.vmap)

    return parallel.compile_step(call, replicated_in=(True, True, False), donate=True)


def _fit_epoch(group: Sequence[Member], call: Callable) -> None:
    """Trains members that stand at one step to the end of its epoch, and evaluates each like a run alone."""
    stage, step = group[0].stage, group[0].position[1]
    runs, stages = [member.run for member in group], [member.stage for member in group]
    for member in group:
        loop.show_first_batch(member.run, member.stage, step)
    states = parallel.replicate(side_by_side([member.state for member in group], axis=0))
    states, reports = fit_epoch(runs, stages, call, states, step)
    for member, state, report in zip(group, of_each(parallel.to_host(states), len(group)), reports, strict=True):
        member.state = state
        end = member.position[1]
        looked_at = is_evaluated(member.run, stage, end)
        evaluation = loop.evaluate(member.run, member.stage, _variables(member), end) if looked_at else None
        loop.report_epoch(member.run, member.stage, step // stage.steps_per_epoch, end, report, evaluation)
        if evaluation and end == stage.steps:
            member.run.history["stages"].append(outcome.stage_record(member.stage, evaluation))


def _variables(member: Member) -> PyTree:
    return member.variables_of(parallel.replicate(member.state))


def _hand_over(member: Member) -> dict[str, Any] | None:
    """Takes a member from the end of a stage into the next one; after the last, returns its results."""
    run, stage, variables = member.run, member.stage, parallel.to_host(_variables(member))
    outcome.save_stage_weights(run, stage, variables)
    if stage.index + 1 == len(run.config.run):
        run.checkpoints.close()
        return loop.finish(run, variables)
    member.stage = make_stage(run, stage.index + 1, variables["params"])
    member.variables_of = averaging.make_outcome(run, member.stage)
    member.state = member.stage.start(variables)
    outcome.save_checkpoint(run, member.stage, member.state, 0)
    run.checkpoints.wait()
    return None
