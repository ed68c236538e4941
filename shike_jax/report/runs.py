"""Finished runs: found below folders, known by data set and settings, grouped over seeds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shike_jax.common import buckets
from shike_jax.common.text import parse_json
from shike_jax.config import paper, with_defaults
from shike_jax.config.fields import flat, tells_apart

WEIGHTS = (".loss.mu", ".loss.nt")
ABLATED = ("model.depths", "model.fusion", *WEIGHTS)  # what tables 4 and 5 vary (ends of field names)


@dataclasses.dataclass(frozen=True)
class Run:
    """One work directory, with the content of its results.json."""

    path: Path
    results: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.results["config"]

    @property
    def seed(self) -> int:
        return self.results["seed"]

    @property
    def dataset(self) -> str:
        """A name of `paper.DATASETS`, else the split's own."""
        counts = self.results["split"]["class_counts"]
        return paper.DATASETS.get((len(counts), sum(counts)), self.results["split"]["name"])

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(stage["epochs"] for stage in self.results["stages"])

    @property
    def components(self) -> tuple[bool, bool, bool, bool]:
        """(several experts, fusion, mutual distillation, non-target distillation), as table 4 counts them."""
        losses = [self.config["stages"][name]["loss"] for name in self.config["run"]]
        model = self.config["model"]
        mutual, non_target = (any(loss[term] for loss in losses) for term in ("mu", "nt"))
        return len(model["depths"]) > 1, bool(model["fusion"]), mutual, non_target

    @property
    def depths(self) -> tuple[int, ...]:
        """The shared stage of each expert."""
        return tuple(self.config["model"]["depths"])

    @property
    def is_h2t(self) -> bool:
        """Whether a stage exchanges channels."""
        return any(self.config["stages"][name].get("exchange") for name in self.config["run"])

    def settings(self) -> dict[str, Any]:
        """Dotted field to value, without the seed, what has no influence on results, and stages that are not run."""
        unused = tuple(f"stages.{name}." for name in self.config["stages"] if name not in self.config["run"])
        apart = (item for item in flat(self.config).items() if item[0] != "seed" and tells_apart(item[0]))
        return {field: value for field, value in apart if not field.startswith(unused)}


@dataclasses.dataclass
class Group:
    """Runs that differ in nothing but their seeds; the label names their settings."""

    runs: list[Run]  # one of each seed, by seed
    label: str = ""
    # Further runs of a seed that is there already: no independent measurement, so they do not count.
    repeats: list[Run] = dataclasses.field(default_factory=list)

    @property
    def first(self) -> Run:
        return self.runs[0]

    def values(self, key: str, stage: int = -1) -> list[float]:
        """`key` (top1, many, ...) of each run at the end of a stage, where it is known."""
        values = [run.results["stages"][stage].get(key) for run in self.runs]
        return [value for value in values if value is not None]

    def repeated(self) -> list[str]:
        """Names each run that does not count, and the run of its seed that does."""
        counted, lines = {run.seed: run.path for run in self.runs}, []
        for run in self.repeats:
            one, other = str(run.path), str(counted[run.seed])
            if buckets.in_bucket(one) == buckets.in_bucket(other):  # else nothing is above both
                above = os.path.commonpath([one, other])
                one, other = os.path.relpath(one, above), os.path.relpath(other, above)
            lines.append(f"{self.label}, seed {run.seed}: {one} repeats {other} and is not counted")
        return lines


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation: `54.23 ± 0.31`; one value alone; `-` for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def collect(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs below the folders in order of path, and one line for each results.json that is not of a run."""
    runs, problems = [], []
    paths = sorted({path for folder in folders for path in buckets.find(folder, "results.json")}, key=str)
    for path in paths:
        try:
            results = parse_json(path.read_text(encoding="utf-8"))
            results["config"] = with_defaults(results["config"])  # older code did not know all fields
            run = Run(path.parent, results)
            _ = run.seed + 0, run.dataset, run.epochs, run.components, run.settings(), run.results["top1"]
            runs.append(run)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            problems.append(f"{path}: not the results of a run ({type(error).__name__}: {error})")
    return runs, problems


def by_dataset(runs: Sequence[Run]) -> dict[str, list[Group]]:
    """Groups runs of equal settings, per data set, labelled by what tells them apart.

    Of several runs of one setting and seed the first counts; the others are the group's `repeats`.
    """
    datasets: dict[str, dict[str, Group]] = {}
    for run in runs:
        key = json.dumps([run.settings(), run.results["split"]["hash"]], sort_keys=True)
        group = datasets.setdefault(run.dataset, {}).setdefault(key, Group([]))
        known = run.seed in (other.seed for other in group.runs)
        (group.repeats if known else group.runs).append(run)
    grouped = {}
    for name, groups in datasets.items():
        grouped[name] = list(groups.values())
        for group in grouped[name]:
            group.runs.sort(key=lambda run: run.seed)
        _label(grouped[name])
        grouped[name].sort(key=_order)
    return grouped


def _order(group: Group) -> tuple[Any, ...]:
    """As in tables 4 and 5."""
    rows, run = [row.components for row in paper.TABLE4], group.first
    place = rows.index(run.components) if run.components in rows else sum(run.components)
    return place, len(run.depths), run.depths, group.label


def differing(groups: Sequence[Group]) -> list[str]:
    """Dotted fields in which the groups' settings differ; of stages that only some of them run, `run` alone."""
    settings = [group.first.settings() for group in groups]
    common = set.intersection(*(set(group.first.config["run"]) for group in groups))
    fields = sorted({field for one in settings for field in one})
    fields = [field for field in fields if not field.startswith("stages.") or field.split(".")[1] in common]
    return [field for field in fields if any(one.get(field) != settings[0].get(field) for one in settings)]


def _label(groups: list[Group]) -> None:
    """Names a table's rows where only its components differ, else the settings that differ."""
    fields = [field for field in differing(groups) if field != "name"]
    titles = {row.components: row.title for row in paper.TABLE4}
    rows = [titles.get(group.first.components) for group in groups]
    named = fields and all(field.endswith(ABLATED) for field in fields) and None not in rows
    for group, row in zip(groups, rows, strict=True):
        if named and row is not None:
            group.label = row if rows.count(row) == 1 else f"{row}, {paper.letters(group.first.depths)}"
        else:
            group.label = ", ".join([group.first.results["name"], *_stated(group, fields)])
    _tell_apart(groups)


def _tell_apart(groups: Sequence[Group]) -> None:
    """Adds to equal labels what differs among their groups alone, such as fields of a stage that not all groups run."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.label, []).append(group)
    for label, same in alike.items():
        fields = differing(same) if len(same) > 1 else []
        for number, group in enumerate(same, 1):
            if len(same) > 1:  # nothing but the data themselves may differ
                group.label = ", ".join([label, *(_stated(group, fields) or [f"split {number}"])])


def _stated(group: Group, fields: Sequence[str]) -> list[str]:
    """`field=value` of those fields that a group has."""
    settings, texts = group.first.settings(), []
    for field in fields:
        if field in settings:
            value = settings[field]
            text = f"({','.join(map(str, value))})" if isinstance(value, list) else str(value)
            texts.append(f"{field.removeprefix('stages.').removeprefix('model.').removeprefix('data.')}={text}")
    return texts


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of the same data that differ in nothing but what tables 4 and 5 vary: depths, and what is on or off.

    A loss has one weight in a family: groups with another one are of another family, groups without it of each.
    """
    by_settings: dict[str, list[Group]] = {}
    for group in groups:
        same = {k: v for k, v in group.first.settings().items() if not k.endswith(ABLATED) and k != "name"}
        key = json.dumps([same, group.first.results["split"]["hash"]], sort_keys=True)
        by_settings.setdefault(key, []).append(group)
    return [family for alike in by_settings.values() for family in _by_weights(alike)]


def weights_of(group: Group) -> dict[str, float]:
    """Dotted field to value of the ablated losses that are on."""
    return {field: value for field, value in group.first.settings().items() if field.endswith(WEIGHTS) and value}


def _by_weights(groups: Sequence[Group]) -> list[list[Group]]:
    own = [weights_of(group) for group in groups]
    values: dict[str, dict[float, None]] = {}
    for field, value in (item for one in own for item in one.items()):
        values.setdefault(field, {})[value] = None
    found: dict[frozenset[int], None] = {}
    for chosen in itertools.product(*values.values()):
        weights = dict(zip(values, chosen, strict=True)).items()
        found[frozenset(i for i, one in enumerate(own) if one.items() <= weights)] = None
    # Weights that no group has together leave a part of another family.
    return [[groups[i] for i in sorted(one)] for one in found if not any(one < other for other in found)]


def main_group(groups: Sequence[Group]) -> Group:
    """The one whose figures are drawn: most components, then most experts, then the most seeds."""
    return max(groups, key=lambda g: (sum(g.first.components), len(g.first.depths), len(g.runs)))


def single_group(groups: Sequence[Group]) -> Group | None:
    """The single network that figure 4 compares with: one expert, no fusion where there is a choice."""
    singles = [group for group in groups if not group.first.components[0]]
    return min(singles, key=lambda group: sum(group.first.components)) if singles else None
