"""What a run needs before its first step: data, network, starting point, and the program of each stage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from shike_jax.cluster import compiled_cache, parallel
from shike_jax.cluster.coordination import CompileTime
from shike_jax.cluster.preemption import StopRequest
from shike_jax.common.extras import optional
from shike_jax.common.provenance import code_version, versions
from shike_jax.config import to_plain
from shike_jax.convert.pretrained import read_pretrained
from shike_jax.convert.warm import warm_start
from shike_jax.data.feeds import Feed, make_feeds
from shike_jax.data.held_out import evaluated_part, write_csv
from shike_jax.data.sources import Source, load
from shike_jax.data.views import view_resizer
from shike_jax.errors import UserError
from shike_jax.evaluation.evaluator import Evaluator, plain_views
from shike_jax.methods.own_files import changed, remembered
from shike_jax.storage.checkpoints import Checkpoints
from shike_jax.storage.logs import Progress, RunLog
from shike_jax.storage.trees import restore_into
from shike_jax.storage.weights import remove_unfinished
from shike_jax.training.overview import parameter_table
from shike_jax.training.plan import examples_left
from shike_jax.training.profile import Profile
from shike_jax.training.program import trained_in
from shike_jax.training.same_files import changed_files, record_files
from shike_jax.training.state import TrainState, start_stage, upgraded
from shike_jax.training.task import Stage, Task

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run(Task):
    """A task that is trained in a work directory, and what all of its stages share there."""

    workdir: Path
    log: RunLog
    feeds: dict[str, Feed]
    evaluator: Evaluator
    checkpoints: Checkpoints
    profile: Profile
    history: dict[str, Any]  # finished `stages`, `seconds` spent, `starts` of the program; saved with every checkpoint
    progress: Progress = dataclasses.field(default_factory=Progress)
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to the history: those of compilation to `compile`, all others to `name`."""
        began, compiled, seconds = time.monotonic(), CompileTime.total, self.history["seconds"]
        yield
        compiling = CompileTime.total - compiled
        seconds["compile"] += compiling
        seconds[name] += time.monotonic() - began - compiling


def check_devices(config: ConfigDict) -> None:
    """Raises UserError when there is no device, or a batch cannot be split evenly over them."""
    devices = len(parallel.find_devices())
    for name in config.run:
        size = config.stages[name].batch_size
        if size % devices:
            raise UserError(f"config.stages.{name}.batch_size={size}: expected a multiple of the {devices} devices")
    if (group := config.train.bn_group) and devices % group:
        raise UserError(f"config.train.bn_group={group}: expected 0 or a divisor of the {devices} devices")


def prepare(config: ConfigDict, workdir: Path, log: RunLog) -> tuple[Run, Stage, TrainState]:
    """Loads the data, builds the network and finds the starting point: resume, else warm start, else scratch.

    Returns the run, the stage that it stands in, and that stage's state on the host; `UserError` for anything a user
    can fix in the data, the configuration or the work directory.
    """
    run = _make_run(Task(config, _load_source(config, log)), workdir, log)
    index, step, tree = _restored(run)
    if parallel.is_main():
        _record(run, fresh=tree is None)
    _note_start(run, _start(run, index, step))
    run.progress.examples_left = examples_left(run.plans, index, step)
    warm = _warm_start(run) if tree is None else None  # before anything is computed: a missing file is named at once
    variables = run.first_variables(warm)
    if tree is None:
        _show_parameters(run, variables["params"])
    stage = run.stage(index, variables["params"])
    log.continue_after(stage.steps_before + step)
    state = start_stage(variables, stage.program)
    if tree is not None:
        state = restore_into(state, upgraded(tree, state), str(run.checkpoints.root))
        log.line(f"continuing in stage {stage.name} at step {step}")
    return run, stage, state


def _make_run(task: Task, workdir: Path, log: RunLog) -> Run:
    """The run of a task in a work directory, as if nothing had been trained there."""
    config, split = task.config, task.source.split
    feeds, part = make_feeds(task.source, config), evaluated_part(config.data)
    seen = plain_views(config.data.mean, config.data.std, jnp.dtype(config.dtype))
    announced = functools.partial(log.announced, what="the evaluation")
    size = config.eval.batch_size
    starts = [plan.steps_before for plan in task.plans[1:]]  # of stages: the ends of those before
    return Run(
        config=config,
        source=task.source,
        workdir=workdir,
        log=log,
        feeds=feeds,
        evaluator=Evaluator(task.network, feeds[part], len(split.parts[part]), size, seen, announced),
        checkpoints=Checkpoints(workdir, config.train.keep_checkpoints, config.train.keep_every_steps, starts),
        profile=_profile(config, workdir),
        history=new_history(),
    )


def _profile(config: ConfigDict, workdir: Path) -> Profile:
    index = jax.process_index()
    folder = workdir / "profile" / (f"process{index}" if index else "")
    return Profile(config.train.profile, folder, config.train.profile_all or not index)


def _restored(run: Run) -> tuple[int, int, PyTree | None]:
    """The stage and the step of the newest checkpoint that can be read (`outcome.save_checkpoint`), and its arrays.

    The run's history goes on with the checkpoint's. The start of the first stage and None where nothing was saved yet.
    """
    restored = run.checkpoints.restore(run.log.line)
    if restored is None:
        return 0, 0, None
    tree, meta = restored
    if meta["split_hash"] != run.source.split.hash:
        raise UserError(
            f"{run.workdir}: its checkpoint was trained on split {meta['split_hash'][:12]}, the data now give "
            f"{run.source.split.hash[:12]}; expected the same data"
        )
    for line in changed(meta, remembered(to_plain(run.config))):
        run.log.line(line)
    run.history.update(meta["history"])
    # Images that could not be read before the run was stopped count once.
    known = {(one["part"], one["name"]): one["reason"] for one in run.history.get("bad_images", ())}
    run.source.report.unreadable.update(known)
    return meta["stage_index"], meta["step"], tree


def _record(run: Run, fresh: bool) -> None:
    """Puts the work directory in order, and notes which images were drawn and what their files were like."""
    remove_unfinished(run.workdir / "weights")
    if run.source.drawn:
        write_csv(run.workdir / "split.csv", run.source.split)
    if fresh:
        record_files(run.workdir, run.source)
    elif changed := changed_files(run.workdir, run.source):
        run.log.line(changed)


def _show_parameters(run: Run, params: PyTree) -> None:
    """The parts of the network in the log, and with `config.log=debug` every array."""
    trained = {plan.name: trained_in(plan.settings, run.network, params) for plan in run.plans}
    for line in parameter_table(params, trained):
        run.log.line(line)
    if run.config.log == "debug":
        overview = optional("clu.parameter_overview", "no list of all parameters")
        run.log.debug(overview.get_parameter_overview(params, include_stats=False))


def new_history() -> dict[str, Any]:
    """The history of a run that has not begun."""
    return {"stages": [], "seconds": dict.fromkeys(("start_up", "compile", "train", "evaluate"), 0.0), "starts": []}


def _load_source(config: ConfigDict, log: RunLog) -> Source:
    """The data, reported in the log and compared between processes."""
    source = load(config.data)
    split = source.split
    for line in source.report.lines():
        log.line(line)
    source.report.tell = log.line if parallel.is_main() else functools.partial(print, file=sys.stderr, flush=True)
    parallel.assert_equal_everywhere(f"{code_version()} {sorted(versions().items())}", "code version")
    parallel.assert_equal_everywhere(str(sorted(to_plain(config).items())), "configuration")
    parallel.assert_equal_everywhere(split.hash, "split")
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in split.parts.items())
    log.line(f"{split.name}: {sizes}, {split.num_classes} classes, split {split.hash[:12]}")
    log.line(parallel.describe())
    if kept := compiled_cache.folder_in_use():
        log.line(f"compiled programs are kept in {kept}")
    return source


def _start(run: Run, index: int, step: int) -> dict[str, Any]:
    """Where and on what the program was started, for results.json."""
    return {
        "stage": run.plans[index].name,
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "backend": parallel.backend_in_use(),
        "steps_per_call": run.config.train.steps_per_call,
        "resizing": view_resizer(run.config),
        "version": code_version(),
    }


def _note_start(run: Run, start: dict[str, Any]) -> None:
    """Adds a start to the history, with a line in the log where the run's pixels will not be those of the last one."""
    starts = run.history.setdefault("starts", [])
    before = starts[-1].get("resizing", "pillow") if starts else start["resizing"]  # older starts do not name theirs
    if before != start["resizing"] and start["resizing"]:
        run.log.line(
            f"training views were resized by {before} before this start, and by {start['resizing']} from here on: "
            "values differ by at most one level of 255"
        )
    starts.append(start)


def _warm_start(run: Run) -> Callable[[PyTree], PyTree] | None:
    """What puts the weights of `config.init_from`, read here, in place of fresh ones; None without that field."""
    if not run.config.init_from:
        return None
    weights, names = read_pretrained(run.config.init_from, run.config.model.backbone, run.log.line)

    def warm(fresh: PyTree) -> PyTree:
        merged, report = warm_start(weights, fresh, names, run.source.split.class_names)
        for line in report.summary().splitlines():
            run.log.line(f"{run.config.init_from}: {line}")
        return merged

    return warm
