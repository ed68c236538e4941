"""How the program ends: the exit status of a command, and one line for what a user can fix."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from shike_jax.common import buckets
from shike_jax.common.text import say
from shike_jax.common.version import __version__
from shike_jax.errors import UserError

INSTALLED, MODULE = "shike-jax", "python -m shike_jax"


def program() -> str:
    """The program's name as it was typed."""
    return INSTALLED if Path(sys.argv[0]).stem == INSTALLED else MODULE


def as_typed(text: str) -> str:
    """A text that names commands, with the program's name as it was typed."""
    return text.replace(MODULE, program())


def run_main(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Runs `main(argv without the program name)` and exits with its value; a `UserError` is one line and its status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--version" in argv:  # of every command, whatever else it asks for
            jax = f"jax {metadata.version('jax')}"
            say(f"shike_jax {__version__}, {platform.python_implementation()} {platform.python_version()}, {jax}")
            sys.exit(0)
        code = main(argv)
    except UserError as error:
        say("error: " + as_typed(" ".join(str(error).split())), file=sys.stderr)
        code = error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `... | head`
        code = 0
    except Exception as error:
        said = buckets.trouble(error)
        if said is None:
            raise
        say(f"error: {said}", file=sys.stderr)
        code = said.status
    sys.exit(code)
