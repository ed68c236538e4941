"""The argument parser of every command: one clear line instead of a usage dump, examples below the options."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from shike_jax.common.paths import expanded
from shike_jax.common.version import __version__
from shike_jax.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `UserError`s and whose epilog keeps its lines; no abbreviated options."""

    def __init__(self, prog: str, description: str, epilog: str, **settings: Any) -> None:
        """Args: as for ArgumentParser; epilog: examples and remarks, printed as they are."""
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings}
        super().__init__(prog=prog, description=description, epilog=epilog, **settings)
        # `command.run_main` answers before anything is parsed; here the option gets its line on the help page.
        self.add_argument("--version", action="version", version=__version__, help="print versions and exit")

    def parse_known_args(self, *arguments: Any, **settings: Any) -> tuple[Any, list[str]]:
        """As ArgumentParser's, with `~` expanded in every value: a shell leaves `--workdir=~/x` as it is."""
        values, rest = super().parse_known_args(*arguments, **settings)
        for name, value in vars(values).items():
            setattr(values, name, expanded(value))
        return values, rest

    def error(self, message: str) -> NoReturn:
        """Raises UserError naming the help page, and the option that an unknown one resembles."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        message += nearest(unknown[1], self._option_string_actions) if unknown else ""
        raise UserError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")


def run_command(
    argv: Sequence[str], prog: str, description: str, commands: Mapping[str, tuple[str, str]], epilog: str
) -> int | None:
    """Runs the subcommand that `argv` begins with, with the arguments after it; prints the help page without one.

    Args:
      argv: arguments without the program's name.
      prog, description, epilog: as for `Parser`.
      commands: name to (module with a `main(argv)`, what it does in a few words). Modules are imported when needed.

    Raises:
      UserError: no such subcommand, and whatever the subcommand raises.
    """
    name, *rest = argv or ["--help"]
    if name in commands:
        return importlib.import_module(commands[name][0]).main(rest)
    lines = "\n".join(f"  {command:<10} {text}" for command, (_, text) in commands.items())
    help_line = f"  {prog} COMMAND --help explains one."
    below = f"commands:\n{lines}\n\n{help_line}\n\n{epilog}"
    parser = Parser(prog, description, below, usage="%(prog)s COMMAND [OPTIONS]", add_help=False)
    if name in ("-h", "--help", "help"):
        parser.print_help()
        return 0
    parser.error(f"{name!r} is no command; expected one of {', '.join(commands)}{nearest(name, commands)}")
