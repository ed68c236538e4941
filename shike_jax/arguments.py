"""The argument parser of every command: one clear line instead of a usage dump, examples below the options."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from shike_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `UserError`s and whose epilog keeps its lines; no abbreviated options."""

    def __init__(self, prog: str, description: str, epilog: str, **settings: Any) -> None:
        """Args: as for ArgumentParser; epilog: examples and remarks, printed as they are."""
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings}
        super().__init__(prog=prog, description=description, epilog=epilog, **settings)

    def error(self, message: str) -> NoReturn:
        """Raises UserError naming the help page."""
        raise UserError(f"{message}; see {self.prog} --help")
