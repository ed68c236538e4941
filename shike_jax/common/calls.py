"""Calls from outside whose arguments do not fit a function: one line that names the nearest argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from shike_jax.errors import UserError, nearest


def clear(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose callers get a `UserError` for an unknown, missing or surplus argument, not a TypeError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        try:
            signature.bind(*given, **named)
        except TypeError as error:
            unknown = next((name for name in named if name not in signature.parameters), "")
            near = nearest(unknown, signature.parameters) if unknown else ""
            expected = f"expected {function.__name__}{signature}" if not near else ""
            raise UserError(f"{function.__name__}: {error}{near or f'; {expected}'}") from None
        return function(*given, **named)

    return checked


def clear_module(module: ModuleType) -> ModuleType:
    """A module with the public functions of another one, each of them `clear`."""
    made = ModuleType(module.__name__, module.__doc__)
    vars(made).update({name: value for name, value in vars(module).items() if not name.startswith("__")})
    vars(made).update({name: clear(getattr(module, name)) for name in module.__all__})
    made.__all__ = module.__all__  # type: ignore[attr-defined]
    return made
