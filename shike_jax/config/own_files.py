"""`--config=FILE` for commands that take nothing of a configuration but what its file registers."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shike_jax.common.paths import expanded
from shike_jax.config.loading import explain, find_config
from shike_jax.errors import UserError
from shike_jax.methods.own_files import GIVEN
from shike_jax.methods.registry import digest


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--config=FILE`, whose values `register` takes."""
    about = "a file of your own that registers what the checkpoint names, such as its network; repeatable"
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help=about)


def register(files: Sequence[str]) -> None:
    """Runs files so that they register what they have; nothing else of them is used.

    They are paths, or names of configurations that come with the package; what follows a colon is left out.
    """
    for given in files:
        path = find_config(expanded(given).partition(":")[0])
        GIVEN[path.name] = digest(path)
        name = f"shike_jax_file_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"--config={given}: expected a Python file")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a file of a user's can fail in any way
            raise UserError(explain(error, given)) from error
        if not hasattr(module, "get_config"):
            _WITHOUT_CONFIGURATION.add(path.name)


def without_registering(meta: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    """The --config arguments without the files that only register: those that a checkpoint remembers, and those that
    build no configuration."""
    files = {*(meta.get("files") or {}), *_WITHOUT_CONFIGURATION}
    names = {item: Path(item.removeprefix("--config=").partition(":")[0]).name for item in arguments}
    return [item for item in arguments if not (item.startswith("--config=") and names[item] in files)]


_WITHOUT_CONFIGURATION: set[str] = set()  # base names of files that have been registered
