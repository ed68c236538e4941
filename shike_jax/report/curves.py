"""Training curves: read from the runs' metrics.jsonl, or from a CSV file to compare with."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np

from shike_jax.common.text import parse_json
from shike_jax.errors import naming
from shike_jax.report.runs import Group


@dataclasses.dataclass(frozen=True)
class Curve:
    """Training of one setting."""

    label: str
    epochs: np.ndarray  # [E], 1, 2, ... over all stages
    loss: np.ndarray  # [seeds, E]
    top1: np.ndarray  # [seeds, E], NaN where an epoch was not evaluated
    stage_starts: tuple[int, ...]  # epochs done before each stage but the first


def of_group(group: Group) -> Curve | None:
    """Reads the curves of a group's runs; None when none has kept its metrics."""
    total = sum(group.first.epochs)
    starts = tuple(int(n) for n in np.cumsum(group.first.epochs)[:-1])
    before = dict(zip(group.first.config["run"], (0, *starts), strict=True))
    loss, top1 = [], []
    for run in group.runs:
        path = run.path / "metrics.jsonl"
        if not path.exists():
            continue
        values = np.full((2, total), np.nan)
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = parse_json(line)
            except ValueError:  # a run that was killed may leave half a line
                continue
            # A resumed run repeats epochs: the later line is the one that counts.
            if "epoch_loss" in record and record["stage"] in before:
                values[:, before[record["stage"]] + record["epoch"]] = record["epoch_loss"], record.get("top1", np.nan)
        loss.append(values[0])
        top1.append(values[1])
    if not loss:
        return None
    return Curve(group.label, np.arange(1, total + 1), np.stack(loss), np.stack(top1), starts)


def of_csv(path: Path) -> Curve:
    """Reads a CSV with the columns seed, epoch (from 0), stage (1, 2), train_loss and test_top1.

    UserError where it is unreadable, lacks a column, or has seeds of different length.
    """
    kind = "a CSV file with seed, epoch, stage, train_loss, test_top1"
    with naming(f"--reference={path}", kind), path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
        seeds = sorted({row["seed"] for row in rows})
        loss, top1 = (
            np.array([[float(row[key]) for row in rows if row["seed"] == seed] for seed in seeds])
            for key in ("train_loss", "test_top1")
        )
        stages = [row["stage"] for row in rows if row["seed"] == seeds[0]]
    starts = tuple(i for i in range(1, len(stages)) if stages[i] != stages[i - 1])
    return Curve(f"reference: {path.stem}", np.arange(1, len(stages) + 1), loss, top1, starts)
