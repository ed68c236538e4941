"""Imports point down, and the core runs without TensorFlow, torch or matplotlib."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "shike_jax"
LAYERS = {  # what may be imported: a lower number; the same module or folder
    1: ["errors", "config", "data.splits", "losses", "fusion", "metrics", "augment", "models", "parallel", "timing",
        "arguments", "manifest"],
    2: ["data", "state", "optim", "logs", "convert", "flags", "preemption", "workdir", "card", "peers"],
    3: ["steps", "checkpoints"],
    4: ["evaluate", "predict", "export", "report", "benchmark", "run", "doctor", "convert.__main__",
        "data.inspect", "data.export", "inference", "exported"],
    5: ["loop", "main", "cli"],
}  # fmt: skip
EVERYWHERE = {"errors", ""}  # and the package itself, for its version


def layer_of(module):
    matches = [(len(name), layer) for layer, names in LAYERS.items() for name in names
               if module == name or module.startswith(name + ".")]  # fmt: skip
    assert matches, f"{module} is in no layer: add it to the table"
    return max(matches)[1]


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
def test_imports_point_down(path):
    module, tree = module_name(path), ast.parse(path.read_text())
    for imported in own_imports(tree):
        other = imported.removeprefix("shike_jax").removeprefix(".")
        same_folder = other.split(".")[0] == module.split(".")[0]
        if other in EVERYWHERE or same_folder or other == module:
            continue
        assert layer_of(other) < layer_of(module) or (layer_of(other) == layer_of(module) >= 2), (
            f"{module} (layer {layer_of(module)}) imports {other} (layer {layer_of(other)})"
        )


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_libraries_stay_where_they_belong(path):
    module, tree = module_name(path), ast.parse(path.read_text())
    names = set(top_level_imports(tree))
    assert not names & {"tensorflow", "tensorflow_datasets", "torch", "clu"}, "imported at the top: import it inside"
    if not module.startswith("report"):
        assert "matplotlib" not in names


def test_configs_import_the_schema_only():
    for path in (ROOT / "configs").glob("*.py"):
        assert set(own_imports(ast.parse(path.read_text()))) <= {"shike_jax.config"}, path.name


def test_no_file_is_long():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 330, f"{path.name}: one idea per file?"


BLOCKED = """
import importlib.util
import sys
NAMES = ("tensorflow", "tensorflow_datasets", "tensorboard", "clu", "torch", "matplotlib")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
find_spec = importlib.util.find_spec  # answers None for what is absent, as libraries expect
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in NAMES else find_spec(name, *rest)
from shike_jax.errors import run_main
from shike_jax.main import main
run_main(main)
"""


def test_trains_without_tensorflow_tensorboard_and_clu(tmp_path):
    command = [sys.executable, "-c", BLOCKED, "--config=configs/digits_lt.py:width=4,epochs=1,classifier_epochs=1",
               f"--workdir={tmp_path / 'run'}", "--config.model.depths=(1,)"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    assert sum("no TensorBoard files" in line for line in done.stdout.splitlines()) == 1
