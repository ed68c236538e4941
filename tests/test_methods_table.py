"""docs/methods_table.py: size and work by hand, seeds in one row; launch/methods_runs.sh: what it would run."""

import json
import os
import pathlib
import runpy
import shlex
import subprocess

import pytest

from shike_jax.config import to_plain
from shike_jax.config.loading import parse_config
from tests.conftest import ROOT

table = runpy.run_path(str(ROOT / "docs" / "methods_table.py"))


def plain(*arguments):
    return to_plain(parse_config(arguments)[0])


def test_parameters_of_a_prediction():
    """The authors' network has 1,277,008 with both sets of cosine classifiers, 3 * 64 * 100 each."""
    found, _ = table["size_and_work"](plain(f"--config={ROOT}/configs/cifar_lt.py"), 100)
    assert found == 1_277_008 - 19_200
    scaled = plain(f"--config={ROOT}/configs/baselines_cifar.py:lws,dataset=digits")
    fresh = plain(f"--config={ROOT}/configs/baselines_cifar.py:crt,dataset=digits")
    counts = [table["size_and_work"](config, 10)[0] for config in (scaled, fresh)]
    assert counts[0] == counts[1] + 10  # a factor for each class beside the first set


def test_work_of_a_prediction_by_hand():
    """Width 8, one block a stage, 16 px: multiplications and additions of each convolution, and of the classifier."""
    _, found = table["size_and_work"](plain(f"--config={ROOT}/configs/baselines_cifar.py:ce,dataset=digits"), 10)
    stem = 16 * 16 * 8 * (9 * 3)
    first = 2 * 16 * 16 * 8 * (9 * 8)
    second = 8 * 8 * 16 * (9 * 8 + 9 * 16 + 8)  # the shortcut is a 1x1 convolution
    third = 4 * 4 * 32 * (9 * 16 + 9 * 32 + 16)
    assert found == 2 * (stem + first + second + third + 32 * 10)


def test_seeds_share_a_row(tmp_path):
    config = plain(f"--config={ROOT}/configs/baselines_cifar.py:ce,dataset=digits,epochs=3,classifier_epochs=1")
    for seed, top1 in ((0, 80.0), (1, 82.0)):
        (tmp_path / "ce" / f"seed{seed}").mkdir(parents=True)
        found = {"top1": top1, "many": 90.0, "medium": 80.0, "few": None, "config": config}
        found |= {"split": {"class_counts": [9] * 10}, "stages": [{"name": "representation", "epochs": 3}]}
        (tmp_path / "ce" / f"seed{seed}" / "results.json").write_text(json.dumps(found))
        epochs = [{"stage": "representation", "epoch_loss": 1.0, "images_per_second": rate} for rate in (30.0, 45.0)]
        others = [
            {"stage": "representation", "loss": 1.0},
            {"stage": "classifier", "epoch_loss": 1, "images_per_second": 9},
        ]
        (tmp_path / "ce" / f"seed{seed}" / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs + others)))
    (row,) = table["rows"](tmp_path)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["`ce`", "2", "81.00 ± 1.41", "90.00 ± 0.00", "80.00 ± 0.00", "-"]
    assert cells[-1] == "2.5"  # 90 images at 30 and at 45 images a second: the median of 3 and 2 seconds
    with pytest.raises(Exception, match=r"no results\.json below it"):
        table["rows"](tmp_path / "ce" / "seed0" / "nothing")


def test_the_rows_run_at_one_setting_and_wide_networks_do_the_work_of_experts():
    environment = {**os.environ, "DRY_RUN": "1", "FILE": "cifar100_if100.npz"}
    command = ["bash", "launch/methods_runs.sh", "runs/methods", "3"]
    lines = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    work = {}
    for line in lines.splitlines():
        config, rest = parse_config([word for word in shlex.split(line) if word.startswith("--")])
        row, seed = pathlib.Path(rest[0]).parts[-2:]
        assert seed == f"seed{config.seed}" == "seed3" and config.data.imbalance_factor == 100
        assert sum(config.stages[name].epochs for name in config.run) == 28
        work[row] = table["size_and_work"](to_plain(config), 100)[1]
    assert len(work) == 16
    assert work["ce"] == work["crt"] < work["balpoe"] < work["shike"]
    assert work["balanced_softmax_wide10"] == pytest.approx(work["balpoe"], rel=0.05)
    assert work["balanced_softmax_wide12"] == pytest.approx(work["shike"], rel=0.1)


def test_an_unknown_row_is_named_before_anything_runs():
    done = subprocess.run(["bash", "launch/methods_runs.sh", "runs/x", "0", "ce", "cce"], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b"row 'cce': expected one of" in done.stderr and not done.stdout
