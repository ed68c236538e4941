"""What every source returns: the split, its images (or how to read them), and what had to be left out."""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shike_jax.common.text import some
from shike_jax.data.splits import Split
from shike_jax.errors import UserError

NAMED = 10  # unreadable images named as they are met, and in summaries; the rest is only counted


def allowed_faults(limit: float, total: int) -> int:
    """How many of `total` images or lines may be bad under a share `limit`; rounded up, so that small sets get one."""
    return math.ceil(limit * total)


@dataclass
class Report:
    """What was left out and why, and remarks (`notes`) that a user should see."""

    skipped: dict[str, str] = field(default_factory=dict)  # `LIST:LINE` of a bad line -> reason, once loaded
    unreadable: dict[tuple[str, str], str] = field(default_factory=dict)  # (part, image) -> reason, while reading
    notes: list[str] = field(default_factory=list)
    # Gets a line for each of the first unreadable images as they are met, from any thread.
    tell: Callable[[str], None] = logging.getLogger(__name__).warning

    skip_bad_lines: bool = False  # or stop at the first one
    limit: float = 0.0  # share of a list's lines that may be bad

    def bad_line(self, path: str, line: int, reason: str) -> None:
        """Keeps a bad line of a list; raises UserError where these are not to be skipped."""
        if not self.skip_bad_lines:
            raise UserError(f"{path}:{line}: {reason} (to leave such lines out: --config.data.bad_line=skip)")
        self.skipped[f"{path}:{line}"] = reason

    def check_bad_lines(self, path: str, bad: int, total: int) -> None:
        """Raises UserError when more than the allowed share of a list is bad."""
        if bad > allowed_faults(self.limit, total):
            where, reason = next(found for found in self.skipped.items() if found[0].startswith(f"{path}:"))
            raise UserError(
                f"{path}: {bad} of {total} lines are bad, more than config.data.bad_image_limit={self.limit:g} "
                f"allows; the first: {where}: {reason}"
            )

    def note_unreadable(self, part: str, name: str, reason: str) -> None:
        """Keeps an image that could not be read, and tells of it the first time."""
        if (part, name) not in self.unreadable:
            self.unreadable[part, name] = reason
            if len(self.unreadable) <= NAMED:
                self.tell(f"image {name} left out: {reason}")

    def bad_images(self) -> list[dict[str, str]]:
        """Returns the unreadable images as plain data: `part`, `name`, `reason`, in order of part and name."""
        found = sorted(self.unreadable.copy().items())
        return [{"part": part, "name": name, "reason": reason} for (part, name), reason in found]

    def closing_line(self) -> str:
        """One line that counts the unreadable images and names the first ones; empty when there are none."""
        found = self.bad_images()
        if not found:
            return ""
        parts = collections.Counter(one["part"] for one in found)
        names = some([one["name"] for one in found])
        counts = ", ".join(f"{part} {count}" for part, count in parts.items())
        return f"unreadable images left out: {len(found)} ({counts}): {names}"

    def lines(self, most: int = NAMED) -> list[str]:
        """Returns the report as text lines, with at most `most` of the names left out."""
        unreadable = [(name, reason) for (_, name), reason in self.unreadable.copy().items()]
        left_out = [f"  {name}: {reason}" for name, reason in (*self.skipped.items(), *unreadable)]
        if not left_out:
            return list(self.notes)
        more = [f"  ... and {len(left_out) - most} more"] if len(left_out) > most else []
        return [*self.notes, f"left out: {len(left_out)}", *left_out[:most], *more]


@dataclass
class Source:
    """A data set ready for one of the two pipelines; index i of a part is `split.parts[part]` at i."""

    split: Split
    # Small images, uint8 [N, H, W, 3] per part, or arrays [N, ...] of other kinds, which all lie on the device.
    images: dict[str, np.ndarray] | None = None
    # Or large ones: `read(part, indices)` returns the encoded bytes (JPEG, PNG, ...) of each index into the part.
    read: Callable[[str, Sequence[int]], list[bytes]] | None = None
    report: Report = field(default_factory=Report)
    root: str = ""  # folder of the files that the members name; empty where images are no files of their own
    drawn: bool = False  # parts were drawn here (see `held_out`): a run lists them in its work directory

    @property
    def has_pictures(self) -> bool:
        """Whether the examples are RGB images, which can be shown."""
        if self.images is None:
            return self.read is not None
        one = self.images["train"]
        return one.dtype == np.uint8 and one.ndim == 4 and one.shape[-1] == 3
