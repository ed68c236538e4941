"""Long-tailed image recognition with SHIKE and H2T in JAX and Flax.

    import shike_jax as sj

Nothing else is imported until a name is used; docs/library.md shows each of them at work. They are stable.
"""

import importlib
from typing import Any

# name: the module that it is taken from, and its name there ("" for the module itself)
_SURFACE = {
    "UserError": ("errors", "UserError"),
    "create_model": ("models", "create_model"),
    "evaluate": ("evaluation.functions", "evaluate"),
    "list_models": ("models", "list_models"),
    "load": ("evaluation.classifier", "load"),
    "load_config": ("config.loading", "load_config"),
    "load_data": ("data.datasets", "load_data"),
    "losses": ("methods.losses", ""),
    "train": ("training.loop", "train"),
    "__version__": ("common.version", "__version__"),
}
__all__ = [name for name in _SURFACE if name != "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _SURFACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _SURFACE[name]
    found = importlib.import_module(f"{__name__}.{module}")
    value = getattr(found, attribute) if attribute else found
    if not attribute:
        value = importlib.import_module(f"{__name__}.common.calls").clear_module(value)
    elif callable(value) and not isinstance(value, type):
        value = importlib.import_module(f"{__name__}.common.calls").clear(value)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_SURFACE})
