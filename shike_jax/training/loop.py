"""Training: stage after stage, each of them epochs of steps, an evaluation and a hand-over; then the results.

`config.seeds` trains several seeds in one program. A network as small as CIFAR's fills a small part of an accelerator,
whose kernels are shorter than their launches: several of them in one program take little longer than one. Each seed is
a run with its own work directory, checkpoints, logs and results, equal to what it would be alone; only the training
step is shared. Runs that stand at different steps (some were stopped later than others) train in turn, the one with
the fewest steps first. A run alone is a list of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax.cluster import parallel, preemption
from shike_jax.cluster.coordination import CompileTime
from shike_jax.common.atomic import write_json
from shike_jax.common.paths import given_path
from shike_jax.common.progress import clock
from shike_jax.common.quiet import quieted
from shike_jax.config import to_plain, validate
from shike_jax.errors import UserError
from shike_jax.evaluation import metrics
from shike_jax.methods.scores import SCORES
from shike_jax.storage.card import write_card
from shike_jax.storage.logs import RunLog
from shike_jax.storage.trouble import check_present, naming_disk_trouble
from shike_jax.storage.workdir import discard_untrained, opened
from shike_jax.training import bn_estimation, compiled_steps, outcome, steps
from shike_jax.training.epoch import EpochReport, calls, fit_epoch, is_evaluated, of_each, side_by_side
from shike_jax.training.finite import check_logits, check_variables
from shike_jax.training.setup import Run, check_devices, prepare
from shike_jax.training.state import TrainState, start_stage
from shike_jax.training.task import Stage

PyTree = Any


@dataclasses.dataclass
class Member:
    """A run and where it stands."""

    run: Run
    stage: Stage
    state: TrainState  # on the host, or replicated over the devices; `step` is its step of the stage
    variables: PyTree = None  # {`params`, `batch_stats`} of the newest evaluation, replicated; None before there is one

    def __post_init__(self) -> None:
        self.step = int(self.state.step)
        self._variables_of = bn_estimation.make_outcome(self.run, self.stage)

    @property
    def position(self) -> tuple[int, int]:
        return self.stage.index, self.step

    def evaluate(self) -> dict[str, Any]:
        """Scores of `metrics.analyse` on the evaluation part; `UserError` for weights or logits that are not finite."""
        run, heads, split = self.run, self.stage.settings.heads, self.run.source.split
        self.variables = self._variables_of(_on_devices(self.state))
        place = f"stage {self.stage.name}", self.step, run.checkpoints.latest
        check_variables(self.variables, *place)
        with run.timed("evaluate"):
            with run.log.meter("evaluating", run.evaluator.batches) as update:
                found = run.evaluator(self.variables, (heads,), update=update)
            scores = metrics.analyse(found[heads], found[""]["label"], split.num_classes, split.divisions)
        check_logits(scores["not_finite"], scores["examples"], *place)
        return scores

    def next_stage(self, variables: PyTree) -> None:
        """Begins the next stage with the variables that the last one handed over; a checkpoint holds its start."""
        self.stage = self.run.stage(self.stage.index + 1, variables["params"])
        self.state, self.step, self.variables = start_stage(variables, self.stage.program), 0, None
        self._variables_of = bn_estimation.make_outcome(self.run, self.stage)
        outcome.save_checkpoint(self.run, self.stage, self.state, 0)
        self.run.checkpoints.wait()


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], started: float | None = None
) -> dict[str, Any] | list[dict[str, Any]]:
    """Trains, evaluates and resumes: what the command `train` does, with all devices that JAX has.

    The caller's signal handlers and settings of JAX, warnings and logging stay as they are. A run that was interrupted
    continues from its last checkpoint when it is called again.

    Args:
      config: as `load_config` returns it, with any field changed.
      workdir: of this run, continued from what is found there; of `config.seeds` each trains in WORKDIR/seedN.
      started: `time.monotonic()` when the program began, for the start-up time.

    Returns:
      The results, also written to `results.json` in the work directory; of `config.seeds` a list of them in order.

    Raises:
      UserError: anything a user can fix; a wrong configuration before anything is written.
      Preempted: a signal asked to stop; the state is saved.

    >>> config = load_config("digits_lt", width=4, epochs=1, classifier_epochs=1)
    >>> for stage in config.stages.values():
    ...     stage.max_steps = 2
    >>> config.log = "quiet"
    >>> results = train(config, "run")
    >>> results["name"], len(results["experts"]), len(results["per_class"])
    ('digits_lt', 3, 10)
    """
    _check(config)
    folder = given_path(workdir, "workdir")
    if str(folder).startswith("s3://"):
        expected = "a folder or gs://BUCKET/NAME (results and weights can be read from and written to S3)"
        raise UserError(f"--workdir={folder}: Orbax saves no checkpoints in S3; expected {expected}")
    compiled = CompileTime.total if started is None else 0.0  # by this process before this run
    started = started or time.monotonic()
    if config.seeds and (folder / "config.json").exists():
        raise UserError(f"--workdir={folder}: holds a run of one seed; expected a new folder for config.seeds")
    runs = {folder / f"seed{seed}": _of_seed(config, seed) for seed in config.seeds} or {folder: config}
    with contextlib.ExitStack() as held:
        held.enter_context(quieted(config.log))
        held.callback(parallel.use_backend, parallel.use_backend(config.train.backend))
        held.callback(preemption.stay)
        held.enter_context(naming_disk_trouble(folder, list(runs)))
        results: dict[Path, dict[str, Any]] = {}
        members: list[Member] = []
        for place, own in runs.items():
            # Kept from other processes while this one is here.
            found = held.enter_context(opened(place, to_plain(own))) if parallel.is_main() else None
            if (found := parallel.from_main(found)) is not None:
                results[place] = found
                if parallel.is_main():
                    print(f"{place} is finished (top-1 {found['top1']:.2f} %): nothing to do, no data were read")
                continue
            mine = [*(member.run.workdir for member in members), place]
            members.append(_member(own, place, held, mine, f"seed {own.seed}: " if config.seeds else ""))
            if config.seeds and members[-1].run.source.images is None:
                expected = "a data source whose images lie on the device"
                raise UserError(f"config.seeds: expected {expected}, not {config.data.source!r}")
        compiling = CompileTime.total - compiled
        starting = time.monotonic() - started - compiling
        for member in members:  # time spent for all is divided among them
            member.run.history["seconds"]["start_up"] += starting / len(members)
            member.run.history["seconds"]["compile"] += compiling / len(members)
        _train(members, results)
    return [results[place] for place in runs] if config.seeds else results[folder]


def _check(config: ConfigDict) -> None:
    """Raises UserError for a configuration that cannot be trained here."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"train: a {type(config).__name__}; expected a configuration, such as load_config('cifar_lt')")
    validate(config)
    if config.dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise UserError("config.dtype='float64': expected jax.config.update('jax_enable_x64', True) before training")
    check_devices(config)
    if config.seeds and jax.process_count() > 1:
        raise UserError(f"config.seeds={tuple(config.seeds)!r}: expected one process, not {jax.process_count()}")


def _of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The configuration of one seed's own run."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.seed, own.seeds = seed, ()
    return own


def _member(config: ConfigDict, workdir: Path, held: contextlib.ExitStack, mine: Sequence[Path], name: str) -> Member:
    """The run where it stands; what it opens is closed with `held`.

    `mine` are the work directories of this process's runs so far, this one included; `name` is for the log, of one run
    among several.
    """
    log = RunLog(workdir, config.log, parallel.is_main(), config.train.tensorboard, name, config.train.loggers)
    held.callback(_quietly, log.close, OSError)
    if parallel.is_main() and jax.process_count() == 1:
        preemption.leave_at_once(functools.partial(discard_untrained, *mine))
    member = Member(*prepare(config, workdir, log))
    held.callback(member.run.profile.close)
    held.callback(_quietly, member.run.checkpoints.latest, Exception)  # waits for a save that is under way
    return member


def _quietly(call: Callable[[], Any], errors: type[Exception]) -> None:
    with contextlib.suppress(errors):  # what cannot be written has been said already
        call()


def _train(members: list[Member], results: dict[Path, dict[str, Any]]) -> None:
    """Trains runs to their ends, an epoch of the slowest ones at a time; adds their results by work directory."""
    compiled: dict[Any, Any] = {}
    while members:
        position = min(member.position for member in members)
        group = [member for member in members if member.position == position]
        which = group[0].stage.index, *(member.run.config.seed for member in group)
        if which not in compiled:  # the last one is not needed any more: a new group or stage has come
            compiled = {which: _compiled_step(group)}
        _fit_epoch(group, compiled[which])
        for member in group:
            if member.step < member.stage.steps:
                continue
            variables = parallel.to_host(member.variables)
            outcome.save_stage_weights(member.run, member.stage, variables)
            if member.stage.index + 1 < len(member.run.config.run):
                member.next_stage(variables)
            else:
                members.remove(member)
                results[member.run.workdir] = finish(member.run, variables)


def _compiled_step(group: Sequence[Member]) -> Any:
    """The training step of members that stand in one stage; it compiles when it is called first."""
    first = group[0]
    keys = jnp.stack([member.stage.program.key for member in group]) if len(group) > 1 else None
    by_onednn = first.run.by_onednn(first.stage.index)
    call = compiled_steps.compile_train(first.stage.program, first.run.feeds["train"].fetch, keys, by_onednn=by_onednn)
    for member in group:
        library = member.run.history["starts"][-1].setdefault("convolutions", {})
        library[first.stage.name] = "oneDNN" if call.by_onednn else "XLA"
    how = f", {len(group)} seeds together" if len(group) > 1 else ", convolutions by oneDNN" if call.by_onednn else ""
    return first.run.log.announced(call, f"the training step of {first.stage.name}{how}")


def _fit_epoch(group: Sequence[Member], call: Any) -> None:
    """Trains members that stand at one step to the end of its epoch, and evaluates each as configured."""
    stage, step = group[0].stage, group[0].step
    for member in group:
        show_first_batch(member.run, member.stage, step)
    state = _on_devices(side_by_side([member.state for member in group], axis=0))
    state, reports = fit_epoch([m.run for m in group], [m.stage for m in group], call, state, step)
    epoch = step // stage.steps_per_epoch
    end = min((epoch + 1) * stage.steps_per_epoch, stage.steps)
    states = of_each(state if len(group) == 1 else parallel.to_host(state), len(group))
    for member, own, report in zip(group, states, reports, strict=True):
        member.state, member.step = own, end
        evaluation = member.evaluate() if is_evaluated(member.run, stage, end) else None
        report_epoch(member.run, member.stage, epoch, end, report, evaluation)
        if evaluation and end == stage.steps:
            member.run.history["stages"].append(outcome.stage_record(member.stage, evaluation))


def _on_devices(state: TrainState) -> TrainState:
    """The state replicated over the devices, where it may lie already: after a step it does."""
    return state if isinstance(state.step, jax.Array) else parallel.replicate(state)


def finish(run: Run, variables: PyTree) -> dict[str, Any]:
    """Writes the results and the card of a run whose last stage is done."""
    run.checkpoints.close()
    outcome.share_bad_images(run)
    if parallel.is_main():
        check_present(run.workdir)
    found = outcome.results(run, variables)
    if parallel.is_main():
        write_json(run.workdir / "results.json", found)
        write_card(run.workdir / "card.md", found)
    run.log.hyperparameters(outcome.hyperparameters(run.config), {f"final/{name}": found[name] for name in SCORES})
    if run.source.report.unreadable:
        run.log.line(f"{run.source.report.closing_line()} (all of them in results.json)")
    run.log.line(f"top-1 {found['top1']:.2f} %: results in {run.workdir / 'results.json'}")
    return found


def show_first_batch(run: Run, stage: Stage, step: int) -> None:
    """Sends augmented images of a stage's first step to TensorBoard, as the network sees them but for mixing."""
    count = run.config.train.pictures
    if step or not count or not run.log.takes_images or not run.source.has_pictures:
        return
    feed, data = run.feeds["train"], run.config.data
    _, _, inputs = next(calls(run, stage, 0))
    first = jax.tree.map(lambda x: parallel.first_part(x)[0], inputs)
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
    lines = [f"{stage.name} {epoch + 1:>3}/{stage.settings.epochs}  lr {rate:.4f}  loss {loss:7.3f}"]
    lines[0] += f"  {trained.images_per_second:5.0f} img/s"
    if trained.seconds_left >= 1:  # neither at the end nor before it is known
        lines[0] += f"  left {clock(trained.seconds_left)}"
    total = stage.steps_before + step
    if evaluation:
        # `loss` alone is the training loss in every record.
        values |= {"test_loss" if name == "loss" else name: evaluation[name] for name in SCORES}
        values["experts"] = evaluation["experts"]
        shown = {entry.name: evaluation[entry.name] for entry in SCORES.entries() if entry.options["log"]}
        cells = (f"  {name} {'    -' if value is None else f'{value:5.2f}'}" for name, value in shown.items())
        lines.append("    " + "".join(cells))
        accuracies = np.array([value for value in evaluation["per_class"] if value is not None])
        run.log.histogram(total, f"{stage.name}/per_class_top1", accuracies)
    run.log.scalars(total, values, stage=stage.name, epoch=epoch)
    for line in lines:
        run.log.line(line)
