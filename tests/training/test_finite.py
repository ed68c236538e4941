"""Numbers that are not finite end a stage: in one line that names where they are, without results."""

import json

import numpy as np
import pytest

from shike_jax.config.loading import parse_config
from shike_jax.errors import UserError
from shike_jax.storage.logs import RunLog
from shike_jax.training import loop
from shike_jax.training.finite import EpochSums, check_variables
from tests.jobs import digits

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def variables(**broken):
    """Two layers, with one number of the named arrays replaced."""
    found = {
        "params": {"conv1": {"kernel": np.ones((2, 2))}, "conv2": {"kernel": np.ones(3)}},
        "batch_stats": {"bn1": {"mean": np.zeros(2), "var": np.ones(2)}},
    }
    for path, value in broken.items():
        kind, layer, name = path.split("__")
        found[kind][layer][name].flat[1] = value
    return found


@pytest.mark.parametrize(
    ("broken", "step", "said"),
    [
        (
            {"params__conv1__kernel": np.nan, "params__conv2__kernel": np.inf},
            1,
            "parameters (conv1/kernel and 1 more) are not finite in stage one, by step 1; last good checkpoint: C/4; "
            "try a lower learning rate",
        ),
        (
            {"batch_stats__bn1__var": np.inf},
            1,
            "running statistics (bn1/var) are not finite in stage one, by step 1; last good checkpoint: C/4; no weight "
            "had been updated before, so look at the images, data.mean, data.std and the losses",
        ),
        (
            {"batch_stats__bn1__mean": np.nan},
            2,
            "running statistics (bn1/mean) are not finite in stage one, by step 2; last good checkpoint: C/4; look at "
            "the images, data.mean and data.std, or try a lower learning rate",
        ),
    ],
)
def test_variables_that_are_not_finite_are_named(broken, step, said):
    with pytest.raises(UserError) as stopped:
        check_variables(variables(**broken), "stage one", step, lambda: "C/4")
    assert str(stopped.value) == said


def test_finite_variables_pass():
    check_variables(variables(), "stage one", 1, pytest.fail)


def sums_of(*losses):
    """The sums of three steps of two images each, of which the losses are given for each step."""
    sums = EpochSums("stage one, epoch 0", lambda: None)
    for step, terms in enumerate(losses, 1):
        total = sum(terms.values())
        sums.add({"loss": total, **terms, "correct": 1.0, "count": 2.0}, step)
    return sums


@pytest.mark.parametrize(
    ("losses", "said", "rate"),
    [
        ([{"ce": 2.0, "mine": 1.0}, {"ce": 2.0, "mine": np.nan}], "the loss mine is not finite", True),
        ([{"ce": 2.0, "mine": np.inf}, {"ce": np.nan, "mine": np.nan}], "the loss mine is not finite", False),
        ([{"ce": 2.0, "mine": 1.0}, {"ce": np.nan, "mine": np.nan}], "the loss is not finite", True),
        ([{"ce": np.nan}], "the loss is not finite", False),
    ],
)
def test_the_first_step_whose_loss_is_not_finite_is_named_with_the_term(losses, said, rate):
    """A rate can be the reason only once it has moved the weights."""
    bad = next(step for step, terms in enumerate(losses, 1) if not np.isfinite(sum(terms.values())))
    with pytest.raises(UserError) as stopped:
        sums_of(*losses, losses[-1]).fetch()
    assert str(stopped.value).startswith(f"{said} in stage one, epoch 0, by step {bad} (")
    assert ("learning rate" in str(stopped.value)) == rate
    assert ("data.std" in str(stopped.value)) != rate


def run(*changes):
    settings = digits(1, 1, "run=('representation',)", "log=quiet", "stages.representation.max_steps=1", *changes)
    return parse_config(settings)[0]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (["lr=1e30", "warmup_lr=1e30"], "the logits of 300 of 300 images are not finite"),  # the last step's own
        (["lr=1e38", "warmup_lr=1e38", "weight_decay=1e9"], "parameters (expert0/"),
    ],
)
def test_a_last_step_that_breaks_the_weights_leaves_no_results(tmp_path, changes, where):
    config = run(*(f"stages.representation.{change}" for change in changes))
    with pytest.raises(UserError) as stopped:
        loop.train(config, tmp_path / "w")
    assert str(stopped.value).startswith(where), stopped.value
    assert not (tmp_path / "w" / "results.json").exists() and not (tmp_path / "w" / "weights").exists()


def test_metrics_hold_null_for_what_is_no_number(tmp_path):
    log = RunLog(tmp_path, "quiet", True, tensorboard=False)
    log.scalars(3, {"mine": np.nan, "loss": 1.0})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 3, "mine": None, "loss": 1.0}
