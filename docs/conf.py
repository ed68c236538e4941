"""The documentation site: `sphinx-build -W docs site`. What is generated from the package goes to docs/generated."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from shike_jax.commands import program  # noqa: E402
from shike_jax.common.version import __version__  # noqa: E402
from shike_jax.config.fields import fields_of, may_change  # noqa: E402
from shike_jax.config.loading import SHIPPED  # noqa: E402

project, author = "shike_jax", "The shike_jax authors"
version = release = __version__
copyright = "the authors; Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"shike_jax {__version__}"
exclude_patterns = ["results/**", "figures/*.py"]
nb_execution_mode = "off"  # the notebook's outputs are kept in it; a test runs it
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
suppress_warnings = ["misc.highlighting_failure"]  # transcripts of a shell


def _write(name: str, text: str) -> None:
    path = HERE / "generated" / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _configurations() -> str:
    """The heads of the configuration files, which say what each takes, needs and has reached."""
    parts = ["# Configurations\n", "`--config=NAME[:ARGUMENTS]` takes these, or a file of your own.\n"]
    for path in sorted(SHIPPED.glob("*.py")):
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        parts.append(f"## {path.stem}\n\n```text\n{about}\n```\n")
    return "\n".join(parts)


def _fields() -> dict[str, str]:
    """A page of the fields of each room of a configuration."""
    rooms: dict[str, list[str]] = {}
    for path, field in fields_of(("NAME",)).items():
        room = path.partition(".")[0] if "." in path else "run"
        changes = "yes" if may_change(path) else ""
        cells = (f"`{path}`", f"`{field.default!r}`", field.about, field.expected(), changes)
        rooms.setdefault(room, []).append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    head = "| field | default | meaning | expected | may change when a run continues |\n|---|---|---|---|---|\n"
    about = "`--config.FIELD=VALUE` sets a field; `NAME` stands for a stage's name.\n\n"
    return {room: f"# Fields: {room}\n\n{about}{head}" + "\n".join(lines) + "\n" for room, lines in rooms.items()}


def _help() -> str:
    """The help page of every command."""
    parts = ["# Commands\n"]
    for command in program.COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            program.main([command, "--help"])
        parts.append(f"## {command}\n\n```text\n{out.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)


_write("configurations", _configurations())
_write("help", _help())
for _room, _page in _fields().items():
    _write(f"fields_{_room}", _page)


def _kept(target: str, page: Path) -> bool:
    """Whether a link leads to a page of the site, a picture or another site."""
    if target.startswith(("http", "#", "mailto:")):
        return True
    path = (page.parent / target.partition("#")[0]).resolve()
    inside = HERE in path.parents and HERE / "results" not in path.parents
    return inside and path.suffix in (".md", ".ipynb", ".svg", ".png", ".py")


def _links_to_files(app, name, source):
    """Links to files of the repository that are no pages become their paths: the site has no copy of them."""
    page = HERE / f"{name}.md"

    def replaced(found: re.Match) -> str:
        label, target = found[1], found[2]
        if _kept(target, page):
            return found[0]
        path = (page.parent / target).resolve()
        return f"{label} (`{path.relative_to(HERE.parent)}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", replaced, source[0])


def _plain_headings(app, what, name, obj, options, lines):
    """Docstrings whose `Args:` stand in one line, as the shorter ones have them, get them on a line of their own."""
    for i, line in enumerate(list(lines)):
        found = re.match(r"(Args|Returns|Raises): (.+)", line)
        if found:
            lines[i] = found[2]


def setup(app):
    """Sphinx calls this."""
    app.connect("source-read", _links_to_files)
    app.connect("autodoc-process-docstring", _plain_headings)
