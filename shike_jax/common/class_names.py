"""Classes are the same when their names are: data and checkpoints may order them differently."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence

from shike_jax.common.text import printable, some


@dataclasses.dataclass(frozen=True)
class Matching:
    """How the classes that are there serve those that are wanted."""

    places: list[int]  # for each wanted class, where it is among those that are there; empty when the two sets differ
    missing: list[str]  # names that only the wanted ones have
    extra: list[str]  # names that only those that are there have

    def differences(self) -> str:
        """Both lists of names, shortened, for a sentence."""
        kinds = (("missing", self.missing), ("extra", self.extra))
        named = ((what, [repr(printable(name)) for name in names]) for what, names in kinds if names)
        return "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in named)


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
