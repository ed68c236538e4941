"""What every source returns: the split, its images (or how to read them), and what had to be left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shike_jax.data.splits import Split


def allowed_faults(limit: float, total: int) -> int:
    """How many of `total` images or lines may be bad under a share `limit`; rounded up, so that small sets get one."""
    return math.ceil(limit * total)


@dataclass
class Report:
    """What was skipped and why, and remarks that a user should see."""

    skipped: dict[str, str] = field(default_factory=dict)  # name of the image -> reason
    notes: list[str] = field(default_factory=list)

    def lines(self, most: int = 10) -> list[str]:
        """Returns the report as text lines, with at most `most` of the skipped names."""
        lines = list(self.notes)
        if self.skipped:
            lines.append(f"left out: {len(self.skipped)}")
            lines += [f"  {name}: {reason}" for name, reason in list(self.skipped.items())[:most]]
            if len(self.skipped) > most:
                lines.append(f"  ... and {len(self.skipped) - most} more")
        return lines


@dataclass
class Source:
    """A data set ready for one of the two pipelines; index i of a part is `split.parts[part]` at i.

    Attributes:
      images: small images, uint8 [N, H, W, 3] per part; None when `read` is given.
      read: large images: `read(part, indices)` returns the encoded bytes (JPEG, PNG, ...) of each index into the part.
    """

    split: Split
    images: dict[str, np.ndarray] | None = None
    read: Callable[[str, Sequence[int]], list[bytes]] | None = None
    report: Report = field(default_factory=Report)
