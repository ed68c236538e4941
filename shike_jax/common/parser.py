"""The argument parser of every command: one clear line instead of a usage dump, examples below the options."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shike_jax.common.buckets import local
from shike_jax.common.command import as_typed
from shike_jax.common.paths import expanded
from shike_jax.common.version import __version__
from shike_jax.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `UserError`s, whose pages fit a terminal of 80 columns and name the program as
    it was typed; no abbreviated options.
    """

    def __init__(self, prog: str, description: str, epilog: str, **settings: Any) -> None:
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings}
        prog, description, epilog = (as_typed(text) for text in (prog, description, epilog))
        super().__init__(prog=prog, description=_filled(description), epilog=_filled(epilog), **settings)
        self._given: list[str] = []
        # `command.run_main` answers before anything is parsed; here the option gets its line on the help page.
        self.add_argument("--version", action="version", version=__version__, help="print versions and exit")

    def parse_known_args(self, *arguments: Any, **settings: Any) -> tuple[Any, list[str]]:
        """As ArgumentParser's, with `~` expanded in every value: a shell leaves `--workdir=~/x` as it is."""
        self._given = list(arguments[0] if arguments and arguments[0] is not None else settings.get("args") or ())
        values, rest = super().parse_known_args(*arguments, **settings)
        for name, value in vars(values).items():
            setattr(values, name, expanded(value))
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, Path):  # those that may lie in a bucket are made by `buckets.place`
                    local(path)
        return values, rest

    def error(self, message: str) -> NoReturn:
        """Raises UserError naming the help page, and the option that an unknown one resembles."""
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            message += nearest(unknown[1], self._option_string_actions)
        elif message.startswith("the following arguments are required"):
            names = (item.partition("=")[0] for item in self._given if item.startswith("--"))
            misspelt = next((name for name in names if name not in self._option_string_actions), "")
            meant = nearest(misspelt, self._option_string_actions) if misspelt else ""
            message += f"; {misspelt} is unknown{meant}" if meant else ""
        raise UserError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")


WIDTH = 79


def _filled(text: str) -> str:
    """Remarks filled to the width; indented lines (examples, tables) keep their places and go on below if too long."""
    lines: list[str] = []
    for is_remark, found in itertools.groupby(text.splitlines(), lambda line: bool(line) and not line.startswith(" ")):
        if is_remark:
            lines += textwrap.wrap(" ".join(found), WIDTH, break_on_hyphens=False)
        else:
            lines += itertools.chain.from_iterable(map(table, found))
    return "\n".join(lines)


def table(line: str) -> list[str]:
    """A line of a table or an example in as many lines as the width asks for.

    A command goes on after the shell's mark of continuation, a line of a table below its second column.
    """
    if len(line) <= WIDTH:
        return [line]
    inside, line = len(line) - len(line.lstrip()), line.strip()
    is_command = line.startswith(as_typed("python -m shike_jax"))
    column = re.match(r"\S+ {2,}", line)
    hanging = " " * (inside + (4 if is_command or not column else len(column[0])))
    whole: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
    found = textwrap.wrap(line, WIDTH - 2, initial_indent=" " * inside, subsequent_indent=hanging, **whole)
    return [f"{one} \\" for one in found[:-1]] + found[-1:] if is_command else found


def run_command(
    argv: Sequence[str], prog: str, description: str, commands: Mapping[str, tuple[str, str]], epilog: str
) -> int | None:
    """Runs the subcommand that `argv` begins with, with the arguments after it; prints the help page without one.

    `commands` are names with (module with a `main(argv)`, what it does in a few words); its module is imported late.
    """
    name, *rest = argv or ["--help"]
    if name in commands:
        return importlib.import_module(commands[name][0]).main(rest)
    prog = as_typed(prog)
    lines = "\n".join(f"  {command:<10} {text}" for command, (_, text) in commands.items())
    help_line = f"  {prog} COMMAND --help explains one."
    below = f"commands:\n{lines}\n\n{help_line}\n\n{epilog}"
    parser = Parser(prog, description, below, usage="%(prog)s COMMAND [OPTIONS]", add_help=False)
    if name in ("-h", "--help", "help"):
        parser.print_help()
        return 0
    parser.error(f"{name!r} is no command; expected one of {', '.join(commands)}{nearest(name, commands)}")
