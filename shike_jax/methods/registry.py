"""One table of named functions for each kind of thing that a configuration can choose by name."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from shike_jax.errors import UserError

SESSION = "an interactive session"
_PACKAGE = Path(__file__).resolve().parents[1]
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


@dataclasses.dataclass(frozen=True)
class Option:
    """What may be said of a function when it is registered: the default, and what it means."""

    default: Any
    about: str


def default_of(declared: Any) -> Any:
    """The value of a parameter that nobody has set, from how it was declared."""
    if isinstance(declared, Choice):
        return declared.values[0]
    return declared.default if isinstance(declared, Number) else declared


@dataclasses.dataclass(frozen=True)
class Entry(Generic[Function]):
    """One registered function, with what its registration declares: see `Registry.register`."""

    kind: str
    name: str
    function: Function
    parameters: Mapping[str, Any]
    options: Mapping[str, Any]
    sha256: str | None = None  # of the file as it was when it registered this; None: this package's own, or no file

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        """The function's result; whatever it raises becomes a UserError, one line that names it."""
        try:
            return self.function(*arguments, **keywords)
        except UserError:
            raise
        except Exception as error:  # what somebody else wrote can fail in any way
            raise explained(f"{self.kind} {self.name!r}", error) from error

    @property
    def file(self) -> str:
        return _origin(self.function)

    @property
    def is_own(self) -> bool:
        """Whether it comes with this package."""
        return _is_own(self.file)

    def defaults(self) -> dict[str, Any]:
        return {name: default_of(declared) for name, declared in self.parameters.items()}


class Registry(Generic[Function]):
    """Functions by name, in the order of their registration.

    A configuration file may register functions of its own before it builds its stages:

        @LOSSES.register("spread")
        def spread(inputs): ...

    Args:
      kind: what an entry is, for messages.
      call: how a function is called and what it returns, for the page that lists all registries.
      inputs: the class of its argument, where its docstring says more.
      given: how many arguments a function gets before its parameters, which are then compared with the declared
        ones; None: they are not.
      keywords: what a function always gets by name.
      parameters: whether entries may declare any.
      check: raises ValueError for an entry that cannot serve.
      options: allowed options of `register`: an `Option`, or a default value.
    """

    def __init__(
        self,
        kind: str,
        call: str = "",
        *,
        inputs: type | None = None,
        given: int | None = None,
        keywords: tuple[str, ...] = (),
        parameters: bool = True,
        check: Callable[[Entry[Function]], None] | None = None,
        **options: Any,
    ) -> None:
        self.kind, self.call, self.inputs = kind, call, inputs
        self._given, self._keywords, self._parameters, self._check = given, keywords, parameters, check
        self.options = {name: one if isinstance(one, Option) else Option(one, "") for name, one in options.items()}
        self._defaults = {name: option.default for name, option in self.options.items()}
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
          ValueError: not an identifier, an unknown option, a name that another file has taken or that is both a
            function's and a parameter's, or parameters that are not those of the function.
        """
        if not name.isidentifier():
            raise ValueError(f"{self.kind} {name!r}: expected a Python identifier")
        if unknown := set(options) - set(self.options):
            raise ValueError(f"{self.kind} {name!r}: unknown options {', '.join(sorted(unknown))}")
        if parameters and not self._parameters:
            raise ValueError(f"{self.kind} {name!r}: parameters={sorted(parameters)}: this kind has none")

        def add(function: Function) -> Function:
            known = self._entries.get(name)
            # A configuration file is executed again each time it is read: the same file may replace its own function.
            if known is not None and _origin(known.function) != _origin(function):
                raise ValueError(f"{self.kind} {name!r} is registered already, by {_origin(known.function)}")
            self._check_names(name, parameters or {})
            if self._given is not None:
                self._check_signature(name, function, parameters or {})
            file = _origin(function)
            sha256 = None if _is_own(file) else digest(file)
            entry = Entry(self.kind, name, function, dict(parameters or {}), {**self._defaults, **options}, sha256)
            if self._check is not None:
                self._check(entry)
            self._entries[name] = entry
            return function

        return add

    def _check_names(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Names and parameters of all entries are fields in one place of a configuration."""
        taken = next((p for p in parameters if p == name or p in self._entries), None)
        if taken is not None:
            raise ValueError(f"{self.kind} {name!r}: its parameter {taken} has the name of a {self.kind}; rename it")
        owner = next((entry.name for entry in self._entries.values() if name in entry.parameters), None)
        if owner is not None:
            raise ValueError(f"{self.kind} {name!r}: a parameter of {owner} has that name; expected another one")

    def _check_signature(self, name: str, function: Function, parameters: Mapping[str, Any]) -> None:
        """What can be seen before the function is called."""
        of = inspect.signature(function).parameters.values()
        kinds = {p.kind for p in of}
        plain = [p for p in of if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if isinstance(function, type):  # a module: its fields are the parameters, and it is called with the rest
            own = [p for p in plain if p.name not in ("parent", "name")]
        else:
            positional = [p for p in plain if p.kind is not p.KEYWORD_ONLY]
            if len(positional) < (self._given or 0) and inspect.Parameter.VAR_POSITIONAL not in kinds:
                raise ValueError(f"{self.kind} {name!r} takes {len(positional)} arguments: expected {self.call}")
            own = [p for p in plain[self._given :] if p.name not in self._keywords]
        undeclared = [p.name for p in own if p.default is inspect.Parameter.empty and p.name not in parameters]
        if undeclared:
            expected = f"parameters={{{undeclared[0]!r}: its default}} in `register`"
            raise ValueError(f"{self.kind} {name!r}: parameter {undeclared[0]} is not declared; expected {expected}")
        unused = [p for p in parameters if p not in {one.name for one in own}]
        if unused and inspect.Parameter.VAR_KEYWORD not in kinds:
            takes = ", ".join(one.name for one in own) or "none"
            raise ValueError(f"{self.kind} {name!r}: declares {unused[0]}, but the function's parameters are {takes}")

    def __getitem__(self, name: str) -> Entry[Function]:
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}: expected one of {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of registration."""
        return iter(tuple(self._entries))

    def active(self, fields: Mapping[str, Any]) -> list[tuple[Entry[Function], float]]:
        """Of entries that are fields with a strength: those whose field is not 0, with it, as they were registered."""
        return [(entry, fields[entry.name]) for entry in self.entries() if fields.get(entry.name)]

    def entries(self) -> tuple[Entry[Function], ...]:
        return tuple(self._entries.values())

    def parameters(self) -> dict[str, Any]:
        """The parameters of all entries by name, as declared; ValueError where two entries declare one differently."""
        found: dict[str, Any] = {}
        for entry in self._entries.values():
            for name, declared in entry.parameters.items():
                if found.setdefault(name, declared) != declared:
                    raise ValueError(f"{self.kind} {entry.name!r} declares {name} as {declared}, not {found[name]}")
        return found


def digest(file: str | Path) -> str | None:
    """SHA-256 in hex; None where there is no such file."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return None


def _is_own(file: str) -> bool:
    return Path(file).resolve().is_relative_to(_PACKAGE)  # the package may be reached through a link


def _origin(function: Callable[..., Any]) -> str:
    """The file that a function, or a class that can be called, was written in; of no file: `SESSION`."""
    written = function.__call__ if isinstance(function, type) else function
    code = getattr(inspect.unwrap(written), "__code__", None)
    if code is None:
        return getattr(function, "__module__", SESSION)
    return code.co_filename if os.path.exists(code.co_filename) else SESSION  # each cell of a notebook has a name


class Failed(UserError):
    """A registered function raised an exception of its own."""


# What JAX raises where the value of an array is asked for while a function is traced.
_BRANCHES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def explained(what: str, error: Exception) -> UserError:
    """One line about an exception in somebody else's function: what failed, in which line of which file, and why."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith("<")]
    where = f"{own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}" if own else "?"
    if isinstance(error, _BRANCHES):
        return UserError(
            f"{what} ({where}) asks for the value of an array while the step is compiled: expected jnp.where, "
            "jax.lax.cond or a mask instead of `if`, int() or NumPy"
        )
    return Failed(f"{what} ({where}) failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
