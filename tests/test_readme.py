"""README.md and docs/commands.md do what they say: their commands run in order, made small, and so does the Python."""

import contextlib
import csv
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from shike_jax.commands import program
from shike_jax.commands import train as training
from shike_jax.config.loading import checkpoint_config, parse_config
from shike_jax.data import arrays, sources
from shike_jax.evaluation.classifier import load
from shike_jax.storage.weights import load_weights
from tests.conftest import ROOT
from tests.storage.object_store import in_place_of_gcsfs
from tests.test_guide import BLOCK
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("quickly_compiled")

README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs" / "commands.md").read_text()
COMMANDS = [
    line for kind, text in BLOCK.findall(PAGES) if kind == "bash" for line in text.replace("\\\n", " ").splitlines()
]
DATA = "digits32.npz"  # a split exported below: CIFAR's size of images, nothing to download
SLIM = [
    "--config.model.width=4",
    "--config.model.blocks=(1, 1, 1)",
    "--config.model.depths=(1,)",
    "--config.augment.policy=none",
    "--config.stages.representation.max_steps=2",
    "--config.stages.classifier.max_steps=2",
    "--config.train.eval_every_epochs=0",
    "--config.log=quiet",
]


# --- how a command is made small ------------------------------------------------------------------------------------


def python(words, place, more=()):
    """`python -m shike_jax COMMAND`, within this process."""
    assert words[1:3] == ["-m", "shike_jax"]
    assert not program.main([*words[3:], *more])


def train(words, place):
    """On the exported data, with a slim network. The command's own --config flags win.

    The first run shares seed, experts and loss with the second one, so that most is compiled once.
    """
    if not any("depths" in word for word in words):
        words = [*words, "--config.model.depths=(1, 2)", "--config.stages.representation.loss.nt=0.", "--config.seed=1"]
    words = [re.sub(r"(cifar_lt.py)[:]?", rf"\1:file={DATA},", word).removesuffix(",") for word in words]
    typed = {word.partition("=")[0] for word in words}
    python(words, place, [item for item in SLIM if item.partition("=")[0] not in typed])


def photographs(words, place):
    """A folder of two classes, tried without training: a tiny checkpoint takes the run's place. Then the folder goes:
    later commands have photos of their own.
    """
    draw = np.random.default_rng(0)
    for name in ("photos/ant", "photos/bee", "new"):
        (place / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(place / name / f"{i}.png")
    python(words, place, ["--dry-run"])
    write_checkpoint(place / "runs" / "mine")
    shutil.rmtree(place / "photos")


def published(words, place):
    """The weights are those that the command names, and take the data that it names."""
    arguments = [word.partition("=")[2] if word.startswith("--checkpoint") else word for word in words[4:]]
    _, meta = load_weights(ROOT / arguments[0])
    assert checkpoint_config(meta, arguments[1:]).data.source == "archive" and meta["scores"]["top1"] == 55.59


def evaluate(words, place):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        python(words, place)
    for heads in ("representation", "classifier"):
        assert re.search(
            rf"^{heads}( +[\d.]+){{7}}\n +expert 1 .*\n +expert 2 ",
            out.getvalue(),
            re.MULTILINE,
        )
    assert " ECE\n" in out.getvalue()


def predict(words, place):
    source = sources.load(parse_config([f"--config=cifar_lt:file={DATA}"])[0].data)
    (place / "photos").mkdir()
    for i in range(4):
        Image.fromarray(source.images["test"][i]).save(place / "photos" / f"{i}.png")
    python(words, place)


def scripted(words, place, **environment):
    """Runs a script; programs that the test has no use for are stood in for. Returns what it prints and their calls."""
    calls = place / "calls"
    calls.unlink(missing_ok=True)
    variables = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls), **environment}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.stdout + done.stderr, [shlex.split(line) for line in lines]


def quickstart(words, place):
    """The script's own calls, with its own arguments, and fewer steps."""
    _, calls = scripted(words, place, SHIKE_VENV=str(place / "venv"))
    assert [call[2:4] for call in calls] == [["shike_jax", "train"], ["shike_jax", "summary"]]
    for call in calls:
        python(call, place, SLIM if call[3] == "train" else [])


def suite(words, place):
    _, calls = scripted([*words, "-m", "slow"], place, SHIKE_VENV=str(place / "venv"))
    [(_, *arguments)] = calls
    assert arguments[:2] == ["-m", "pytest"] and arguments[-2:] == ["-m", "slow"]


def processes(words, place):
    _, calls = scripted(words, place, PYTHON=str(place / "venv" / "bin" / "python"))
    started = [call for call in calls if call[1:4] == ["-m", "shike_jax", "train"]]
    assert len(started) == 2
    for call in started:
        accepted(call[4:])


def submitted(words, place):
    _, [(_, script, *arguments)] = scripted(words, place)
    assert (ROOT / script).is_file()
    accepted(arguments)


def kubectl(words, place):
    _, [(_, verb, flag, file)] = scripted(words, place)
    assert (verb, flag) == ("apply", "-f") and len([*yaml.safe_load_all((ROOT / file).read_text())]) == 1


def pod(words, place):
    names = dict(word.split("=", 1) for word in words[: words.index("bash")])
    names |= {"GIT_DIR": str(ROOT / ".git"), "GIT_WORK_TREE": str(ROOT)}  # what it would send to the workers
    printed, calls = scripted(words[words.index("bash") :], place, **names)
    assert not calls  # of gcloud
    [command] = [line for line in printed.splitlines() if r"shike_jax\ train" in line]
    remote = shlex.split(command.removeprefix("+ "))[-1].removeprefix("--command=")
    accepted(shlex.split(remote.partition("shike_jax train")[2]))


def privileged(words, place):
    _, [(_, shell, script)] = scripted(words, place)
    assert subprocess.run([shell, "-n", script]).returncode == 0


def accepted(arguments):
    """Arguments that training would take."""
    with pytest.MonkeyPatch.context() as patch:
        in_place_of_gcsfs(patch)  # what reaches buckets need not be installed
        config, rest = parse_config(arguments)
        assert training.parse(rest).workdir and config.run == ("representation", "classifier")


def nothing(words, place):
    """The data come from an exported file here."""


# The beginning of a command, and what runs it.
TABLE = {
    "pip install .": nothing,
    "python -m shike_jax train --config=folder_lt:root=photos ": photographs,
    "python -m shike_jax predict --checkpoint=runs/mine ": python,
    "python -m shike_jax evaluate --checkpoint=docs/results/": published,
    "bash launch/quickstart.sh": quickstart,
    "bash launch/test.sh": suite,
    "export TFDS_DATA_DIR=": nothing,
    "python -m shike_jax train --config=configs/cifar_lt.py:official,imbalance_factor=100 ": train,
    "python -m shike_jax evaluate --checkpoint=runs/if100 ": evaluate,
    "python -m shike_jax report ": python,
    "python -m shike_jax predict --checkpoint=runs/if100 ": predict,
    "python -m shike_jax export ": python,
    "python -m shike_jax train --config=configs/cifar_lt.py --workdir=runs/two_experts ": train,
    "python -m shike_jax sweep table4 ": lambda words, place: python(words, place, ["--dry-run"]),
    "bash launch/local_multiprocess.sh 2 4 -- ": processes,
    "sbatch launch/gpu_slurm.sbatch ": submitted,
    "kubectl apply ": kubectl,
    "TPU_NAME=shike TPU_ZONE=us-east5-b TPU_TYPE=v5litepod-16 BUCKET=my-bucket ": pod,
    "sudo bash launch/slurm_here.sh": privileged,
}
RECORDER = """#!/bin/bash
if [[ $1 == -c ]]; then echo 4321; exit; fi  # local_multiprocess.sh asks for a free port
line=$(printf '%q ' "$(basename "$0")" "$@")
echo "$line" >>"$CALLS" # one write: processes that run side by side do not mix their lines
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like a clone, with exported data; the programs in bin/ and venv/ record their calls."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "launch", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    names = ["venv/bin/python", *(f"bin/{name}" for name in ("sbatch", "kubectl", "sudo", "gcloud"))]
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDER)
        path.chmod(0o755)
    digest = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    (folder / "venv" / f".requirements-{digest[:12]}").touch()  # nothing to install
    config = parse_config(["--config=digits_lt", "--config.data.image_size=32", "--config.data.test_per_class=5"])[0]
    arrays.save(sources.load(config.data), str(folder / DATA))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("command", COMMANDS, ids=[command.partition("#")[0].strip() for command in COMMANDS])
def test_command_runs(command, place):
    known = [run for start, run in TABLE.items() if f"{command} ".startswith(start)]
    assert len(known) == 1, f"{command}: expected one entry in TABLE"
    known[0](shlex.split(command, comments=True), place)


def test_every_entry_of_the_table_is_used():
    unused = [start for start in TABLE if not any(f"{command} ".startswith(start) for command in COMMANDS)]
    assert not unused


def test_what_the_commands_have_written(place, capsys):
    assert json.loads((place / "runs" / "quickstart" / "results.json").read_text())["name"] == "digits_lt"
    assert (place / "runs" / "quickstart" / "accuracy_by_count.png").is_file()
    results = json.loads((place / "runs" / "two_experts" / "results.json").read_text())
    assert len(results["experts"]) == 2 and results["seed"] == 1
    assert results["config"]["stages"]["representation"]["loss"]["nt"] == 0
    page = (place / "runs" / "report" / "report.html").read_text()
    assert "data:image/svg+xml" in page and "Best expert of each class" in page


def test_the_python_block_runs(place):
    [block] = [text for kind, text in BLOCK.findall(README) if kind == "python"]
    short = block.replace("epochs=20, classifier_epochs=8", "width=4, epochs=1, classifier_epochs=1")
    assert short != block
    names = {}
    exec(compile(short, "README.md", "exec"), names)
    assert names["probabilities"].shape == (300, 10) and (place / "digits_classifier" / "model.safetensors").is_file()


def test_prediction_and_export_agree_with_the_library(place):
    images = np.stack([np.asarray(Image.open(place / "photos" / f"{i}.png")) for i in range(4)])
    classifier = load(place / "runs" / "if100")
    classes, logits = classifier.predict(images)[0], classifier(images)
    assert logits.shape == (2, 4, 10)
    with (place / "predictions.csv").open() as file:
        predicted = [row["class_1"] for row in csv.DictReader(file)]
    assert predicted == [classifier.class_names[c] for c in classes]

    code = (
        "import runpy, numpy as np; e = runpy.run_path('exported/load.py')['Exported']('exported'); "
        "np.save('out.npy', e(np.load('in.npy'))['logits'])"
    )
    np.save(place / "in.npy", images)
    subprocess.run([sys.executable, "-c", code], cwd=place, env={**os.environ, "PYTHONPATH": ""}, check=True)
    np.testing.assert_allclose(np.load(place / "out.npy"), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"\]\(((?!http)[^)#\s]+)", text):
        assert (ROOT / page).parent.joinpath(name).exists(), name


def test_the_readme_is_short_and_so_is_every_page():
    assert len(README.split()) <= 900
    long = {page.name: len(page.read_text().split()) for page in ROOT.glob("docs/*.md")}
    assert {name for name, words in long.items() if words > 1200} <= {
        "registries.md"
    }  # a reference, written by a script


def test_the_pictures_are_those_of_their_script(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "figures" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    for name in ("method", "accuracy"):
        assert (ROOT / "docs" / "figures" / f"{name}.svg").read_text() == getattr(draw, name)()
