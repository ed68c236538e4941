"""A run: per stage resume, train, evaluate, hand over; then the results."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from shike_jax.augment import make_eval_transform
from shike_jax.cluster import parallel
from shike_jax.cluster.preemption import Preempted
from shike_jax.cluster.timing import CompileTime
from shike_jax.config import to_plain
from shike_jax.data import sampling
from shike_jax.data.feeds import Feed
from shike_jax.errors import UserError
from shike_jax.storage.card import write_card
from shike_jax.storage.checkpoints import Checkpoints
from shike_jax.storage.logs import RunLog, clock
from shike_jax.storage.workdir import claimed, discard_untrained, open_workdir, write_json
from shike_jax.training import metrics, steps
from shike_jax.training.setup import Run, check_devices, make_program, position, prepare, results, save_stage
from shike_jax.training.state import TrainState, start_stage, variables_of

PyTree = Any
SHOWN = 16  # images of the first batch of a stage that TensorBoard gets, augmented (fewer on many devices)


def train(config: ConfigDict, workdir: Path, started: float | None = None) -> dict[str, Any]:
    """Trains, evaluates and resumes; the whole of `python -m shike_jax.main`.

    Args:
      config: validated.
      workdir: of this run; continues what it finds there.
      started: `time.time()` when the program began, for the start-up time.

    Returns:
      The results, also written to `workdir/results.json`.

    Raises:
      UserError: anything a user can mend.
      Preempted: a signal asked to stop; the state is saved.
    """
    started = started or time.time()
    plain = to_plain(config)
    check_devices(config)
    with contextlib.ExitStack() as held:
        finished = None
        if parallel.is_main():
            finished = open_workdir(workdir, plain)
            if finished is None and held.enter_context(claimed(workdir)):
                finished = open_workdir(workdir, plain)  # the process that was waited for may have finished it
        finished = parallel.from_main(finished)
        if finished is None:
            return _train(config, workdir, started)
    if parallel.is_main():
        print(f"{workdir} is finished (top-1 {finished['top1']:.2f} %): nothing to do")
    return finished


def _train(config: ConfigDict, workdir: Path, started: float) -> dict[str, Any]:
    """Trains a run that is not finished."""
    log = RunLog(workdir, config.log, parallel.is_main())
    try:
        run, state, (first, step) = prepare(config, workdir, log)
    except UserError:
        log.close()
        if parallel.is_main():
            discard_untrained(workdir)
        raise
    try:
        run.history["seconds"]["start_up"] += time.time() - started - CompileTime.total
        run.history["seconds"]["compile"] += CompileTime.total
        for index in range(first, len(config.run)):
            state = _run_stage(run, index, config.run[index], state, step if index == first else 0)
        run.checkpoints.close()
        found = results(run, state)
        if parallel.is_main():
            write_card(workdir / "card.md", found)
            write_json(workdir / "results.json", found)
        if run.source.report.unreadable:
            log.line(f"{run.source.report.closing_line()} (all of them in results.json)")
        log.line(f"top-1 {found['top1']:.2f} %: results in {workdir / 'results.json'}")
        return found
    finally:
        log.close()


def _run_stage(run: Run, index: int, name: str, start: PyTree, step: int) -> PyTree:
    """Trains one stage from `step` on; returns the network's variables at its end.

    Args:
      start: variables to begin the stage with, or the restored TrainState.
    """
    config, stage, seconds = run.config, run.config.stages[name], run.history["seconds"]
    params = start.params if isinstance(start, TrainState) else start["params"]
    program = make_program(run, index, name, params)
    state = start if isinstance(start, TrainState) else start_stage(start, program.optimizer, program.updated)
    state = parallel.replicate(state)
    each, total = run.stage_steps(name)
    before = sum(run.stage_steps(other)[1] for other in config.run[:index])
    feed = run.feeds["train"]
    call = steps.compile_train(program, feed.fetch, SHOWN)
    together = _steps_per_call(config, feed, each)
    last_evaluation: dict[str, Any] | None = None
    while step < total:
        epoch, first = divmod(step, each)
        plan_key = jax.random.fold_in(program.key, 2**31 - 1)
        plan = sampling.epoch_plan(stage.sampler, plan_key, epoch, run.labels, stage.batch_size, stage.keep_last)
        plan = {k: v[: min(each, total - epoch * each)] for k, v in plan.items()}
        began, compiled = time.time(), CompileTime.total
        sums, running = _Sums(f"stage {name}, epoch {epoch}"), None
        for done, inputs in feed.calls(plan, first, together, _epoch_seed(config.seed, index, epoch)):
            state, new, seen = call(state, feed.data, inputs)
            if step == 0:
                _show_batch(run, before, seen)
            sums.add(new)
            step += done
            # One call may wait behind the running one; more would only delay the answer to a request to stop. On
            # several CPU devices not even one: pmapped calls in flight can starve each other of threads.
            alone = jax.device_count() > 1 and jax.default_backend() == "cpu"
            jax.block_until_ready(new if alone else running)
            running = new
            if step // config.train.log_every_steps != (step - done) // config.train.log_every_steps:
                run.log.scalars(before + step, sums.recent(step, run.checkpoints), stage=name, epoch=epoch)
            at_end = step == total
            due = _due(step, each, config.train.checkpoint_every_epochs)
            every = config.train.checkpoint_every_steps
            wanted = every and step // every != (step - done) // every
            stop = run.stop.requested()
            if (due or wanted or stop) and not at_end:
                sums.check(step, run.checkpoints)
                run.checkpoints.save(before + step, state, position(run, index, name, step))
            if stop and not at_end:
                run.checkpoints.close()
                raise Preempted(f"stopped in stage {name} at step {step}; start again to continue")
        trained = sums.finish(step, run.checkpoints)
        compile_seconds = CompileTime.total - compiled
        seconds["compile"] += compile_seconds
        elapsed = max(time.time() - began - compile_seconds, 1e-9)
        seconds["train"] += elapsed
        if _due(step, each, config.train.eval_every_epochs) or step == total:
            last_evaluation = evaluate(run, state, stage.heads)
        else:
            last_evaluation = None
        rate = float(program.schedule(np.int32(step - 1)))
        speed, left = run.progress.advance(int(np.sum(plan["mask"][first:])), elapsed)
        _report_epoch(run, name, epoch, before + step, trained, last_evaluation, rate, speed, left)
    # A run stopped exactly at a stage's end is evaluated when it comes back.
    last_evaluation = last_evaluation or evaluate(run, state, stage.heads)
    variables = parallel.to_host(variables_of(state))
    run.history["stages"].append({"name": name, "epochs": math.ceil(total / each), "steps": total, **last_evaluation})
    save_stage(run, index, name, variables)
    if index + 1 < len(config.run):
        following = config.run[index + 1]
        program = make_program(run, index + 1, following, variables["params"])
        state = start_stage(variables, program.optimizer, program.updated)
        run.checkpoints.save(before + total, state, position(run, index + 1, following, 0))
    run.checkpoints.wait()
    return variables


def evaluate(run: Run, state: TrainState, heads: str) -> dict[str, Any]:
    """Accuracies of `metrics.summarise` on the evaluation part with one set of classifiers."""
    began, compiled = time.time(), CompileTime.total
    data = run.config.data
    feed = run.feeds[data.test_part]
    if heads not in run.evaluators:
        transform = make_eval_transform(mean=data.mean, std=data.std, dtype=run.network.dtype)
        run.evaluators[heads] = steps.compile_eval(run.network, heads, transform, feed.fetch)
    devices = jax.device_count()
    size = math.ceil(run.config.eval.batch_size / devices) * devices
    plan = sampling.in_order(len(run.source.split.parts[data.test_part]), size)
    total: PyTree = None
    for _, inputs in feed.calls(plan, 0, 1, None):
        counts = run.evaluators[heads](state, feed.data, inputs)
        counts = jax.tree.map(lambda x: np.asarray(x, np.float64), parallel.to_host(counts))
        total = counts if total is None else jax.tree.map(np.add, total, counts)
    result = metrics.summarise(total, run.source.split.divisions)
    compile_seconds = CompileTime.total - compiled
    run.history["seconds"]["compile"] += compile_seconds
    run.history["seconds"]["evaluate"] += time.time() - began - compile_seconds
    return result


class _Sums:
    """Adds the sums of many steps without waiting for the devices, and refuses results that are not finite."""

    def __init__(self, where: str) -> None:
        self._where, self._pending, self._total, self._logged = where, [], {}, {}

    def add(self, sums: PyTree) -> None:
        """Keeps device arrays; nothing is fetched."""
        self._pending.append(sums)

    def check(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
        """Fetches what is pending; returns the totals so far.

        Raises:
          UserError: the loss is not finite.
        """
        for sums in self._pending:
            for name, value in parallel.to_host(sums).items():
                self._total[name] = self._total.get(name, 0.0) + float(value)
        self._pending = []
        if not np.isfinite(self._total.get("loss", 0.0)):
            terms = ", ".join(f"{k} {v / self._total['count']:.4g}" for k, v in self._total.items() if k != "count")
            raise UserError(
                f"the loss is not finite in {self._where}, by step {step} ({terms}); last good checkpoint: "
                f"{checkpoints.latest() or 'none'}; try a lower learning rate"
            )
        return self._total

    def recent(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
        """Means since the last call."""
        total = dict(self.check(step, checkpoints))
        part = {name: value - self._logged.get(name, 0.0) for name, value in total.items()}
        self._logged = total
        return _means(part)

    def finish(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
        """Means over everything."""
        return _means(self.check(step, checkpoints))


def _means(sums: dict[str, float]) -> dict[str, float]:
    count = max(sums.get("count", 0.0), 1.0)
    return {
        ("train_top1" if k == "correct" else k): v / count * (100 if k == "correct" else 1)
        for k, v in sums.items()
        if k != "count"
    }


def _due(step: int, steps_per_epoch: int, every_epochs: int) -> bool:
    """True at the end of every `every_epochs`-th epoch of a stage."""
    return bool(every_epochs) and step % (steps_per_epoch * every_epochs) == 0


def _steps_per_call(config: ConfigDict, feed: Feed, steps_per_epoch: int) -> int:
    if not feed.steps_together:
        return 1
    # XLA:CPU runs convolutions inside a scan many times slower; accelerators want long calls.
    return config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else steps_per_epoch)


def _epoch_seed(seed: int, stage: int, epoch: int) -> int:
    """A seed of its own for each epoch of the host pipeline."""
    return int(np.random.SeedSequence([seed, stage, epoch]).generate_state(1)[0])


def _show_batch(run: Run, step: int, seen: PyTree) -> None:
    """Sends images to TensorBoard as the network saw them; `seen` of a compiled call, from each device."""
    if run.log.has_tensorboard:
        data, views = run.config.data, np.asarray(parallel.to_host(seen)[0], np.float32)
        run.log.images(step, "augmented", np.clip(views * np.array(data.std) + np.array(data.mean), 0, 1))


def _report_epoch(
    run: Run,
    name: str,
    epoch: int,
    step: int,
    trained: dict[str, float],
    evaluation: dict[str, Any] | None,
    rate: float,
    speed: float,
    left: float,
) -> None:
    """One aligned line for a person, one JSON line for programs; `speed` in images/s, `left` in seconds."""
    values = {"epoch_loss": trained["loss"], "train_top1": trained["train_top1"], "learning_rate": rate}
    values["images_per_second"] = speed
    text = f"{name} {epoch + 1:>3}/{run.config.stages[name].epochs}  lr {rate:.4f}  loss {trained['loss']:8.4f}"
    if evaluation:
        scores = {key: evaluation[key] for key in ("top1", "top5", "many", "medium", "few", "experts")}
        values |= scores
        text += "".join(f"  {key} {_cell(scores[key])}" for key in ("top1", "many", "medium", "few"))
        accuracies = np.array([value for value in evaluation["per_class"] if value is not None])
        run.log.histogram(step, f"{name}/per_class_top1", accuracies)
    run.log.scalars(step, values, stage=name, epoch=epoch)
    run.log.line(f"{text}  {speed:7.0f} img/s  left {clock(left)}")


def _cell(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.2f}"
