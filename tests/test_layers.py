"""Imports point down, the core runs without TensorFlow, torch or matplotlib, and text is in UTF-8."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PACKAGE = ROOT / "shike_jax"
# What each room may import of ours, besides `common`, `errors` and itself, from the ground up. Modules at the root are
# doors: they import `commands` alone, and `__init__` hands on names when they are used.
MAY_IMPORT = {
    "errors": (),
    "common": (),
    "kernels": (),
    "methods": (),
    "models": ("methods", "kernels", "cluster"),
    "augment": ("methods",),
    "cluster": (),
    "config": ("methods",),
    "storage": ("cluster", "config"),
    "data": ("methods", "augment", "cluster", "config"),
    "convert": ("models", "storage"),
    "evaluation": ("methods", "models", "cluster", "config", "storage", "data"),
    "training": ("methods", "models", "cluster", "config", "storage", "data", "convert", "evaluation"),
    "report": ("methods", "config", "evaluation"),
    "benchmark": ("models", "cluster", "config", "data", "training"),
    "commands": ("cluster", "config", "data", "convert", "evaluation", "training", "report"),
    "__main__": ("commands",),
    "main": ("commands",),
}
DOORS = ("__main__", "main")


def room_of(module):
    return module.split(".")[0]


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def own_imports(tree):
    """Modules of this package that a file imports anywhere, at the top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("shike_jax"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shike_jax"):
            for alias in node.names:
                inner = (PACKAGE.parent / node.module.replace(".", "/") / alias.name).with_suffix(".py")
                folder = PACKAGE.parent / node.module.replace(".", "/") / alias.name
                exists = inner.exists() or folder.is_dir()
                yield f"{node.module}.{alias.name}" if exists else node.module


def top_level_imports(tree):
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if module_name(p))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_room_imports_what_it_may(path):
    room = room_of(module_name(path))
    names = own_imports(ast.parse(path.read_text()))
    imported = {room_of(name.removeprefix("shike_jax").removeprefix(".")) for name in names}
    imported -= {"", "common", "errors", room}
    allowed = set(MAY_IMPORT[room])
    assert imported <= allowed, f"{room} may import {sorted(allowed)}; {module_name(path)} imports {sorted(imported)}"


def test_arrows_between_rooms():
    """Imports of one room by another, each counted once, with `common`, `errors` and the configurations: 65."""
    arrows = {("configs", "config")}
    for path in FILES:
        room = room_of(module_name(path))
        names = own_imports(ast.parse(path.read_text()))
        arrows |= {(room, other) for name in names if (other := room_of(name.removeprefix("shike_jax").lstrip(".")))}
    assert len({(a, b) for a, b in arrows if a != b}) <= 65


def test_rooms_have_an_order():
    """The table itself has no circle: every room can be put above all that it imports."""
    placed = set()
    while len(placed) < len(MAY_IMPORT):
        ready = {room for room, below in MAY_IMPORT.items() if room not in placed and set(below) <= placed}
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - placed)}"
        placed |= ready


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_libraries_stay_where_they_belong(path):
    module, tree = module_name(path), ast.parse(path.read_text())
    names = set(top_level_imports(tree))
    assert not names & {"tensorflow", "tensorflow_datasets", "torch", "clu"}, "imported at the top: import it inside"
    if not module.startswith("report"):
        assert "matplotlib" not in names


def test_configs_import_the_schema_and_the_registries_only():
    for path in (ROOT / "configs").glob("*.py"):
        assert set(own_imports(ast.parse(path.read_text()))) <= {"shike_jax.config", "shike_jax.methods"}, path.name


def in_the_encoding_of_the_locale(tree):
    """Lines that read or write a text file without naming its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        of_bytes = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in node.args)
        opens = name == "open" and owner not in ("Image", "os", "archive", "tarfile") and not of_bytes
        if opens or (method and name in ("read_text", "write_text")):
            yield node.lineno


def test_text_files_are_in_utf_8_on_every_machine():
    found = {path: list(in_the_encoding_of_the_locale(ast.parse(path.read_text()))) for path in FILES}
    assert not {path.name: lines for path, lines in found.items() if lines}


BLOCKED = """
import importlib.util
import sys
NAMES = ("tensorflow", "tensorflow_datasets", "tensorboard", "tensorboardX", "clu", "torch", "matplotlib")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
find_spec = importlib.util.find_spec  # answers None for what is absent, as libraries expect
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in NAMES else find_spec(name, *rest)
from shike_jax.common.command import run_main
from shike_jax.commands.train import main
run_main(main)
"""


def test_trains_without_tensorflow_tensorboard_and_clu(tmp_path):
    command = [
        sys.executable,
        "-c",
        BLOCKED,
        "--config=configs/digits_lt.py:width=4",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.depths=(1,)",
        "--config.run=('classifier',)",
        "--config.stages.classifier.max_steps=2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    assert sum("no TensorBoard files" in line for line in done.stdout.splitlines()) == 1
