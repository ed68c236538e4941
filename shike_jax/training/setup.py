"""What a run needs before its first step: data, network, starting point, and the program of each stage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax import models
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
from shike_jax.data.views import device_augment, images_seen
from shike_jax.errors import UserError
from shike_jax.evaluation.evaluator import Evaluator, plain_views
from shike_jax.methods.own_files import changed, remembered
from shike_jax.methods.scores import check_scores
from shike_jax.storage.checkpoints import Checkpoints
from shike_jax.storage.logs import Progress, RunLog
from shike_jax.storage.trees import restore_into
from shike_jax.storage.weights import remove_unfinished
from shike_jax.training import randomness
from shike_jax.training.loss_variables import with_losses
from shike_jax.training.overview import parameter_table
from shike_jax.training.plan import StagePlan, examples_left, plan_stages
from shike_jax.training.profile import Profile
from shike_jax.training.program import Program, check_stage, make_program, trained_in
from shike_jax.training.same_files import changed_files, record_files
from shike_jax.training.state import TrainState, start_stage, upgraded

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    config: ConfigDict
    workdir: Path
    source: Source
    plans: tuple[StagePlan, ...]  # of its stages, in order
    network: Any
    feeds: dict[str, Feed]
    evaluator: Evaluator
    log: RunLog
    checkpoints: Checkpoints
    stop: StopRequest
    progress: Progress
    profile: Profile
    history: dict[str, Any]  # finished `stages`, `seconds` spent, `starts` of the program; saved with every checkpoint

    @property
    def labels(self) -> np.ndarray:
        """Labels of the training examples, int32 [N]."""
        return self.source.split.parts["train"].labels

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to the history: those of compilation to `compile`, all others to `name`."""
        began, compiled, seconds = time.monotonic(), CompileTime.total, self.history["seconds"]
        yield
        compiling = CompileTime.total - compiled
        seconds["compile"] += compiling
        seconds[name] += time.monotonic() - began - compiling


@dataclasses.dataclass(frozen=True)
class Stage(StagePlan):
    """A stage that is trained: its place and length, and what its steps do."""

    program: Program


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
    source = _load_source(config, log)
    plans = plan_stages(config, len(source.split.parts["train"]))
    starts = [plan.steps_before for plan in plans[1:]]  # of stages: the ends of those before
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, config.train.keep_every_steps, starts)
    position, tree = _restored(checkpoints, workdir, source, log, config)
    index, step, history = (position[name] for name in ("stage_index", "step", "history"))
    if parallel.is_main():
        _record(workdir, source, log, fresh=tree is None)
    history.setdefault("starts", []).append(_start(config, index, step))
    network = network_of(config, source.split.num_classes)
    feeds, part = make_feeds(source, config), evaluated_part(config.data)
    images, seen = (
        len(source.split.parts[part]),
        plain_views(config.data.mean, config.data.std, jnp.dtype(config.dtype)),
    )
    announced = functools.partial(log.announced, what="the evaluation")
    run = Run(
        config=config,
        workdir=workdir,
        source=source,
        plans=plans,
        network=network,
        feeds=feeds,
        evaluator=Evaluator(network, feeds[part], images, config.eval.batch_size, seen, announced),
        log=log,
        checkpoints=checkpoints,
        stop=StopRequest(),
        progress=Progress(examples_left(plans, index, step)),
        profile=_profile(config, workdir),
        history=history,
    )
    warm = None
    if tree is None and config.init_from:  # read before anything is computed: a missing file is named at once
        weights = read_pretrained(config.init_from, config.model.backbone, log.line)
        warm = functools.partial(_warm_started, run, weights)
    variables = first_variables(config, source, plans, network, warm)
    if tree is None:
        _show_parameters(run, variables["params"])
    stage = make_stage(config, plans[index], network, variables["params"], source.split.class_counts)
    log.continue_after(stage.steps_before + step)
    state = start_stage(variables, stage.program)
    if tree is not None:
        state = restore_into(state, upgraded(tree, state), str(checkpoints.root))
        log.line(f"continuing in stage {stage.name} at step {step}")
    return run, stage, state


def first_variables(
    config: ConfigDict,
    source: Source,
    plans: Sequence[StagePlan],
    network: Any,
    warm: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
    """The variables {`params`, `batch_stats`} that a run begins with, on the host, those of losses included.

    `warm` puts the weights of another run in place of the network's own. Raises `UserError` for a network, score, loss
    or feature hook of the planned stages that does not work with the others.
    """
    split, images = source.split, images_seen(source, config)
    variables = models.init_variables(network, config.seed, images)
    sizes = models.sizes_of(network, variables, images, split.num_classes)
    check_scores(split.num_classes, split.divisions, sizes[0])
    if warm is not None:
        variables = warm(variables)
    for plan in plans:
        check_stage(plan.name, plan.settings, network, sizes, split.class_counts)
    stages = [plan.settings for plan in plans]
    variables = with_losses(variables, stages, sizes, split.class_counts, config.seed)
    return jax.tree.map(np.asarray, variables)


def _profile(config: ConfigDict, workdir: Path) -> Profile:
    index = jax.process_index()
    folder = workdir / "profile" / (f"process{index}" if index else "")
    return Profile(config.train.profile, folder, config.train.profile_all or not index)


def _restored(
    checkpoints: Checkpoints, workdir: Path, source: Source, log: RunLog, config: ConfigDict
) -> tuple[dict[str, Any], PyTree | None]:
    """Where the newest checkpoint that can be read stands (`outcome.save_checkpoint`), and its arrays; None for a run
    that has not begun.
    """
    restored = checkpoints.restore(log.line)
    if restored is None:
        return {"stage_index": 0, "step": 0, "history": new_history()}, None
    tree, meta = restored
    if meta["split_hash"] != source.split.hash:
        raise UserError(
            f"{workdir}: its checkpoint was trained on split {meta['split_hash'][:12]}, the data now give "
            f"{source.split.hash[:12]}; expected the same data"
        )
    for line in changed(meta, remembered(to_plain(config))):
        log.line(line)
    # Images that could not be read before the run was stopped count once.
    known = {(one["part"], one["name"]): one["reason"] for one in meta["history"].get("bad_images", ())}
    source.report.unreadable.update(known)
    return meta, tree


def _record(workdir: Path, source: Source, log: RunLog, fresh: bool) -> None:
    """Puts the work directory in order, and notes which images were drawn and what their files were like."""
    remove_unfinished(workdir / "weights")
    if source.drawn:
        write_csv(workdir / "split.csv", source.split)
    if fresh:
        record_files(workdir, source)
    elif changed := changed_files(workdir, source):
        log.line(changed)


def _show_parameters(run: Run, params: PyTree) -> None:
    """The parts of the network in the log, and with `config.log=debug` every array."""
    trained = {plan.name: trained_in(plan.settings, run.network, params) for plan in run.plans}
    for line in parameter_table(params, trained):
        run.log.line(line)
    if run.config.log == "debug":
        overview = optional("clu.parameter_overview", "no list of all parameters")
        run.log.debug(overview.get_parameter_overview(params, include_stats=False))


def network_of(config: ConfigDict, classes: int) -> Any:
    """The network of a run, with the device axis of its BN statistics."""
    axis = parallel.bn_axis(config.train.sync_bn, config.train.bn_group)
    return models.build_model(config.model, classes, dtype=jnp.dtype(config.dtype), axis_name=axis)


def make_stage(
    config: ConfigDict, plan: StagePlan, network: Any, params: PyTree, class_counts: np.ndarray, platform: str = ""
) -> Stage:
    """A planned stage with its program; `params` (or shapes) give the names of the parameters.

    `platform` is what the steps are compiled for; empty: the one that JAX computes on.
    """
    augment = device_augment(config, jnp.dtype(config.dtype), platform)
    key = randomness.stage_key(config.seed, plan.index)
    lengths = plan.steps_per_epoch, plan.steps
    program = make_program(plan.settings, network, params, class_counts, augment, key, *lengths)
    return Stage(**vars(plan), program=program)


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


def _start(config: ConfigDict, index: int, step: int) -> dict[str, Any]:
    """Where and on what the program was started, for results.json."""
    return {
        "stage": config.run[index],
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "backend": config.train.backend,
        "steps_per_call": config.train.steps_per_call,
        "version": code_version(),
    }


def _warm_started(run: Run, weights: tuple[PyTree, tuple[str, ...] | None], fresh: PyTree) -> PyTree:
    variables, names = weights
    merged, report = warm_start(variables, fresh, names, run.source.split.class_names)
    for line in report.summary().splitlines():
        run.log.line(f"{run.config.init_from}: {line}")
    return merged
