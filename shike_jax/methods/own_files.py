"""Files of a user's own that registered what a configuration names: what checkpoints remember of them.

A checkpoint keeps the name of such a file without its folder, its SHA-256, and what it registered. It is never run
unless a user gives it; what needs one of its names and does not find it says which file that is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shike_jax.errors import UserError
from shike_jax.methods.averaging import AVERAGES
from shike_jax.methods.feature_hooks import FEATURE_HOOKS
from shike_jax.methods.loss_registry import LOSSES
from shike_jax.methods.mixing import MIXINGS
from shike_jax.methods.optimizers import OPTIMIZERS
from shike_jax.methods.registry import Entry, Registry
from shike_jax.methods.samplers import SAMPLERS
from shike_jax.methods.schedules import SCHEDULES
from shike_jax.methods.scores import SCORES
from shike_jax.methods.tables import NETWORKS, POLICIES, SOURCES

_CHOSEN: dict[str, Registry[Any]] = {
    "sampler": SAMPLERS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "average": AVERAGES,
}
_ROOMS = ((NETWORKS, "model", "backbone"), (SOURCES, "data", "source"), (POLICIES, "augment", "policy"))


def remembered(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The files outside this package that registered what a configuration names: {base name: {`sha256`, `registers`}}.

    `sha256` is None where there is no file, as in an interactive session; `registers` lists `KIND NAME`.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in _named(config):
        if not entry.is_own:
            about = found.setdefault(Path(entry.file).name, {"sha256": entry.sha256, "registers": []})
            if (what := f"{entry.kind} {entry.name}") not in about["registers"]:
                about["registers"].append(what)
    return found


def _named(config: Mapping[str, Any]) -> Iterator[Entry[Any]]:
    """Everything registered that a run of the configuration uses."""
    for table, room, field in _ROOMS:
        if config[room][field] in table:
            yield table[config[room][field]]
    for name in config["run"]:
        stage = config["stages"][name]
        for table, fields in ((LOSSES, stage["loss"]), (MIXINGS, stage), (FEATURE_HOOKS, stage)):
            yield from (entry for entry, _ in table.active(fields))
        for field, table in _CHOSEN.items():
            if stage[field] in table:
                yield table[stage[field]]
    yield from SCORES.entries()


def changed(meta: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A remark on each file whose digest now, {base name: {`sha256`}}, is not the one that a checkpoint remembers."""
    lines = []
    for file, about in (meta.get("files") or {}).items():
        then, found = about["sha256"], now.get(file, {}).get("sha256")
        if then and found and then != found:
            lines.append(f"{file} has changed since this was trained: SHA-256 {then[:12]}, now {found[:12]}")
    return lines


def needed_to_use(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the files that a run remembers, those that its checkpoint cannot be used without: network and data."""
    kinds = tuple(f"{table.kind} " for table in (NETWORKS, SOURCES))
    return [file for file, about in files.items() if any(what.startswith(kinds) for what in about["registers"])]


GIVEN: dict[str, str | None] = {}  # base name: SHA-256 of the files that a user has given to register


def require(meta: Mapping[str, Any], where: Any, needed: str) -> None:
    """Raises UserError where `needed` (`KIND NAME`) is not registered, and says which file of the user's did so.

    Says on stderr where a file that was given has another digest than the checkpoint (of `meta`, at `where`) remembers.
    """
    known = {f"{table.kind} {name}" for table, _, _ in _ROOMS for name in table}
    for file, about in (meta.get("files") or {}).items():
        then = about["sha256"]
        if needed in about["registers"] and needed not in known:
            said = f"checkpoint {where}: its {needed} is registered by {file}"
            if not then:
                raise UserError(f"{said}; expected it to be registered first")
            raise UserError(f"{said} (SHA-256 {then[:12]}); expected --config={file}, or in Python to import it first")
    for line in changed(meta, {file: {"sha256": value} for file, value in GIVEN.items()}):
        print(line, file=sys.stderr)
