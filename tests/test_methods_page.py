"""docs/new_method.md: the file that adds a method trains and adjusts; docs/methods.md names what there is."""

import re

import numpy as np
import pytest

from shike_jax.commands import evaluate
from shike_jax.config.loading import parse_config
from shike_jax.methods import ADJUSTMENTS, LOSSES, SAMPLERS, LossInputs
from shike_jax.training import loop
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PAGE = (ROOT / "docs" / "methods.md").read_text()
OWN = (ROOT / "docs" / "new_method.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", OWN, re.MULTILINE | re.DOTALL)


def test_the_file_of_the_page_adds_a_loss_and_an_adjustment(tmp_path, capsys, monkeypatch):
    for registry in (LOSSES, ADJUSTMENTS):  # what the file registers does not stay
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    (tmp_path / "vs.py").write_text(BLOCKS[0])
    changes = ["--config.log=quiet", "--config.stages.only.max_steps=2", "--config.train.pictures=0"]
    config, _ = parse_config([f"--config={tmp_path / 'vs.py'}", "--config.stages.only.loss.vs_gamma=0.0", *changes])
    results = loop.train(config, tmp_path / "run")
    assert results["config"]["stages"]["only"]["loss"]["vs_gamma"] == 0.0
    command = [f"--checkpoint={tmp_path / 'run'}", "--heads=representation", f"--output={tmp_path / 'all.npz'}"]
    evaluate.main([*command, "--logits", f"--config={tmp_path / 'vs.py'}", "--adjust=standardised", "--tau=1"])
    with np.load(tmp_path / "all.npz") as found:
        logits, labels = found["representation/logits"][0], found["label"]
    right = 100 * np.mean((logits - logits.mean(0)).argmax(1) == labels)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("prior uniform"))
    assert float(row.split()[-1]) == pytest.approx(right, abs=0.01)


def test_the_second_file_of_the_page_adds_a_loss_to_shike(tmp_path, monkeypatch):
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    (tmp_path / "mine.py").write_text(BLOCKS[1])
    config, _ = parse_config([f"--config={tmp_path / 'mine.py'}:official,imbalance_factor=50"])
    loss = config.stages.representation.loss
    assert (loss.certain, loss.certain_epsilon, loss.ce, loss.nt) == (0.5, 1.0, 1.0, 10.0)
    assert config.stages.classifier.loss.certain == 0 and config.data.imbalance_factor == 50
    logits, labels = np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([1, 0, 3])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [sum(2 * (1 - shares[m, b, labels[b]]) for m in range(2)) for b in range(3)]
    counts = np.array([5, 3, 2, 1])
    given = LossInputs(
        logits=logits, features=np.zeros((2, 3, 1)), labels=labels, class_counts=counts, progress=np.float32(0)
    )
    np.testing.assert_allclose(LOSSES["certain"].function(given, certain_epsilon=2.0), expected, rtol=1e-5)


def test_the_page_names_what_there_is():
    methods = {
        "ce",
        "focal",
        "class_balanced",
        "ldam_drw",
        "logit_adjusted",
        "balanced_softmax",
        "crt",
        "lws",
        "balpoe",
        "gcl",
        "mislas",
        "ride",
        "sade",
        "proco",
        "disalign",
        "cmo",
    }
    for name in methods:
        assert f"| `{name}` |" in PAGE
        parse_config([f"--config={ROOT}/configs/baselines_cifar.py:{name}"])
    assert set(ADJUSTMENTS) - {"none"} <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert [name for name in SAMPLERS if SAMPLERS[name].options["balances"]] == ["balanced", "paired"]
