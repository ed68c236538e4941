"""A run: stage after stage, each of them epochs of steps, an evaluation and a hand-over; then the results."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel, preemption
from shike_jax.cluster.coordination import CompileTime
from shike_jax.common.errors import UserError
from shike_jax.config import to_plain, with_defaults
from shike_jax.methods.scores import SCORES
from shike_jax.storage.atomic import write_json
from shike_jax.storage.card import write_card
from shike_jax.storage.logs import RunLog
from shike_jax.storage.progress import clock
from shike_jax.storage.trouble import check_present, naming_disk_trouble
from shike_jax.storage.workdir import claimed, discard_untrained, open_workdir
from shike_jax.training import averaging, metrics, outcome, steps
from shike_jax.training.epoch import EpochReport, calls, fit_epoch, is_evaluated
from shike_jax.training.finite import check_logits, check_variables
from shike_jax.training.setup import Run, Stage, check_devices, make_stage, prepare
from shike_jax.training.state import TrainState

PyTree = Any


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
    compiled = CompileTime.total if started is None else 0.0  # by this process before this run
    started = started or time.time()
    plain = to_plain(config)
    parallel.use_backend(config.train.backend)
    check_devices(config)
    with contextlib.ExitStack() as held:
        finished = None
        if parallel.is_main():
            finished = open_workdir(workdir, plain, with_defaults)
            if finished is None and held.enter_context(claimed(workdir)):
                finished = open_workdir(workdir, plain, with_defaults)  # the process that was waited for may be done
        finished = parallel.from_main(finished)
        if finished is None:
            return _train(config, workdir, started, compiled)
    if parallel.is_main():
        print(f"{workdir} is finished (top-1 {finished['top1']:.2f} %): nothing to do")
    return finished


def _train(config: ConfigDict, workdir: Path, started: float, compiled: float) -> dict[str, Any]:
    """Trains a run that is not finished; `compiled` seconds of compilation were not its own."""
    log = RunLog(workdir, config.log, parallel.is_main(), config.train.tensorboard)
    try:
        if parallel.is_main() and jax.process_count() == 1:
            preemption.leave_at_once(lambda: discard_untrained(workdir))
        run, stage, state = prepare(config, workdir, log)
    except UserError:
        preemption.stay()
        log.close()
        if parallel.is_main():
            discard_untrained(workdir)
        raise
    try:
        compiling = CompileTime.total - compiled
        run.history["seconds"]["start_up"] += time.time() - started - compiling
        run.history["seconds"]["compile"] += compiling
        with naming_disk_trouble(workdir):
            with contextlib.closing(run.profile):
                variables = _run_stages(run, stage, state)
            return finish(run, variables)
    finally:
        preemption.stay()
        with contextlib.suppress(OSError):  # what cannot be written has been said already
            log.close()


def _run_stages(run: Run, stage: Stage, state: TrainState) -> PyTree:
    """Trains from `stage` to the last one; returns the network's variables at the end, on the host."""
    while True:
        variables = fit_stage(run, stage, state)
        outcome.save_stage_weights(run, stage, variables)
        if stage.index + 1 == len(run.config.run):
            run.checkpoints.close()
            return variables
        stage = make_stage(run, stage.index + 1, variables["params"])
        state = stage.start(variables)
        outcome.save_checkpoint(run, stage, state, 0)
        run.checkpoints.wait()


def fit_stage(run: Run, stage: Stage, state: TrainState) -> PyTree:
    """Trains a stage from where its state stands to its end, and evaluates it.

    Args:
      state: on the host.

    Returns:
      The network's variables {`params`, `batch_stats`} at the end, on the host.
    """
    call = steps.compile_train(stage.program, run.feeds["train"].fetch)
    call = run.log.announced(call, f"the training step of {stage.name}")
    variables_of, variables = averaging.make_outcome(run, stage), None
    step, evaluation = int(state.step), None
    show_first_batch(run, stage, step)
    state = parallel.replicate(state)
    while step < stage.steps:
        epoch = step // stage.steps_per_epoch
        state, (trained,) = fit_epoch([run], [stage], call, state, step)
        step = min((epoch + 1) * stage.steps_per_epoch, stage.steps)
        looked_at = is_evaluated(run, stage, step)
        if looked_at:
            variables = variables_of(state)
        evaluation = evaluate(run, stage, variables, step) if looked_at else None
        report_epoch(run, stage, epoch, step, trained, evaluation)
    if evaluation is None:  # a run that was stopped exactly at the end of a stage is evaluated when it comes back
        variables = variables_of(state)
        evaluation = evaluate(run, stage, variables, step)
    run.history["stages"].append(outcome.stage_record(stage, evaluation))
    return parallel.to_host(variables)


def evaluate(run: Run, stage: Stage, variables: PyTree, step: int) -> dict[str, Any]:
    """Scores of `metrics.analyse` on the evaluation part with the stage's classifiers; variables are replicated.

    Raises:
      UserError: weights, running statistics or logits are not finite.
    """
    split, heads = run.source.split, stage.settings.heads
    place = f"stage {stage.name}", step, run.checkpoints.latest
    check_variables(variables, *place)
    with run.timed("evaluate"):
        with run.log.meter("evaluating", run.evaluator.batches) as update:
            found = run.evaluator(variables, (heads,), update=update)
        scores = metrics.analyse(found[heads], found[""]["label"], split.num_classes, split.divisions)
    check_logits(scores["not_finite"], scores["examples"], *place)
    return scores


def finish(run: Run, variables: PyTree) -> dict[str, Any]:
    """Writes the results and the card of a run whose last stage is done."""
    outcome.share_bad_images(run)
    if parallel.is_main():
        check_present(run.workdir)
    found = outcome.results(run, variables)
    if parallel.is_main():
        write_card(run.workdir / "card.md", found)
        write_json(run.workdir / "results.json", found)
    run.log.hyperparameters(outcome.hyperparameters(run.config), {f"final/{name}": found[name] for name in SCORES})
    if run.source.report.unreadable:
        run.log.line(f"{run.source.report.closing_line()} (all of them in results.json)")
    run.log.line(f"top-1 {found['top1']:.2f} %: results in {run.workdir / 'results.json'}")
    return found


def show_first_batch(run: Run, stage: Stage, step: int) -> None:
    """Sends augmented images of a stage's first step to TensorBoard, as the network sees them but for mixing."""
    count = run.config.train.pictures
    if step or not count or not run.log.has_tensorboard:
        return
    feed, data = run.feeds["train"], run.config.data
    _, _, inputs = next(calls(run, stage, 0))
    first = jax.tree.map(lambda x: np.asarray(x)[0, 0], inputs)
    images = steps.preview(stage.program, feed.fetch, parallel.to_host(feed.data), first, count)
    pictures = np.clip(np.asarray(images, np.float32) * np.array(data.std) + np.array(data.mean), 0, 1)
    run.log.images(stage.steps_before, "augmented", pictures)


def report_epoch(
    run: Run, stage: Stage, epoch: int, step: int, trained: EpochReport, evaluation: dict[str, Any] | None
) -> None:
    """One aligned line for a person, one JSON line for programs, and TensorBoard."""
    rate = float(stage.program.schedule(np.int32(step - 1)))
    loss = trained.means["loss"]
    values = {"epoch_loss": loss, "train_top1": trained.means["train_top1"], "learning_rate": rate}
    values["images_per_second"] = trained.images_per_second
    text = f"{stage.name} {epoch + 1:>3}/{stage.settings.epochs}  lr {rate:.4f}  loss {loss:8.4f}"
    total = stage.steps_before + step
    if evaluation:
        # `loss` alone is the training loss in every record.
        values |= {"test_loss" if name == "loss" else name: evaluation[name] for name in SCORES}
        values["experts"] = evaluation["experts"]
        shown = [entry.name for entry in SCORES.entries() if entry.options["log"]]
        text += "".join(f"  {name} {_cell(evaluation[name])}" for name in shown)
        accuracies = np.array([value for value in evaluation["per_class"] if value is not None])
        run.log.histogram(total, f"{stage.name}/per_class_top1", accuracies)
    run.log.scalars(total, values, stage=stage.name, epoch=epoch)
    run.log.line(f"{text}  {trained.images_per_second:7.0f} img/s  left {clock(trained.seconds_left)}")


def _cell(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.2f}"
