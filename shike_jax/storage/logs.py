"""What a run tells: lines for a person, JSON lines for programs, and what `writers` hand on to other programs."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from shike_jax.common import buckets, progress
from shike_jax.common.atomic import write_text
from shike_jax.common.text import parse_json, printable, say, to_json
from shike_jax.errors import UserError
from shike_jax.storage import writers

MIRROR_SECONDS = 20.0  # between copies of a log to a bucket, which cannot append


class RunLog:
    """Writes `log.txt`, `metrics.jsonl` and TensorBoard files into the work directory; only the main process does.

    `folder` is a local one for files that grow, which is copied to a work directory in a bucket.
    """

    def __init__(
        self,
        workdir: Path,
        level: str,
        active: bool,
        tensorboard: bool = True,
        name: str = "",
        loggers: Sequence[str] = (),
    ) -> None:
        """Opens the files in a folder that exists; `UserError` for a logger whose package is not installed.

        `active` is False on all processes but one. `name` is that of this run among several of one process: its lines
        begin with it where they are printed. `loggers` are names of `writers.LOGGERS`.
        """
        self._level, self._name, self.folder = level, name, workdir
        self._text: TextIO | None = None
        self._json: TextIO | None = None
        self._mirror: Mirror | None = None
        self._writers: list[writers.Writer] = []
        if not active:
            return
        self._mirror = Mirror(workdir, ("log.txt", "metrics.jsonl", *writers.CONTINUED_BY))
        self.folder = self._mirror.folder
        self._text = (self.folder / "log.txt").open("a", buffering=1, encoding="utf-8")
        self._json = (self.folder / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
        if tensorboard:
            try:
                self._writers.append(writers.tensorboard(self.folder / "tensorboard"))
            except UserError:
                self.line("no TensorBoard files (the extra tensorboard writes them)")
        self._writers += [writers.LOGGERS[name](self.folder, workdir.name) for name in loggers]

    def flush(self) -> None:
        """Returns when everything said so far is where it stays, which may be a bucket."""
        if self._mirror is not None:
            self._mirror.flush()

    def continue_after(self, step: int) -> None:
        """Keeps the records up to a step of the whole run, at which it continues.

        Those of later steps come again, and a kill may have left half a line, which would swallow the next record.
        """
        if self._json is None:
            return
        path = Path(self._json.name)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step(line) <= step]
        if kept != lines:
            write_text(path, "".join(kept))
            self._json.close()
            self._json = path.open("a", buffering=1, encoding="utf-8")

    @property
    def takes_images(self) -> bool:
        """Whether images and histograms go anywhere."""
        return bool(self._writers)

    def line(self, text: str) -> None:
        """Prints a line (not when quiet) and keeps it in log.txt."""
        if self._text is not None:
            self._keep(text)
            if self._level != "quiet":
                say(f"{self._name}{text}")

    def _keep(self, text: str) -> None:
        if self._text is not None:
            text = printable(text, keep="\n\t")
            self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextlib.contextmanager
    def meter(self, title: str, total: int) -> Iterator[progress.Update]:
        """Shows how far a piece of work is: a bar on a terminal; lines in log.txt, and elsewhere than on terminals."""
        if self._text is None or self._level == "quiet":
            yield progress.unseen
            return
        if not progress.is_terminal(sys.stdout):
            with progress.lines(title, total, self.line) as update:
                yield update
            return
        with progress.lines(title, total, self._keep) as write, progress.bar(title, total, sys.stdout) as draw:

            def update(done: int, remark: progress.Remark | None = None) -> None:
                write(done, remark)
                draw(done, remark)

            yield update

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Says that a program is being compiled before the silence, and how long it took after it."""
        began = time.monotonic()
        self.line(f"compiling {what} ...")
        yield
        self.line(f"compiled {what} in {time.monotonic() - began:.1f} s")

    def announced(self, call: Callable[..., Any], what: str) -> Callable[..., Any]:
        """A compiled function whose first call, which compiles, is announced."""
        first = iter([self.compiling(what)])

        def announced(*arguments: Any) -> Any:
            with next(first, contextlib.nullcontext()):
                return call(*arguments)

        return announced

    def debug(self, text: str) -> None:
        """As `line`, with `config.log=debug` only."""
        if self._level == "debug":
            self.line(text)

    def scalars(self, step: int, values: Mapping[str, Any], **labels: Any) -> None:
        """Records numbers at a step of the whole run; `labels` (stage, epoch) go into the JSON line only."""
        if self._json is None:
            return
        values = {k: v for k, v in values.items() if v is not None}
        self._json.write(to_json({"step": step, **labels, **values}) + "\n")
        flat = {k: float(v) for k, v in values.items() if isinstance(v, int | float | np.number)}
        flat |= {f"{k}/{i}": float(x) for k, v in values.items() if isinstance(v, list) for i, x in enumerate(v)}
        prefix = f"{labels['stage']}/" if "stage" in labels else ""
        for writer in self._writers:
            writer.write_scalars(step, {prefix + k: v for k, v in flat.items()})

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Records float images [N,H,W,3] in 0..1, where they go anywhere."""
        for writer in self._writers:
            writer.write_images(step, {name: images})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Records a histogram, where it goes anywhere."""
        for writer in self._writers:
            writer.write_histograms(step, {name: values})

    def hyperparameters(self, values: Mapping[str, Any], scores: Mapping[str, float | None]) -> None:
        """Puts a finished run into a table of runs: its settings, and the scores at its end."""
        for writer in self._writers:
            writer.write_hparams(dict(values))
            writer.write_scalars(0, {name: value for name, value in scores.items() if value is not None})

    def close(self) -> None:
        for part in (*self._writers, self._text, self._json):
            if part is not None:
                part.close()
        mirror, self._mirror = self._mirror, None
        self._text = self._json = None
        self._writers = []
        if mirror is not None:
            mirror.close()


def _step(line: str) -> float:
    """The step of a record; infinite where the line is none."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Mirror:
    """The local folder to write logs into: the work directory itself, unless that lies in a bucket."""

    def __init__(self, workdir: Any, names: tuple[str, ...]) -> None:
        """Begins with the files `names` as an earlier start of the run left them."""
        self._target, self._sent = workdir, dict[str, tuple[int, int]]()
        self._over, self._lock = threading.Event(), threading.Lock()
        self.folder: Path = workdir
        if buckets.in_bucket(workdir):
            self.folder = Path(tempfile.mkdtemp(prefix="shike_jax-"))
            for name in names:
                if (workdir / name).exists():
                    (self.folder / name).write_bytes((workdir / name).read_bytes())
                    self._sent[name] = _stamp(self.folder / name)
            threading.Thread(target=self._keep, name="mirror", daemon=True).start()

    def flush(self) -> None:
        """Returns when the bucket has every file as it is now."""
        if self.folder == self._target:
            return
        with self._lock:
            for path in sorted(self.folder.rglob("*")):
                name = path.relative_to(self.folder).as_posix()
                if path.is_file() and self._sent.get(name) != (stamp := _stamp(path)):
                    buckets.upload(path, self._target / name)
                    self._sent[name] = stamp

    def close(self) -> None:
        """As `flush`, for the last time; the local copy goes."""
        self._over.set()
        if self.folder != self._target:
            try:
                self.flush()
            finally:
                buckets.remove_tree(self.folder)

    def _keep(self) -> None:
        while not self._over.wait(MIRROR_SECONDS):
            with contextlib.suppress(Exception):  # out of reach for a moment: the next time sends all of it
                self.flush()


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


class Progress:
    """Rate and time left of a run with `examples_left` to train on, from the epochs done since this process started.

    The time left is not known (NaN) before two epochs or half a minute are done: what the first epoch spends on warming
    up would be counted for all.
    """

    def __init__(self, examples_left: int = 0) -> None:
        self.examples_left, self._done, self._seconds, self._pieces = examples_left, 0, 0.0, 0

    def advance(self, examples: int, seconds: float) -> tuple[float, float]:
        """Adds work done; returns (examples per second of this piece, seconds left for all)."""
        self.examples_left -= examples
        self._done += examples
        self._seconds += seconds
        self._pieces += 1
        return examples / max(seconds, 1e-9), self.left_after(0, 0.0)

    def left_after(self, examples: int, seconds: float) -> float:
        """Seconds left for all after further work that is not added yet; NaN where they are not known."""
        if self._pieces < 2 and self._seconds + seconds < 30:
            return math.nan
        return max(self.examples_left - examples, 0) * (self._seconds + seconds) / max(self._done + examples, 1)
