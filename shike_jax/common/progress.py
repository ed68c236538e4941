"""How far a long piece of work is: a bar on a terminal, one line in half a minute everywhere else."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from shike_jax.common.text import say

EVERY = 30.0  # seconds between the lines of a log
REFRESH = 0.25  # seconds between the pictures of a bar

Remark = Callable[[], tuple[str, float]]  # what to say after the count, and the seconds left; called when it is shown
Update = Callable[..., None]  # (units done, remark=None); without `remark` the time left follows from the pace so far


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be drawn there: a terminal that knows how to move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def meter(title: str, total: int, stream: TextIO) -> contextlib.AbstractContextManager[Update]:
    """Shows how far a piece of work is, in units, while the body does it: a bar on a terminal, else `lines`."""
    if is_terminal(stream):
        return bar(title, total, stream)
    return lines(title, total, functools.partial(say, file=stream))


@contextlib.contextmanager
def lines(title: str, total: int, tell: Callable[[str], None]) -> Iterator[Update]:
    """Says how far it is once in half a minute, and nothing of work that is done before."""
    said = began = time.monotonic()

    def update(done: int, remark: Remark | None = None) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= EVERY and done < total:
            said = now
            note, left = remark() if remark else ("", _left(now - began, done, total))
            rest = "" if math.isnan(left) else f", {clock(left)} left"
            tell(f"{title}: {done:,} of {total:,}{note and ', '}{note}{rest}")

    yield update


@contextlib.contextmanager
def bar(title: str, total: int, stream: TextIO) -> Iterator[Update]:
    """A bar that gives way to what is printed meanwhile, and vanishes at the end.

    It appears with the first unit that is done: until then (compilation) the program may be ended at once, and a bar
    would leave the terminal without its cursor.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    kept = Column(no_wrap=True)
    fields = (f"{{task.fields[{field}]}}" for field in ("count", "note", "left"))
    texts = (TextColumn(field, markup=False, table_column=kept) for field in fields)
    room = BarColumn(bar_width=None, table_column=Column(ratio=1))  # the bar takes what the texts leave
    columns = (TextColumn("{task.description}", markup=False), room, *texts)
    progress = Progress(*columns, console=Console(file=stream), transient=True, expand=True, auto_refresh=False)
    task = progress.add_task(title, total=total, count="", note="", left="")
    began, drawn = time.monotonic(), 0.0

    def update(done: int, remark: Remark | None = None) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn >= REFRESH:
            drawn = now
            note, left = remark() if remark else ("", _left(now - began, done, total))
            progress.update(task, completed=done, count=f"{done:,}/{total:,}", note=note, left=clock(left))
            progress.start()
            progress.refresh()

    try:
        yield update
    finally:
        progress.stop()


def _left(seconds: float, done: int, total: int) -> float:
    return seconds * (total - done) / max(done, 1)  # at the pace so far


def unseen(done: int, remark: Remark | None = None) -> None:
    """An `Update` that shows nothing."""


def hidden(title: str, total: int) -> contextlib.AbstractContextManager[Update]:
    """A meter of which nothing is seen."""
    return contextlib.nullcontext(unseen)


def clock(seconds: float) -> str:
    """h:mm:ss; a dash for what is not known."""
    if math.isnan(seconds):
        return "-"
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
