"""Classes are the same when their names are: data and checkpoints may order them differently."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence

from shike_jax.common.text import printable

_SHOWN = 3  # names of each kind in a sentence


@dataclasses.dataclass(frozen=True)
class Matching:
    """How the classes that are there serve those that are wanted.

    Attributes:
      places: for each wanted class, where it is among those that are there; empty when the two sets differ.
      missing, extra: names that only the wanted ones have, and that only those that are there have.
    """

    places: list[int]
    missing: list[str]
    extra: list[str]

    def differences(self) -> str:
        """Both lists of names, shortened, for a sentence."""
        named = (("missing", self.missing), ("extra", self.extra))
        return "; ".join(f"{len(names)} {what}: {_shortened(names)}" for what, names in named if names)


def match(there: Sequence[str], wanted: Sequence[str]) -> Matching:
    """Matches classes by name.

    The Unicode form does not matter: macOS spells `é` in two characters and most other systems in one.
    """
    place = {comparable(name): i for i, name in enumerate(there)}
    keys = [comparable(name) for name in wanted]
    if len(place) < len(there) or len(set(keys)) < len(keys):  # names that differ in their form alone
        place, keys = {name: i for i, name in enumerate(there)}, list(wanted)
    known = set(keys)
    missing = [name for key, name in zip(keys, wanted, strict=True) if key not in place]
    extra = [there[i] for key, i in place.items() if key not in known]
    same = not missing and not extra and len(there) == len(wanted)
    return Matching([place[key] for key in keys] if same else [], missing, extra)


def comparable(name: str) -> str:
    """A name in the Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(printable(name)) for name in names[:_SHOWN]) + more
