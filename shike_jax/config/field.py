"""What one field of a configuration declares, and everything that follows from it: its check, its message, its help."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from shike_jax.errors import UserError
from shike_jax.methods.registry import Choice, Number, default_of


@dataclasses.dataclass(frozen=True)
class Field:
    """One field: the type of its values is that of the default, and numbers must be finite."""

    default: Any  # a bool, int, float, str or tuple; an empty dict stands for free entries, which are not checked
    about: str  # what it is, in a line
    unit: str = ""  # of numbers, where they have one
    low: float = -math.inf  # bounds that a number may reach
    high: float = math.inf
    above: float = -math.inf  # bounds that it may not reach
    below: float = math.inf
    # The texts to choose from, or a function that lists them where a registry may grow.
    choices: Callable[[], Iterable[str]] | tuple[str, ...] = ()
    items: type | None = None  # the type of a tuple's elements, to which all bounds and rules apply
    length: tuple[int, float] = (0, math.inf)  # the least and the largest number of a tuple's elements
    rule: tuple[Callable[[Any], Any], str] | None = None  # a further condition on a value, and what is expected
    free: bool = False  # may differ when a run continues, and has no influence on results but by rounding
    start: bool = False  # is read when a run starts and never again: may differ later, but tells runs apart

    @classmethod
    def declared(cls, declared: Any, about: str) -> Field:
        """The field of a registered function's parameter: a default value, a `Choice` or a `Number`."""
        default = default_of(declared)
        if isinstance(declared, Choice):
            return cls(default, about, choices=declared.values)
        if isinstance(declared, Number):
            return cls(default, about, low=declared.low, below=declared.below)
        return cls(default, about)

    def check(self, path: str, value: Any) -> None:
        """Raises UserError naming `config.PATH`, the value and what is expected, unless the field admits the value."""
        if not self.admits(value):
            raise UserError(f"config.{path}={value!r}: expected {self.expected()}")

    def admits(self, value: Any) -> bool:
        """Whether the field may have this value, as far as it can be told without the others."""
        if isinstance(self.default, dict) or self.default is None:
            return True
        if not isinstance(self.default, tuple):
            return self._admits_one(value, type(self.default))
        if not isinstance(value, tuple | list) or not self.length[0] <= len(value) <= self.length[1]:
            return False
        return all(self._admits_one(item, self.items) for item in value)

    def _admits_one(self, value: Any, kind: type | None) -> bool:
        if kind is bool or kind is str:
            fits = isinstance(value, kind) and (not self.choices or value in self._listed())
        else:
            fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            fits = fits and abs(value) <= sys.float_info.max  # whole numbers may be beyond it, which is no number here
            fits = fits and self.low <= value <= self.high and self.above < value < self.below
        return fits and (not self.rule or bool(self.rule[0](value)))

    def expected(self) -> str:
        """What the field takes, as the end of a sentence: `a number from 0 to 1`, `one of pad, none`."""
        several = isinstance(self.default, tuple)
        kind = self.items if several else type(self.default)
        number = f"{'whole ' if kind is int else ''}number"
        if self.choices:
            what = f"{'of' if several else 'one of'} {', '.join(self._listed())}"
        elif self.rule:
            what = self.rule[1]
        elif several:
            what = f"{number}s{self._bounds()}"
        elif kind in (bool, str):
            what = "True or False" if kind is bool else "a text"
        else:
            what = f"a {number}{self._bounds()}{f' ({self.unit})' if self.unit else ''}"
        example = f", such as {self.default}" if self.default else ""
        return f"a tuple of {self._amount()}{what}{example}" if several else what

    def _amount(self) -> str:
        least, most = self.length
        if least == most:
            return f"{least} "
        return f"{least} to {most:g} " if math.isfinite(most) else f"{least} or more " if least else ""

    def _bounds(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f" from {_text(self.low)} to {_text(self.high)}"
        words = {"of at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        stated = [f"{word} {_text(bound)}" for word, bound in words.items() if math.isfinite(bound)]
        return f" {' and '.join(stated)}" if stated else ""

    def _listed(self) -> tuple[str, ...]:
        return tuple(self.choices() if callable(self.choices) else self.choices)


def _text(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
