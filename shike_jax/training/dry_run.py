"""What a run would do: data, network, stages and work directory, checked and described without writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from shike_jax.cluster import parallel
from shike_jax.common.text import aligned
from shike_jax.config import to_plain
from shike_jax.data.held_out import evaluated_part
from shike_jax.data.sources import load
from shike_jax.methods.loss_registry import describe_losses
from shike_jax.storage.checkpoints import newest_checkpoint
from shike_jax.storage.workdir import examine
from shike_jax.training.overview import parameter_table
from shike_jax.training.program import trained_in
from shike_jax.training.setup import check_devices
from shike_jax.training.task import Task


def describe(config: ConfigDict, workdir: Any) -> list[str]:
    """Lines about a run of this configuration in this work directory.

    `UserError` for what would keep it from starting: missing data, impossible batches, a directory of another run.
    """
    check_devices(config)
    task = Task(config, load(config.data))
    split, part = task.source.split, evaluated_part(config.data)
    params = task.first_variables()["params"]
    rows = [["stage", "epochs", "steps", "batch", "peak lr", "losses"]]
    for plan in task.plans:
        losses = " + ".join(f"{one['weight']:g} {one['name']}" for one in describe_losses(plan.settings.loss))
        size, rate = plan.settings.batch_size, f"{plan.settings.lr:g}"
        rows.append([plan.name, f"{plan.settings.epochs}", f"{plan.steps:,}", f"{size:,}", rate, losses])
    return [
        f"{split.name}: {split.rule}",
        f"{len(task.labels):,} training images of {split.num_classes} classes, {split.class_counts.max():,} to "
        f"{split.class_counts.min():,} of a class",
        f"evaluated on {len(split.parts[part]):,} images of part {part}",
        *task.source.report.lines(),
        parallel.describe(),
        "",
        *parameter_table(params, {plan.name: trained_in(plan.settings, task.network, params) for plan in task.plans}),
        "",
        *aligned(rows, left=(0, 5)),
        "",
        _state(workdir, config),
    ]


def _state(workdir: Any, config: ConfigDict) -> str:
    if config.seeds:
        return f"{workdir}/seed{{{','.join(map(str, config.seeds))}}}: a run for each seed; nothing was written"
    if not workdir.is_dir() or not any(True for _ in workdir.iterdir()):
        return f"{workdir}: would begin; nothing was written"
    if (results := examine(workdir, to_plain(config))) is not None:
        return f"{workdir}: is finished, top-1 {results['top1']:.2f} %"
    newest = newest_checkpoint(workdir)
    return f"{workdir}: would {'continue from ' + Path(newest).name if newest else 'begin'}; nothing was written"
