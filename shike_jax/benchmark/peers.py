"""The other sides of the benchmarks: `tests/peers` of a clone holds them, the installed package does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from shike_jax.errors import UserError


def peer(name: str, option: str) -> ModuleType:
    """The module `tests.peers.NAME`, which `option` of the command line asks for; `UserError` outside a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests" / "peers" / f"{name}.py").is_file():
        raise UserError(f"{option}: expected a clone of the project, whose tests/peers holds what is compared with")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"tests.peers.{name}")
