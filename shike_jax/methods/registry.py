"""One table of named functions for each kind of thing that a configuration can choose by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from shike_jax.common.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Choice:
    """A parameter that takes one of a few values; the first is the default."""

    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Number:
    """A parameter that takes numbers from `low` on, smaller than `below`."""

    default: float
    low: float = -math.inf
    below: float = math.inf


def default_of(declared: Any) -> Any:
    """The value of a parameter that nobody has set, from how it was declared."""
    if isinstance(declared, Choice):
        return declared.values[0]
    return declared.default if isinstance(declared, Number) else declared


@dataclasses.dataclass(frozen=True)
class Entry(Generic[Function]):
    """What is known of one registered function.

    Attributes:
      name: what configurations write.
      function: the function itself.
      parameters: its keyword parameters that a configuration may set: default values, `Choice`s or `Number`s.
      options: facts about the function that its registry's users need, such as the title of a score.
    """

    name: str
    function: Function
    parameters: Mapping[str, Any]
    options: Mapping[str, Any]

    def defaults(self) -> dict[str, Any]:
        """The default value of each parameter."""
        return {name: default_of(declared) for name, declared in self.parameters.items()}


class Registry(Generic[Function]):
    """Functions by name, in the order of their registration.

    A configuration file may register functions of its own before it builds its stages:

        @LOSSES.register("spread")
        def spread(inputs): ...
    """

    def __init__(self, kind: str, **options: Any) -> None:
        """Args: kind: what an entry is, for messages. options: allowed options of `register` with their defaults."""
        self.kind = kind
        self._options = options
        self._entries: dict[str, Entry[Function]] = {}

    def register(
        self, name: str, *, parameters: Mapping[str, Any] | None = None, **options: Any
    ) -> Callable[[Function], Function]:
        """Returns a decorator that adds a function under `name` and leaves it as it is.

        Args:
          name: a Python identifier, because configurations use it as the name of a field.
          parameters: keyword parameters that configurations may set, with default values, `Choice`s or `Number`s.
            Those of the same name in several entries are one field of the configuration, so declare them alike.
          options: facts that this registry's users need.

        Raises:
          ValueError: not an identifier, an unknown option, or a name that another file has taken.
        """
        if not name.isidentifier():
            raise ValueError(f"{self.kind} {name!r}: expected a Python identifier")
        if unknown := set(options) - set(self._options):
            raise ValueError(f"{self.kind} {name!r}: unknown options {', '.join(sorted(unknown))}")

        def add(function: Function) -> Function:
            known = self._entries.get(name)
            # A configuration file is executed anew each time it is read: the same file may replace its own function.
            if known is not None and _origin(known.function) != _origin(function):
                raise ValueError(f"{self.kind} {name!r} is registered already, by {_origin(known.function)}")
            self._entries[name] = Entry(name, function, dict(parameters or {}), {**self._options, **options})
            return function

        return add

    def __getitem__(self, name: str) -> Entry[Function]:
        """Returns the entry.

        Raises:
          UserError: an unknown name; lists the known ones.
        """
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}: expected one of {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether `name` is registered."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of registration."""
        return iter(tuple(self._entries))

    def entries(self) -> tuple[Entry[Function], ...]:
        """All entries, in the order of registration."""
        return tuple(self._entries.values())

    def parameters(self) -> dict[str, Any]:
        """The parameters of all entries by name, as they were declared.

        Raises:
          ValueError: two entries declare the same parameter differently.
        """
        found: dict[str, Any] = {}
        for entry in self._entries.values():
            for name, declared in entry.parameters.items():
                if found.setdefault(name, declared) != declared:
                    raise ValueError(f"{self.kind} {entry.name!r} declares {name} as {declared}, not {found[name]}")
        return found


def _origin(function: Callable[..., Any]) -> str:
    """The file that a function was written in."""
    code = getattr(function, "__code__", None)
    return code.co_filename if code is not None else getattr(function, "__module__", "?")
