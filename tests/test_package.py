"""What `pip install .` declares and carries: a small core, extras by purpose, and a line for whoever lacks one."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement

from shike_jax.common.extras import EXTRAS
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {Requirement(line).name.lower() for line in PROJECT["dependencies"]}
EXTRA_PACKAGES = {
    extra: {Requirement(line).name.lower() for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}
# imported name: the package whose dependency it is
COMES_WITH = {"jaxlib": "jax", "ml_dtypes": "jax", "etils": "orbax", "array_record": "tensorflow_datasets"}
COMES_WITH |= {"fsspec": "gcsfs"}
ONLY_TO_COMPARE = {"torch"}  # `benchmark step --against=torch`
PIP_NAMES = {
    "absl": "absl-py",
    "cykooz_resizer": "cykooz-resizer",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorboardX": "tensorboardx",
    "mlflow": "mlflow-skinny",
    "tensorflow_datasets": "tensorflow-datasets",
}
PIP_NAMES |= {"orbax": "orbax-checkpoint", "tensorflow": "tensorflow-cpu"}


def imported_packages():
    """Third-party packages that any module or configuration imports, anywhere."""
    for path in (*(ROOT / "shike_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"shike_jax", ""}
            yield from ((top, path) for top in tops)


def test_every_import_is_declared():
    for top, path in imported_packages():
        brought_by = COMES_WITH.get(top, top)
        name = PIP_NAMES.get(brought_by, brought_by)
        optional = EXTRA_PACKAGES[EXTRAS[brought_by][1]] if brought_by in EXTRAS else set()
        assert name in CORE | optional or top in ONLY_TO_COMPARE, f"{path} imports {top}, which nothing declares"


def test_core_is_small():
    heavy = {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "tensorboard", "matplotlib", "scikit-learn"}
    assert not CORE & (heavy | {"pytest", "ruff", "torch"})
    for package, extra in EXTRAS.values():
        assert extra in EXTRA_PACKAGES
        assert {word.lower() for word in package.split()} & EXTRA_PACKAGES[extra]


def test_tested_set_lies_within_the_ranges():
    pinned = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            one = Requirement(text)
            pinned.setdefault(one.name.lower(), []).extend(spec.version for spec in one.specifier)
    declared = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    for one in map(Requirement, declared):
        for version in pinned.get(one.name.lower(), ()):
            assert one.specifier.contains(version), f"{one} leaves out {version} of requirements.txt"
    assert CORE - {"absl-py", "numpy"} <= pinned.keys()
    assert {"0.10.2", "0.11.2"} == set(pinned["jax"])


BLOCKED = """
import sys
from importlib.abc import MetaPathFinder
class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ({missing!r},):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
sys.argv = {argv!r}
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
"""


@pytest.mark.parametrize(
    ("missing", "extra", "command"),
    [
        ("matplotlib", "report", ["shike_jax", "report", "--runs=.", "--output=o"]),
        ("matplotlib", "report", ["shike_jax", "inspect", "--config=digits_lt", "--figure=o.png"]),
        ("sklearn", "digits", ["shike_jax", "train", "--config=digits_lt", "--workdir=w"]),
        ("tensorflow", "tfds", ["shike_jax", "train", "--config=cifar_lt", "--workdir=w"]),
        ("tensorflow_datasets", "tfds", ["shike_jax", "inspect", "--config=cifar_lt"]),
    ],
)
def test_a_command_that_needs_an_extra_says_which(missing, extra, command, tmp_path):
    script = BLOCKED.format(missing=missing, argv=command)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert f"pip install '.[{extra}]'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def test_the_list_of_commands_needs_no_library():
    """`import shike_jax` and `shike-jax --help` load neither JAX nor NumPy, which take a second or more."""
    script = (
        "import sys, shike_jax\nfrom shike_jax.commands.program import main\nmain(['--help'])\n"
        "heavy = set(sys.modules) & {'jax', 'numpy', 'flax', 'orbax', 'tensorflow', 'matplotlib'}\n"
        "print('loaded', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("loaded []")


@pytest.mark.slow
def test_wheel_and_sdist_carry_the_configurations(tmp_path):
    pytest.importorskip("build")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(copied(tmp_path)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    [source] = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [described] = [name for name in names if name.endswith("METADATA")]
        described = archive.read(described).decode()
    assert {"shike_jax/py.typed", "shike_jax/configs/folder_lt.py", "shike_jax/evaluation/load_exported.py"} <= names
    assert not any(name.startswith(("tests/", "docs/", "launch/")) for name in names)
    assert "SHIKE" in described and "H2T" in described
    provided = re.findall(r"^Provides-Extra: (.*)$", described, re.MULTILINE)
    assert set(provided) == set(PROJECT["optional-dependencies"])
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"configs/digits_lt.py", "shike_jax/py.typed", "pyproject.toml", "LICENSE"} <= inside


def copied(tmp_path):
    """The repository's tracked files alone: a build leaves folders behind."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    return clone


def test_the_version_stands_in_one_place_and_the_changelog_has_it():
    from shike_jax.common.version import __version__

    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)$", changes, re.MULTILINE)
    for name in ("pyproject.toml", "CITATION.cff"):
        assert __version__ not in (ROOT / name).read_text()


def test_workflows_and_templates_are_yaml():
    yaml = pytest.importorskip("yaml")
    files = [*(ROOT / ".github").rglob("*.yml")]
    assert len(files) == 5
    for path in files:
        assert yaml.safe_load(path.read_text())
