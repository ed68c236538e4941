"""Writes docs/registries.md from the registries themselves: `python docs/registries.py`."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a clone that is not installed

from shike_jax.augment import POLICIES
from shike_jax.data import SOURCES
from shike_jax.methods import (
    ADJUSTMENTS,
    AVERAGES,
    FEATURE_HOOKS,
    LOSSES,
    MIXINGS,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULES,
    SCORES,
    Choice,
    Registry,
    default_of,
)
from shike_jax.models import NETWORKS

PAGE = Path(__file__).with_name("registries.md")
# registry: (name, module that it is imported from, where a configuration chooses from it)
TABLES = {
    LOSSES: ("LOSSES", "methods", "`config.stages.STAGE.loss.NAME`, the weight; parameters next to it"),
    MIXINGS: ("MIXINGS", "methods", "`config.stages.STAGE.NAME`, the strength"),
    FEATURE_HOOKS: ("FEATURE_HOOKS", "methods", "`config.stages.STAGE.NAME`, the strength"),
    SAMPLERS: ("SAMPLERS", "methods", "`config.stages.STAGE.sampler`"),
    SCHEDULES: ("SCHEDULES", "methods", "`config.stages.STAGE.schedule`"),
    OPTIMIZERS: ("OPTIMIZERS", "methods", "`config.stages.STAGE.optimizer`"),
    AVERAGES: ("AVERAGES", "methods", "`config.stages.STAGE.average`"),
    NETWORKS: ("NETWORKS", "models", "`config.model.backbone`; parameters in `config.model.NAME`"),
    SOURCES: ("SOURCES", "data", "`config.data.source`; parameters in `config.data.NAME`"),
    POLICIES: ("POLICIES", "augment", "`config.augment.policy`; parameters in `config.augment.NAME`"),
    ADJUSTMENTS: ("ADJUSTMENTS", "methods", "`evaluate --adjust=NAME`"),
    SCORES: ("SCORES", "methods", "nowhere: every registered score is computed"),
}
HEAD = """\
# All registries

Written by `python docs/registries.py` from the registries themselves; [extend.md](extend.md) explains how a method is
put together from them. `NAME.register(name, parameters={...}, **options)(function)` adds an entry, and so does the same
as a decorator. A parameter is declared with its default, a `Number(default, low=, below=)` or a `Choice(values)` of
`shike_jax.methods`.

What cannot be extended: the loop itself (stages, epochs, steps; one optimiser and one backward pass a step), the order
augment, mix, features, hooks, classify, losses within a step, the kinds of variables that a network may have (`params`
and `batch_stats`), images of several sizes in one batch, more than one label for an example, and losses that need the
gradient of another loss. A method that needs these calls the functions of this package from a loop of its own
([library.md](library.md)).
"""


def text_of(registry: Registry) -> str:
    """The section of one registry."""
    name, room, field = TABLES[registry]
    lines = [f"## {name}: {registry.kind}", "", f"`from shike_jax.{room} import {name}`; chosen by {field}.", ""]
    lines += [*textwrap.wrap(f"Called with {_code(registry.call)}.", 118), ""]
    if registry.inputs is not None:
        attributes = inspect.getdoc(registry.inputs).partition("Attributes:")[2]
        lines += [f"`{registry.inputs.__name__}`:", "", *_items(textwrap.dedent(attributes.strip("\n"))), ""]
    if registry.options:
        lines += ["| option | default | meaning |", "|---|---|---|"]
        lines += [f"| `{k}` | `{option.default!r}` | {option.about} |" for k, option in registry.options.items()]
        lines.append("")
    lines += ["| entry | parameters | |", "|---|---|---|"]
    for entry in registry.entries():
        parameters = ", ".join(f"`{k}={_default(declared)}`" for k, declared in entry.parameters.items())
        about = (inspect.getdoc(entry.function) or "").partition("\n")[0]
        lines.append(f"| `{entry.name}` | {parameters} | {about} |")
    return "\n".join(lines)


def _code(call: str) -> str:
    """The arguments of a call as code, the rest as text."""
    arguments, _, result = call.partition(") to ")
    return f"`{arguments})`: {result}"


def _items(text: str) -> list[str]:
    """Lines `name: what it is`, some of them continued by indented ones, as a list."""
    items = []
    for line in text.splitlines():
        name, _, about = line.partition(":")
        items.append(f"  {line.strip()}" if line[:1].isspace() else f"* `{name}`:{about}")
    return items


def _default(declared: object) -> str:
    return " or ".join(declared.values) if isinstance(declared, Choice) else repr(default_of(declared))


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), *map(text_of, TABLES)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
