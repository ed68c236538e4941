"""Losses, samplers, schedules and scores that a user's own configuration file registers, outside the package."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax import models
from shike_jax.errors import UserError
from shike_jax.methods import LOSSES, SAMPLERS, Choice, Registry
from shike_jax.methods.loss_calls import check_losses
from shike_jax.methods.mixing import MixingInputs, cutmix, partners
from shike_jax.training.program import make_program
from tests import events
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONFIG = '''
import jax
import jax.numpy as jnp
import numpy as np
from shike_jax import config as schema
from shike_jax.methods import LOSSES, SAMPLERS, SCHEDULES, SCORES


@LOSSES.register("spread", parameters={"spread_power": 2.0})
def spread(inputs, spread_power):
    """A power of the logits, averaged over classes and summed over experts, less and less of it."""
    assert inputs.features.shape[:2] == inputs.logits.shape[:2]
    return (1 - inputs.progress) * jnp.sum(jnp.mean(jnp.abs(inputs.logits) ** spread_power, -1), 0)


@SAMPLERS.register("rare_first")
def rare_first(key, labels):
    rare = jnp.flatnonzero(jnp.asarray(labels) >= 5)
    return jax.random.choice(key, rare, (len(labels),)).astype(jnp.int32)


@SCHEDULES.register("halving")
def halving(step, stage):
    return stage.lr * 0.5 ** (step // stage.steps_per_epoch)


@SCORES.register("worst", title="worst class")
def worst(predictions):
    return float(np.nanmin(predictions.class_accuracy()))


def get_config(arguments=None):
    config = schema.base()
    config.name = "mine"
    config.data.update({"source": "digits", "name": "digits", "image_size": 16, "imbalance_factor": 20.0})
    config.data.update({"mean": (0.3,) * 3, "std": (0.35,) * 3})
    config.model.update({"backbone": "resnet20", "width": 4, "blocks": (1, 1, 1), "depths": (1,)})
    config.run = ("only",)
    config.stages.only = schema.stage(epochs=2, batch_size=32, sampler="rare_first", schedule="halving", lr=0.04)
    config.stages.only.loss.update({"spread": 0.01, "spread_power": 1.0})
    config.train.log_every_steps = 1
    return config
'''


def run(folder, *arguments):
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(CONFIG)
    code, text = run(folder, "shike_jax", "train", "--config=mine.py", "--workdir=run")
    assert code == 0, text
    return folder, text


def test_own_loss_sampler_and_schedule_train(trained):
    folder, _ = trained
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "spread" in row]
    assert len(steps) > 20
    for row in steps:  # the weighted sum is what training minimised
        assert row["loss"] == pytest.approx(row["ce"] + 0.01 * row["spread"], rel=1e-4)
    assert [row["learning_rate"] for row in rows if "learning_rate" in row] == pytest.approx([0.04, 0.02])


def test_own_score_reaches_every_place(trained):
    folder, text = trained
    results = json.loads((folder / "run" / "results.json").read_text())
    expected = min(value for value in results["per_class"] if value is not None)
    assert results["worst"] == results["stages"][0]["worst"] == pytest.approx(expected)
    assert f"worst {expected:5.2f}" in text
    assert f"| worst class, % | {expected:.2f} |" in (folder / "run" / "card.md").read_text()
    code, said = run(folder, "shike_jax", "report", "--runs", "run", "--output=report", "--no-evaluate")
    assert code == 0, said
    table = (folder / "report" / "report.md").read_text()
    assert "worst class" in table and f"{expected:.2f}" in table
    assert "only/worst" in events.tags(events.read(folder / "run" / "tensorboard"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stages.only.sampler=rare_fist", ("'rare_fist'", "shuffle, balanced, sqrt, paired, foregrounds, rare_first")),
        ("stages.only.schedule=having", ("'having'", "warmup_cosine", "halving")),
        ("stages.only.optimizer=sdg", ("'sdg'", "one of sgd, lars, lamb, or an optimiser of optax")),
        ("stages.only.loss.sprad=1", ("stages.only.loss.sprad", "spread")),
        ("stages.only.loss.form=printed", ("'printed'", "one of official, paper")),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(trained, change, words):
    folder, _ = trained
    code, text = run(folder, "shike_jax", "train", "--config=mine.py", "--workdir=other", f"--config.{change}")
    assert code == 2 and len(text.strip().splitlines()) == 1
    assert all(word in text for word in words), text
    assert not (folder / "other").exists()


def test_a_stored_plugin_run_is_evaluated_without_the_plugin(trained):
    folder, _ = trained
    code, text = run(folder, "shike_jax", "evaluate", "--checkpoint=run", "--heads=representation")
    assert code == 0, text


def test_a_name_is_taken_once_but_a_file_may_be_read_again():
    registry = Registry("thing", size=1)

    @registry.register("one", parameters={"gain": 2.0, "form": Choice(("a", "b"))}, size=3)
    def one():
        return 1

    registry.register("one")(one)
    assert registry["one"].options == {"size": 1}
    with pytest.raises(ValueError, match="registered already"):
        registry.register("one")(json.dumps)
    with pytest.raises(ValueError, match="identifier"):
        registry.register("not one")
    with pytest.raises(ValueError, match="unknown options colour"):
        registry.register("two", colour=1)
    with pytest.raises(UserError, match="unknown thing 'two': expected one of one"):
        registry["two"]


def test_losses_declare_what_configurations_may_set():
    assert LOSSES["nt"].defaults() == {"form": "official"}
    assert set(LOSSES.parameters()) >= {"form"}


def test_a_sampler_must_return_a_position_for_each_example(monkeypatch):
    from shike_jax.data.sampling import epoch_plan

    labels = np.zeros(10, np.int32)
    monkeypatch.setattr(SAMPLERS, "_entries", dict(SAMPLERS._entries))
    SAMPLERS.register("short")(lambda key, labels: jnp.arange(3))
    SAMPLERS.register("beyond")(lambda key, labels: jnp.arange(10) + 1)
    with pytest.raises(UserError, match=r"sampler 'short' returned int32 \(3,\); expected int32 \(10,\)"):
        epoch_plan("short", jax.random.key(0), 0, labels, 4, True)
    with pytest.raises(UserError, match=r"positions 1\.\.10; expected 0\.\.9"):
        epoch_plan("beyond", jax.random.key(0), 0, labels, 4, True)


def test_partners_are_a_permutation_of_the_real_examples():
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 0], np.float32)
    real = np.flatnonzero(mask)
    draws = np.array([partners(jax.random.key(seed), mask) for seed in range(300)])
    np.testing.assert_array_equal(np.sort(draws[:, real]), np.tile(real, (300, 1)))
    # Each real example is each one's partner about equally often: 300 draws, 60 expected for each pair of five.
    counts = np.array([[np.sum(draws[:, i] == j) for j in real] for i in real])
    assert np.abs(counts - 60).max() < 35


def test_cutmix_pastes_one_box_and_counts_its_area():
    images, others = np.zeros((3, 20, 24, 2), np.float32), np.ones((3, 20, 24, 2), np.float32)
    labels, areas = np.zeros(3, np.int32), []
    for seed in range(200):
        given = MixingInputs(images, labels, others, labels, np.ones(1), jax.random.key(seed), None, 1.0)
        mixed, lam = map(np.asarray, cutmix(given))
        pasted = mixed[0, :, :, 0] > 0
        assert lam == pytest.approx(1 - pasted.mean())
        np.testing.assert_array_equal(mixed, np.broadcast_to(pasted[None, :, :, None], mixed.shape))
        rows, columns = pasted.any(1), pasted.any(0)
        np.testing.assert_array_equal(pasted, np.outer(rows, columns))  # a box
        assert np.abs(np.diff(rows.astype(int))).sum() <= 2 and np.abs(np.diff(columns.astype(int))).sum() <= 2
        areas.append(pasted.mean())
    assert 0.2 < np.mean(areas) < 0.5  # 1 - lam is uniform; boxes are cut at the border


@pytest.fixture
def losses(monkeypatch):
    """The registry, which forgets what a test registers."""
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    return LOSSES


def test_a_name_is_either_a_losss_or_a_parameters(losses):
    """Both are fields of `stages.NAME.loss`: the weight of one would be the value of the other."""
    for name, parameters in (("mine", {"nt": 2.0}), ("mine", {"mine": 2.0})):
        said = f"loss 'mine': its parameter {next(iter(parameters))} has the name of a loss"
        with pytest.raises(ValueError, match=said):
            losses.register(name, parameters=parameters)(lambda inputs, **parameters: inputs.progress)
    with pytest.raises(ValueError, match="loss 'form': a parameter of nt has that name"):
        losses.register("form")(lambda inputs: inputs.progress)
    assert "mine" not in losses and "form" not in losses


def test_the_parameters_of_a_loss_are_those_it_declares(losses):
    with pytest.raises(ValueError, match=r"loss 'mine': parameter power is not declared; expected parameters="):
        losses.register("mine")(lambda inputs, power: inputs.progress)
    with pytest.raises(ValueError, match="loss 'mine': declares pover, but the function's parameters are power"):
        losses.register("mine", parameters={"pover": 2.0})(lambda inputs, power=1.0: inputs.progress)
    losses.register("mine")(lambda inputs, power=2.0: inputs.progress)
    losses.register("others", parameters={"power": 2.0})(lambda inputs, **parameters: inputs.progress)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda inputs: inputs.logit,
            "uses inputs.logit: expected one of logits, features, labels, class_co",
        ),
        (lambda inputs: jnp.max(inputs.logits, (0, 2))[:, None], r"returned float32 \(4, 1\): expected .*, \(4,\)"),
        (lambda inputs: jnp.mean(inputs.logits), r"returned float32 \(\): expected a float for each image"),
        (lambda inputs: jnp.max(inputs.logits, -1), r"returned float32 \(3, 4\)"),
        (lambda inputs: inputs.labels, r"returned int32 \(4,\)"),
        (lambda inputs: 1.0, "returned float: expected a float for each image"),
        (lambda inputs: None, "returned NoneType"),
    ],
)
def test_a_loss_that_cannot_be_computed_is_named_before_training(losses, function, said):
    losses.register("mine")(function)
    with pytest.raises(UserError, match=f"^loss 'mine' {said}"):
        check_losses({"ce": 1.0, "mine": 0.5}, 3, 8, np.ones(5))
    check_losses({"ce": 1.0, "mine": 0.0}, 3, 8, np.ones(5))


def test_a_loss_that_needs_devices_or_other_sizes_is_left_to_training(losses):
    losses.register("over_devices")(lambda inputs: jax.lax.psum(inputs.logits[0, :, 0], "devices"))
    losses.register("of_ten")(lambda inputs: inputs.logits[0].reshape(10, 32)[0])
    check_losses({"over_devices": 1.0, "of_ten": 1.0}, 3, 8, np.ones(5))


def test_the_first_sets_weights_train_where_the_second_scales_them():
    """The logits of `scaled` classifiers depend on both sets; those of `fresh` ones on their own alone."""
    stage = schema.stage(heads="classifier", train=("heads/representation/.*", "heads/classifier/.*"))
    model = {**schema.to_plain(schema.base().model), "width": 4, "blocks": (1, 1, 1), "depths": (1,)}
    for second in ("scaled", "fresh"):
        network = models.build_model({**model, "second_head": second}, 3)
        params = models.init_variables(network, 0, 8)["params"]
        make = functools.partial(make_program, stage, network, params, np.ones(3), None, jax.random.key(0), 1, 1)
        if second == "scaled":
            trained = make().trainable["heads"]
            assert all(jax.tree.leaves(trained["representation"])) and all(jax.tree.leaves(trained["classifier"]))
        else:
            with pytest.raises(UserError, match=r"matches only heads/representation/\*, which the stage does not"):
                make()
