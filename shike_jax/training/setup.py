"""What all stages of a run share: its data, network and starting point, its position and its results."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from shike_jax import __version__, models
from shike_jax.augment import make_train_augment
from shike_jax.cluster import parallel
from shike_jax.cluster.preemption import StopRequest
from shike_jax.config import to_plain
from shike_jax.convert.warm import warm_start
from shike_jax.data import sampling
from shike_jax.data.feeds import Feed, make_feeds
from shike_jax.data.host_pipeline import short_side
from shike_jax.data.sources import Source, load
from shike_jax.errors import UserError
from shike_jax.storage.checkpoints import Checkpoints, load_weights, remove_unfinished, restore_into, save_weights
from shike_jax.storage.logs import Progress, RunLog
from shike_jax.training import optim, steps
from shike_jax.training.state import start_stage

PyTree = Any


@dataclasses.dataclass
class Run:
    """What all stages of a run share."""

    config: ConfigDict
    workdir: Path
    source: Source
    network: models.ExpertNetwork
    feeds: dict[str, Feed]
    log: RunLog
    checkpoints: Checkpoints
    stop: StopRequest
    progress: Progress
    history: dict[str, Any]  # `stages` finished so far and `seconds` spent: travels with every checkpoint
    evaluators: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the training examples, int32 [N]."""
        return self.source.split.parts["train"].labels

    @functools.cached_property
    def augment(self) -> Callable[..., Any]:
        """The augmentation of all stages, normalisation included."""
        data, augment = self.config.data, self.config.augment
        return make_train_augment(
            crop="pad" if augment.crop == "pad" else "none",  # random resized crops are the host's
            pad=augment.pad,
            flip=augment.flip and augment.crop != "random_resized",
            policy=augment.policy,
            policy_args=augment.randaugment.to_dict() if augment.policy == "randaugment" else {},
            cutout=augment.cutout,
            mean=data.mean,
            std=data.std,
            dtype=self.network.dtype,
        )

    def stage_steps(self, name: str) -> tuple[int, int]:
        """(steps per epoch, steps in all) of a stage."""
        stage = self.config.stages[name]
        each = sampling.steps_per_epoch(len(self.labels), stage.batch_size, stage.keep_last)
        return each, min(each * stage.epochs, stage.max_steps or each * stage.epochs)


def check_devices(config: ConfigDict) -> None:
    """Raises UserError when there is no device, or a batch cannot be split evenly over them."""
    devices = len(parallel.find_devices())
    for name in config.run:
        size = config.stages[name].batch_size
        if size % devices:
            raise UserError(f"config.stages.{name}.batch_size={size}: expected a multiple of the {devices} devices")


def prepare(config: ConfigDict, workdir: Path, log: RunLog) -> tuple[Run, Any, tuple[int, int]]:
    """Data, network and starting point: resume, else warm start, else scratch; (run, state, (stage, step))."""
    source = load(config.data)
    split = source.split
    for line in source.report.lines():
        log.line(line)
    source.report.tell = log.line if parallel.is_main() else functools.partial(print, file=sys.stderr, flush=True)
    plain = to_plain(config)
    parallel.assert_equal_everywhere(f"{code_version()} {sorted(versions().items())}", "code version")
    parallel.assert_equal_everywhere(str(sorted(plain.items())), "configuration")
    parallel.assert_equal_everywhere(split.hash, "split")
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in split.parts.items())
    log.line(f"{split.name}: {sizes}, {split.num_classes} classes, split {split.hash[:12]}")
    log.line(parallel.describe())
    axis = parallel.AXIS if config.train.sync_bn else None
    network = models.build_model(config.model, split.num_classes, dtype=jnp.dtype(config.dtype), axis_name=axis)
    history = {"stages": [], "seconds": dict.fromkeys(("start_up", "compile", "train", "evaluate"), 0.0)}
    checkpoints = Checkpoints(str(workdir), config.train.keep_checkpoints)
    restored = checkpoints.restore(log.line)
    feeds = make_feeds(source, config)
    run = Run(config, workdir, source, network, feeds, log, checkpoints, StopRequest(), Progress(0), history)
    if parallel.is_main():
        remove_unfinished(workdir / "weights")
    warm = load_weights(config.init_from)[0] if config.init_from and restored is None else None
    fresh = models.init_variables(network, config.seed, config.data.image_size)
    if restored is None:
        state, start = _initial_variables(run, fresh, warm), (0, 0)
    else:
        tree, meta = restored
        if meta["split_hash"] != split.hash:
            raise UserError(
                f"{workdir}: its checkpoint was trained on split {meta['split_hash'][:12]}, the data now give "
                f"{split.hash[:12]}; expected the same data"
            )
        run.history = meta["history"]
        met = {(one["part"], one["name"]): one["reason"] for one in run.history.get("bad_images", ())}
        source.report.unreadable.update(met)
        start = (meta["stage_index"], meta["step"])
        program = make_program(run, start[0], config.run[start[0]], fresh["params"])
        state = restore_into(start_stage(fresh, program.optimizer, program.updated), tree, str(checkpoints.root))
        log.line(f"continuing in stage {meta['stage']} at step {meta['step']}")
    left = sum(run.stage_steps(name)[1] * config.stages[name].batch_size for name in config.run[start[0] :])
    run.progress = Progress(left - start[1] * config.stages[config.run[start[0]]].batch_size)
    return run, state, start


def _initial_variables(run: Run, fresh: PyTree, warm: PyTree | None) -> PyTree:
    if warm is None:
        return fresh
    merged, report = warm_start(warm, fresh)
    for line in report.summary().splitlines():
        run.log.line(f"{run.config.init_from}: {line}")
    return merged


def make_program(run: Run, index: int, name: str, params: PyTree) -> steps.Program:
    """The stage's step, from its configuration."""
    config, stage = run.config, run.config.stages[name]
    # A set of classifiers that the stage does not use has no gradient: as in PyTorch, weight decay leaves it alone too.
    unused = tuple(f"heads/{heads}/" for heads in models.HEAD_SETS if heads != stage.heads)
    trainable = optim.trainable_mask(params, stage.train, unused)
    return steps.Program(
        network=run.network,
        stage=to_plain(stage),
        class_counts=jnp.asarray(run.source.split.class_counts),
        trainable=trainable,
        updated=jax.tree.map(lambda _: True, trainable) if stage.decay_frozen else trainable,
        optimizer=optim.sgd(stage.momentum, stage.weight_decay),
        schedule=optim.learning_rate(stage, stage.epochs, run.stage_steps(name)[0]),
        augment=run.augment,
        key=jax.random.fold_in(jax.random.key(config.seed), index),
    )


def position(run: Run, index: int, name: str, step: int) -> dict[str, Any]:
    """What a checkpoint remembers beside the state: where the run stands, on which data, and what it has found.

    To be called by all processes together.
    """
    share_bad_images(run)
    return {
        "stage": name,
        "stage_index": index,
        "step": step,
        "split_hash": run.source.split.hash,
        "config": to_plain(run.config),
        "history": run.history,
        "version": __version__,
    }


def share_bad_images(run: Run) -> None:
    """Adds what the other processes could not read to this one's report and to the history; by all together."""
    if run.source.images is not None:
        return
    for unreadable in parallel.gather(run.source.report.unreadable.copy()):
        run.source.report.unreadable.update(unreadable)
    run.history["bad_images"] = run.source.report.bad_images()


def save_stage(run: Run, index: int, name: str, variables: PyTree) -> None:
    """Writes weights/NAME, unless an earlier start of this run already has."""
    if (run.workdir / "weights" / name).exists():
        return
    data, stage = run.config.data, run.config.stages[name]
    meta = {
        "model": to_plain(run.config.model),
        "num_classes": run.source.split.num_classes,
        "class_names": list(run.source.split.class_names),
        "image_size": data.image_size,
        "resize": short_side(data) if run.source.images is None else data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "heads": stage.heads,
        "stage": name,
        "stage_index": index,
        "split_hash": run.source.split.hash,
        "config": to_plain(run.config),
        "version": __version__,
    }
    save_weights(run.workdir / "weights" / name, variables, meta)


def results(run: Run, variables: PyTree) -> dict[str, Any]:
    """The machine-readable end of a run (`results.json`); accuracies in percent, of the last epoch.

    To be called by all processes together.
    """
    share_bad_images(run)
    split, stages, bad = run.source.split, run.history["stages"], run.source.report.bad_images()
    details = ("per_class", "experts_per_class")
    last = stages[-1]
    return {
        **{key: last[key] for key in ("top1", "top5", "many", "medium", "few", "experts")},
        "stages": [{k: v for k, v in stage.items() if k not in details} for stage in stages],
        "per_class": last["per_class"],
        "experts_per_class": last["experts_per_class"],
        "name": run.config.name,
        "seed": run.config.seed,
        "num_parameters": models.num_parameters(variables["params"]),
        "split": split.summary(),
        "bad_images": {"count": len(bad), "limit": run.config.data.bad_image_limit, "list": bad},
        "seconds": {name: round(value, 2) for name, value in run.history["seconds"].items()},
        "versions": versions(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "config": to_plain(run.config),
    }


def code_version() -> str:
    """The package's version and a digest of its source files."""
    import hashlib

    package, total = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on."""
    import platform

    import flax
    import optax
    import orbax.checkpoint

    libraries = {"jax": jax, "flax": flax, "optax": optax, "orbax": orbax.checkpoint, "numpy": np}
    return {
        "shike_jax": __version__,
        "python": platform.python_version(),
        **{k: v.__version__ for k, v in libraries.items()},
    }
