"""Every command explains itself, the documents name real commands, and the doctor finds what is wrong."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from shike_jax import __main__
from shike_jax.commands import benchmark, doctor, summary
from shike_jax.commands import program as cli
from shike_jax.common.command import run_main
from shike_jax.config import loading as flags
from shike_jax.config import to_plain
from shike_jax.errors import UserError
from tests.conftest import ROOT

DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
COMMAND = re.compile(r"(?:^|[`$ ])(?:python -m shike_jax|shike-jax) (\w+)((?: +-{1,2}[^`#\n]*)?)", re.MULTILINE)


def exit_code(main, arguments):
    with pytest.raises(SystemExit) as stopped:
        run_main(main, arguments)
    return stopped.value.code or 0


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command_is_a_page(command, capsys):
    assert exit_code(cli.main, [command, "--help"]) == 0
    page = capsys.readouterr().out
    assert len(page.splitlines()) > 5
    assert "usage: python -m shike_jax" in page and "example" in page


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
@pytest.mark.parametrize("typed", ["/usr/bin/shike-jax", "/x/shike_jax/__main__.py"])
def test_help_fits_a_terminal_and_names_what_was_typed(command, typed, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code(cli.main, [command, "--help"] if command else []) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) < 80
    expected = {"shike-jax"} if typed.endswith("shike-jax") else {"python -m shike_jax"}
    assert set(re.findall(r"shike-jax|python -m shike_jax", page)) == expected


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "predict --chekpoint=x --images=y",
            "; --chekpoint is unknown; did you mean '--checkpoint'?",
        ),
        ("evaluate --checkpont=x", "--checkpont is unknown; did you mean '--checkpoint'?"),
    ],
)
def test_a_misspelt_required_flag_is_named(typed, words, capsys):
    assert exit_code(cli.main, typed.split()) == 2
    assert words in capsys.readouterr().err


def test_configurations_are_listed_and_printed(capsys):
    cli.main(["configs"])
    out = capsys.readouterr().out
    assert all(path.stem in out for path in (ROOT / "configs").glob("*.py")) and "Handwritten digits" in out
    assert max(map(len, out.splitlines()[:-1])) < 80
    cli.main(["config", "--config=digits_lt:width=4", "--config.seed=7", "--changed"])
    out = capsys.readouterr().out
    assert re.search(r"^seed +7$", out, re.MULTILINE) and re.search(r"^model.width +4$", out, re.MULTILINE)
    assert "train.pictures" not in out
    cli.main(["config", "--config=digits_lt", "--json"])
    assert json.loads(capsys.readouterr().out) == to_plain(flags.parse_config(["--config=digits_lt"])[0])


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    cli.main(
        ["train", "--config=digits_lt:width=4,epochs=3,classifier_epochs=2", f"--workdir={tmp_path / 'r'}", "--dry-run"]
    )
    out = capsys.readouterr().out
    # 489 training images in batches of 32: 16 steps an epoch.
    assert re.search(r"^representation +3 +48 +32 +0.15  1 ce \+ 10 nt \+ 1 mu$", out, re.MULTILINE)
    assert re.search(r"^classifier +2 +32 +32 +0.1  1 balanced$", out, re.MULTILINE)
    assert "489 training images of 10 classes, 144 to 7 of a class" in out and "would begin; nothing was written" in out
    assert not list(tmp_path.iterdir())
    assert exit_code(cli.main, ["train", "--config=digits_lt", f"--workdir={ROOT}", "--dry-run"]) == 2
    assert "not a run of this program" in capsys.readouterr().err


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "shike_jax").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text() and path.name != "load_exported.py"
)


def test_the_program_is_started_by_two_names():
    """The second one starts runs as version 0.1 did."""
    assert MODULES == ["shike_jax.__main__", "shike_jax.main"]


@pytest.mark.parametrize("name", MODULES)
def test_both_names_tell_the_version_and_answer_mistakes_by_one_line(name, capsys, monkeypatch):
    def status(*arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delitem(sys.modules, "shike_jax.__main__", raising=False)  # imported above, which runpy warns of
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(name, run_name="__main__")
        return stopped.value.code or 0

    for arguments in (["--version"], ["--config=absent", "--version"]):
        assert status(*arguments) == 0
        out = capsys.readouterr().out
        assert out.startswith("shike_jax ") and f"jax {metadata.version('jax')}" in out
        assert len(out.splitlines()) == 1
    assert status("--config=absent") == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and "absent" in err


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


@pytest.mark.parametrize(
    ("main", "typed", "words"),
    [
        (cli.main, "trian", "; did you mean 'train'? see python -m shike_jax --help"),
        (benchmark.main, "steps", "'steps' is no command; expected one of step, parts, input, start, run"),
        (summary.main, "--fast", "the following arguments are required: workdir"),
        (summary.main, "absent", "absent/results.json: No such file or directory; expected the results of a"),
    ],
)
def test_mistyped_commands_are_answered_by_one_line(main, typed, words, capsys):
    assert exit_code(main, [typed]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and words in err


@pytest.mark.parametrize("text", ["{}", "[1]", '{"split": {"name": "x"}, "experts": [1.0], "stages": []}'])
def test_a_summary_of_no_results_is_one_line(text, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: not the results of a finished run"):
        summary.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_help_of_the_other_commands(capsys):
    for main, word in ((benchmark.main, "input"), (summary.main, "workdir")):
        assert exit_code(main, ["--help"]) == 0
        page = capsys.readouterr().out
        assert "usage: python -m shike_jax" in page and "example" in page and f"  {word} " in page


# --- what `pip install .` carries -----------------------------------------------------------------------------------


def test_installed_command_is_the_entry():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'shike-jax = "shike_jax.__main__:entry"' in text and callable(__main__.entry)


def test_package_list_is_complete():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "shike_jax").rglob("*.py")}
    assert sorted(settings["packages"]) == sorted({*(".".join(f.parts) for f in folders), "shike_jax.configs"})
    assert settings["package-dir"] == {"shike_jax.configs": "configs"}


def test_shipped_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = {path.stem: path for path in (ROOT / "configs").glob("*.py")}
    for name, path in shipped.items():
        for typed in (name, f"{name}.py", f"configs/{name}", f"configs/{name}.py", str(path)):
            assert flags.find_config(typed).samefile(path)
    config, rest = flags.parse_config(["--config=digits_lt:imbalance_factor=5", "--config.seed=3", "--other"])
    assert (config.name, config.data.imbalance_factor, config.seed, rest) == ("digits_lt", 5, 3, ["--other"])

    (tmp_path / "configs").mkdir()  # a file of that path comes first
    own = tmp_path / "configs" / "digits_lt.py"
    own.write_text(shipped["digits_lt"].read_text().replace('"digits_lt"', '"my_digits"'))
    assert flags.parse_config(["--config=configs/digits_lt.py"])[0].name == "my_digits"
    assert flags.parse_config(["--config=digits_lt"])[0].name == "digits_lt"
    for typed in ("other", "configs/other.py", "elsewhere/digits_lt.py", "/configs/digits_lt.py", "digits_lt.txt"):
        with pytest.raises(UserError, match=rf"--config={typed}: no such file .* cifar_lt, digits_lt, .*folder_lt, "):
            flags.find_config(typed)


def test_of_a_field_that_is_named_twice_the_last_value_counts():
    """Scripts put their own flags before those of their user; the values of a tuple are not joined either."""
    fields = ["--config.model.depths=(1, 2)", "--config.seed=1", "--config.model.depths=(2,)", "--config.seed=2"]
    config, _ = flags.parse_config(["--config=cifar_lt", "--config=digits_lt", *fields])
    assert (config.name, config.model.depths, config.seed) == ("digits_lt", (2,), 2)
    changed, _ = flags.override_config(to_plain(config), ["--config.model.depths=(1,)", "--config.model.depths=(1, 1)"])
    assert changed.model.depths == (1, 1)


def test_an_installed_package_carries_its_configurations(tmp_path):
    """The layout that the package list makes: configs inside the package, none beside it."""
    shutil.copytree(ROOT / "shike_jax", tmp_path / "shike_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "shike_jax" / "configs")
    (tmp_path / "elsewhere").mkdir()
    code = "from shike_jax.config.loading import parse_config; print(parse_config(['--config=h2t_cifar'])[0].name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == "h2t_cifar100_lt_if100\n", done.stderr


# --- documents ------------------------------------------------------------------------------------------------------


def commands(path):
    """(command, arguments) of every command of this package in a document, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    return [(name, shlex.split(rest)) for name, rest in COMMAND.findall(text)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist_with_their_flags(path, capsys):
    for name, arguments in commands(path):
        assert exit_code(cli.main, [name, "--help"]) == 0
        page = capsys.readouterr().out
        for argument in arguments:
            flag = argument.split("=")[0]
            if flag.startswith("--") and not flag.startswith("--config."):
                assert re.search(rf"{re.escape(flag)}\b", page), f"{path.name}: {name} has no {flag}"
            if flag == "--config" and not argument.endswith("..."):
                file = argument.partition("=")[2].split(":")[0]
                written_there = f"Saved as `{file}`" in path.read_text()  # a configuration that the document shows
                assert written_there or flags.find_config(file), f"{path.name}: {argument}"


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
    assert re.search(r"^tensorboardX +\S", page, re.MULTILINE)  # the extra brings it, and it writes the curves


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
