"""The runs of a sweep: the rows of the paper's tables, seeds, or the combinations of a grid."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from shike_jax.config import paper, to_plain
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.models import BACKBONES
from shike_jax.storage.workdir import examine

Settings = dict[str, str]  # field below `config.` to its value as on the command line


@dataclasses.dataclass
class Job:
    """One run: its name (ROW/seedN), directory and the arguments of `python -m shike_jax train`."""

    name: str
    workdir: Path
    arguments: list[str]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "shike_jax", "train", *self.arguments]

    def results(self) -> dict | None:
        """What the run found, when it is finished; None also where the file is damaged: the run writes it again."""
        path = self.workdir / "results.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError:
            return None


def rows(sweep: str, config: ConfigDict, grid: Sequence[str]) -> dict[str, Settings]:
    """The settings of each row of a sweep; `UserError` for a configuration that does not fit, or a malformed --set."""
    if grid and sweep != "grid":
        raise UserError(f"--set={grid[0]}: belongs to the sweep `grid`, not {sweep}")
    if sweep == "grid":
        return _grid(grid)
    return {"": {}} if sweep == "seeds" else {"table4": _table4, "table5": _table5}[sweep](config)


def _table4(config: ConfigDict) -> dict[str, Settings]:
    """Single networks have one expert without fusion; terms that are off have weight 0."""
    if len(config.model.depths) < 2 or not config.model.fusion:
        raise UserError("table4: expected a configuration with all components: several experts and fusion")
    found = {}
    for row in paper.TABLE4:
        experts, fusion, mu, nt = row.components
        settings = {} if experts else {"model.depths": _tuple(config.model.depths[:1])}
        settings |= {} if fusion else {"model.fusion": "False"}
        found[row.name] = settings | _terms_off(config, [term for term, on in (("mu", mu), ("nt", nt)) if not on])
    return found


def _table5(config: ConfigDict) -> dict[str, Settings]:
    """One expert has nobody to distil from: its terms are off."""
    backbone = config.model.backbone
    shared = len(BACKBONES[backbone].blocks) - 1 if backbone in BACKBONES else 0
    if shared < 3:
        raise UserError(f"table5: config.model.backbone={backbone!r} has {shared} shared stages; expected 3")
    found = {}
    for arrangement in paper.TABLE5:
        off = ["mu", "nt"] if len(arrangement) == 1 else []
        found[arrangement] = {"model.depths": _tuple(paper.depths_of(arrangement)), **_terms_off(config, off)}
    return found


def _terms_off(config: ConfigDict, terms: Sequence[str]) -> Settings:
    stages = config.stages
    return {f"stages.{name}.loss.{t}": "0.0" for name in config.run for t in terms if stages[name].loss[t]}


def _grid(grid: Sequence[str]) -> dict[str, Settings]:
    if not grid:
        raise UserError("grid: expected at least one --set=FIELD=VALUE,VALUE")
    axes = []
    for item in grid:
        field, _, values = item.removeprefix("config.").partition("=")
        found = [value for value in re.split(r",(?![^(]*\))", values) if value]
        if not found:
            raise UserError(f"--set={item}: expected FIELD=VALUE,VALUE, such as stages.representation.lr=0.1,0.2")
        axes.append([(field, value) for value in found])
    fields = [axis[0][0] for axis in axes]
    if len(set(fields)) < len(fields):
        raise UserError(f"--set: {', '.join(fields)} name a field twice; expected all its values in one --set")
    # As many of each field's last components as tell all fields apart; in a directory's name (1,2,1) becomes 1-2-1.
    candidates = ({f: ".".join(f.split(".")[-length:]) for f in fields} for length in itertools.count(1))
    short = next(names for names in candidates if len(set(names.values())) == len(names))
    safe = {value: re.sub(r"[^\w.+-]+", "-", value.strip("()[]'\", ")) for axis in axes for _, value in axis}
    for axis in axes:
        first: dict[str, str] = {}
        for field, value in axis:
            if (other := first.setdefault(safe[value], value)) != value or axis.count((field, value)) > 1:
                raise UserError(f"--set={field}: {other} and {value} are one directory {short[field]}={safe[value]}")
    return {"_".join(f"{short[f]}={safe[v]}" for f, v in c): dict(c) for c in itertools.product(*axes)}


def _tuple(values: Sequence[int]) -> str:
    return repr(tuple(values)).replace(" ", "")


def make_jobs(
    arguments: Sequence[str], workdir: Path, sweep: str, seeds: str = "0", grid: Sequence[str] = (), only: str = ""
) -> list[Job]:
    """Returns one job for each row and seed; every configuration is read and checked before anything starts.

    `grid` has the axes FIELD=VALUE,VALUE of the sweep `grid`; `only` names rows, with commas and `*` for anything
    (empty: all). `UserError` for a bad configuration, or a directory that belongs to another one.
    """
    config, _ = parse_config(arguments)
    jobs = []
    for name, settings in rows(sweep, config, grid).items():
        if only and not any(fnmatch.fnmatchcase(name, p) for p in only.split(",")):
            continue
        for seed in _seeds(seeds):
            changes = [f"--config.{field}={value}" for field, value in {**settings, "seed": str(seed)}.items()]
            label = f"{name}/seed{seed}" if name else f"seed{seed}"
            plain = to_plain(parse_config([*arguments, *changes])[0])
            if (workdir / label / "config.json").exists():
                examine(workdir / label, plain)
            jobs.append(Job(label, workdir / label, [*arguments, *changes, f"--workdir={workdir / label}"]))
    if not jobs:
        raise UserError(f"--rows={only}: no such row in {sweep}")
    return jobs


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(item) for item in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds={text}: expected whole numbers such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: expected each seed once")
    return seeds
