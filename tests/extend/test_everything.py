"""One thing of each kind, registered in a file outside the package, goes through all that is done with runs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax import methods
from shike_jax.commands.program import main
from shike_jax.config import to_plain
from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.methods import tables
from shike_jax.methods.own_files import remembered
from shike_jax.storage.checkpoints import Checkpoints
from shike_jax.storage.weights import load_weights
from shike_jax.training import loop
from tests.conftest import ROOT
from tests.stopped import assert_same_end, train_until

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's folder, where the file lies and the run was trained without a stop."""
    place = tmp_path_factory.mktemp("user")
    shutil.copyfile(Path(__file__).with_name("everything.py"), place / "mine.py")
    main(["train", f"--config={place / 'mine.py'}", f"--workdir={place / 'whole'}"])
    return place


def newest(workdir):
    tree, meta = Checkpoints(str(workdir), 2).restore(print)
    return flatten_dict(tree, sep="/"), meta


def test_it_trains_with_all_of_it(folder):
    rows = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    first, second = ([row for row in rows if row["stage"] == name and "centred" in row] for name in ("first", "second"))
    assert len(first) == len(second) == 9 and {"noisy", "ce"} <= first[0].keys() and "balanced" in second[0]
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    np.testing.assert_allclose(rates, [0.01, 0.01 / 3, 0.01 / 9] * 2, rtol=1e-6)
    results = json.loads((folder / "whole" / "results.json").read_text())
    assert results["worst"] == min(results["per_class"])
    tree, meta = newest(folder / "whole")
    # Three epochs of three steps each in the first stage; the last checkpoint is of the second stage's second epoch.
    assert tree["batch_stats/losses/centred/memory/steps"] == 9 + tree["step"] == 15
    assert tree["params/losses/centred/out/kernel"].shape == (6, 4)
    assert any(path.startswith("opt_state") and "losses/centred" in path for path in tree)
    digest = hashlib.sha256((folder / "mine.py").read_bytes()).hexdigest()
    assert list(meta["files"]) == ["mine.py"] and meta["files"]["mine.py"]["sha256"] == digest
    kinds = ("network layered", "data source waves", "augmentation policy jitter", "loss noisy", "loss centred")
    kinds += ("mixing onto", "feature hook shaken", "sampler with_rare", "schedule thirds", "optimiser lion_like")
    assert {*kinds, "average tenth", "score worst"} <= set(meta["files"]["mine.py"]["registers"])
    assert results["files_to_use"] == ["mine.py"]
    assert (
        "predict --checkpoint=whole --images=ARRAYS.npy --output=predictions.csv --config=mine.py"
        in (folder / "whole" / "card.md").read_text()
    )
    served, _ = load_weights(folder / "whole")
    assert "losses" not in served["params"] and not served.get("batch_stats")


@pytest.mark.parametrize("steps", [4, 13])
def test_a_stopped_run_continues_bit_for_bit(folder, tmp_path, steps):
    config, _ = parse_config([f"--config={folder / 'mine.py'}"])
    assert "start again to continue" in train_until(config, tmp_path / "run", steps)
    loop.train(config, tmp_path / "run")
    assert_same_end(folder / "whole", tmp_path / "run", ("first", "second"))
    ours, theirs = newest(tmp_path / "run")[0], newest(folder / "whole")[0]
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if not np.array_equal(ours[path], theirs[path])] == []


def test_what_is_remembered_is_the_file_that_ran(folder):
    """Changed since, for the next experiment: the code that runs is what it was when it was read."""
    config, _ = parse_config([f"--config={folder / 'mine.py'}"])
    ran = hashlib.sha256((folder / "mine.py").read_bytes()).hexdigest()
    text = (folder / "mine.py").read_text()
    try:
        (folder / "mine.py").write_text(text + "# for the next one\n")
        assert remembered(to_plain(config))["mine.py"]["sha256"] == ran
    finally:
        (folder / "mine.py").write_text(text)


def test_a_package_behind_a_link_has_no_files_of_a_users(tmp_path):
    (tmp_path / "linked").symlink_to(ROOT, target_is_directory=True)
    code = (
        "import shike_jax as s; from shike_jax.methods.own_files import remembered as r; from shike_jax.models import *"
    )
    code += "; from shike_jax.config import to_plain as p; print(r(p(s.load_config('digits_lt'))))"
    settings = {**os.environ, "PYTHONPATH": str(tmp_path / "linked")}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert found.stdout.strip() == "{}", found.stderr


@pytest.fixture
def nothing_registered(monkeypatch):
    """The registries as another process would find them."""
    found = [*vars(methods).values(), *vars(tables).values()]
    for table in (value for value in found if isinstance(value, methods.Registry)):
        own = {name: entry for name, entry in table._entries.items() if not entry.file.endswith("mine.py")}
        monkeypatch.setattr(table, "_entries", own)


COMMANDS = {
    "evaluate": ["--adjust=agreed"],
    "predict": ["--images=waves.npy"],
    "export": ["--output=exported"],
    "save": ["--output=saved"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_asks_for_the_file_and_takes_it(folder, command, nothing_registered, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    np.save("waves.npy", np.zeros((3, 12, 2), np.float32))
    own = [command, "--checkpoint=whole", *COMMANDS[command]]
    with pytest.raises(UserError, match=r"whole: its network layered is registered by mine.py \(SHA-256 \w{12}\)"):
        main(own)
    assert not main([*own, "--config=mine.py"])
    said = capsys.readouterr()
    assert "changed" not in said.err
    if command == "evaluate":
        assert "agreed" in said.out and "waves, test: 32 examples, 4 classes" in said.out
    if command == "predict":
        assert said.out.count("waves.npy[") == 3


def test_the_views_of_an_adjustment_are_those_of_any_batch_size(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found = []
    for size in (32, 5):
        sized = [f"--output={size}.json", f"--config.eval.batch_size={size}"]
        main(["evaluate", "--checkpoint=whole", "--config=mine.py", "--adjust=agreed", *sized])
        found.append(json.loads((folder / f"{size}.json").read_text())["heads"]["representation"]["post_hoc"])
    assert found[0] == found[1]


def test_the_data_stay_those_of_the_checkpoint(folder, nothing_registered, monkeypatch, capsys):
    """The file may build another configuration by now: given for what it registers, nothing else of it counts."""
    monkeypatch.chdir(folder)
    other = (folder / "mine.py").read_text().replace('"source": "waves"', '"source": "digits"')
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "mine.py").write_text(other)
    main(["evaluate", "--checkpoint=whole", "--config=elsewhere/mine.py"])
    said = capsys.readouterr()
    assert "waves, test" in said.out
    assert "mine.py has changed since this was trained: SHA-256" in said.err


def test_a_file_without_a_configuration_only_registers(folder, nothing_registered, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    text = "from shike_jax.methods import ADJUSTMENTS\n\n\n@ADJUSTMENTS.register('halved')\ndef halved(inputs, tau):\n"
    (folder / "later.py").write_text(f"{text}    return inputs.logits / 2\n")
    assert not main(["evaluate", "--checkpoint=whole", "--config=mine.py", "--config=later.py", "--adjust=halved"])
    said = capsys.readouterr().out
    assert "waves, test: 32 examples" in said and "halved 1" in said


def test_the_report_shows_it(folder, nothing_registered, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert not main(["report", "--runs=whole", "--output=report", "--config=mine.py"])
    text = (folder / "report" / "report.md").read_text()
    assert "worst class" in text and "Where each expert is best" in text
    assert "no figures of its predictions" not in text
