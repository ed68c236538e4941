"""Every command explains itself, the documents name real commands, and the doctor finds what is wrong."""

import importlib
import importlib.util
import re
import shlex
from importlib import metadata

import pytest

from shike_jax import cli, doctor
from shike_jax.errors import run_main
from tests.conftest import ROOT

DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
COMMAND = re.compile(r"(?:^|[`$ ])(?:python -m (shike_jax[\w.]*)|shike-jax (\w+))((?: +-{1,2}[^`#\n]*)?)", re.MULTILINE)


def exit_code(main, arguments):
    with pytest.raises(SystemExit) as stopped:
        run_main(main, arguments)
    return stopped.value.code or 0


def module_of(name):
    """The module with the `main` of `python -m name`."""
    module = importlib.import_module(name)
    return module if hasattr(module, "main") else importlib.import_module(f"{name}.__main__")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command_is_a_page(command, capsys):
    if importlib.util.find_spec(cli.COMMANDS[command][0]) is None:
        pytest.skip(f"{command} is not there yet")
    assert exit_code(cli.main, [command, "--help"]) == 0
    page = capsys.readouterr().out
    assert len(page.splitlines()) > 5
    assert "usage: python -m shike_jax" in page and "example" in page


def test_help_of_the_command_lists_all(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert exit_code(cli.main, arguments) == 0
        page = capsys.readouterr().out
        for command in (
            "train",
            "evaluate",
            "predict",
            "convert",
            "export",
            "inspect",
            "report",
            "benchmark",
            "doctor",
        ):
            assert re.search(rf"^  {command} ", page, re.MULTILINE)


def test_installed_command_is_the_entry():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'shike-jax = "shike_jax.cli:entry"' in text and callable(cli.entry)


def commands(path):
    """(module, arguments) of every command of this package in a document, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    known = [(module or name, rest) for module, name, rest in COMMAND.findall(text) if module or name in cli.COMMANDS]
    return [(cli.COMMANDS.get(name, (name,))[0], shlex.split(rest)) for name, rest in known]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist_with_their_flags(path, capsys):
    for name, arguments in commands(path):
        module = module_of(name)
        assert exit_code(module.main, ["--help"]) == 0
        page = capsys.readouterr().out
        for argument in arguments:
            flag = argument.split("=")[0]
            if flag.startswith("--") and not flag.startswith("--config."):
                assert re.search(rf"{re.escape(flag)}\b", page), f"{path.name}: {name} has no {flag}"
            if flag == "--config" and not argument.endswith("..."):
                assert (ROOT / argument.partition("=")[2].split(":")[0]).is_file(), f"{path.name}: {argument}"


def test_doctor_reports_versions_devices_and_data(capsys, monkeypatch, tmp_path):
    prepared = tmp_path / "cifar100" / "3.0.2"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert exit_code(cli.main, ["doctor"]) == 0
    page = capsys.readouterr().out
    assert re.search(rf"^jax +{re.escape(metadata.version('jax'))}$", page, re.MULTILINE)
    assert re.search(r"^devices +\d+ x ", page, re.MULTILINE)
    assert re.search(r"^prepared data sets +cifar100/3.0.2$", page, re.MULTILINE)
    assert page.endswith("no problems found\n")


def test_doctor_finds_what_is_wrong(capsys, monkeypatch, tmp_path):
    version = metadata.version

    def without_flax(name):
        if name == "flax":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    def no_devices():
        raise AssertionError

    monkeypatch.setattr("importlib.metadata.version", without_flax)
    monkeypatch.setattr("jax.devices", no_devices)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "absent"))
    monkeypatch.setattr(doctor, "ROOM", float("inf"))
    assert exit_code(cli.main, ["doctor"]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 4
    for words in (
        "flax is not installed: pip install",
        "JAX finds no device",
        "absent: no such folder",
        "are free here",
    ):
        assert any(words in line for line in problems)
