"""Compiled programs are kept in a folder of the user's own, of bounded size, unless the user has chosen otherwise."""

import os
import subprocess
import sys

import pytest

from shike_jax.cluster import compiled_cache
from tests.conftest import ROOT

PRINT = """
import jax
from shike_jax.cluster import compiled_cache
compiled_cache.use_default_folder()
print(compiled_cache.folder_in_use())
"""


def used(tmp_path, **variables):
    """What a new process with these variables takes; `~` is `tmp_path/home`."""
    gone = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", PRINT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_the_folder_is_the_users_own_and_closed_to_others(tmp_path):
    at_home = used(tmp_path)
    assert at_home.startswith(str(tmp_path / "home" / ".cache" / "shike_jax" / "jax-"))
    assert os.stat(at_home).st_mode & 0o777 == 0o700
    os.chmod(at_home, 0o770)  # somebody else might write there
    assert used(tmp_path) == "None"
    assert used(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg")).startswith(str(tmp_path / "xdg" / "shike_jax"))


def test_the_users_choice_wins(tmp_path):
    assert used(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == str(tmp_path / "own")
    assert used(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    (tmp_path / "file").write_text("")
    assert used(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")) == "None"  # where no folder can be made
    assert not (tmp_path / "home").exists()


def test_another_processor_has_another_folder(monkeypatch):
    here = compiled_cache.default_folder()
    monkeypatch.setattr(compiled_cache.platform, "machine", lambda: "riscv64")
    assert compiled_cache.default_folder().name != here.name


@pytest.mark.parametrize(("kept", "left"), [(30, "abc"), (29, "bc"), (19, "c"), (0, "")])
def test_what_was_used_longest_ago_goes_first(tmp_path, kept, left):
    for age, name in enumerate("cba"):
        file = tmp_path / "kind" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"0123456789")
        os.utime(file, (1e9 - age, 1e9 - age))
    compiled_cache.remove_oldest(tmp_path, kept)
    assert "".join(sorted(path.name for path in (tmp_path / "kind").iterdir())) == left
