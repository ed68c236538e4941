"""The compiled step serves runs of every length and seed: these are its arguments, and the cache finds it."""

import jax
import numpy as np
import pytest

from shike_jax import config as schema
from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.training import compiled_steps
from shike_jax.training.program import make_program
from shike_jax.training.state import start_stage


@pytest.fixture(scope="module")
def network():
    model = {**schema.to_plain(schema.base().model), "width": 4, "blocks": (1, 1, 1), "depths": (1,)}
    network = models.build_model(model, 3, axis_name=parallel.AXIS)
    return network, models.init_variables(network, 0, 8)


def program_of(network, length, seed=0, **fields):
    """Of a stage of `length` epochs of 7 steps."""
    stage = schema.stage(epochs=length, **fields)
    stage.loss.ldam = 1.0  # which goes by the share of the stage that is done
    key = jax.random.key(seed)
    return make_program(
        stage, network[0], network[1]["params"], np.ones(3), lambda images, keys, mask: images, key, 7, 7 * length
    )


def text_of(network, *arguments, **fields):
    program = program_of(network, *arguments, **fields)
    batch = {
        "image": np.zeros((4, 8, 8, 3), np.float32),
        "label": np.zeros(4, np.int32),
        "mask": np.ones(4, np.float32),
    }
    inputs = jax.tree.map(lambda x: x[:, None], parallel.split_batch(batch))
    state = start_stage(network[1], program)
    call = compiled_steps.compile_train(program, lambda data, item: item)
    return call.lower(state, (), inputs).as_text()


@pytest.mark.parametrize("schedule", ["warmup_cosine", "cosine", "cosine_per_step"])
def test_length_and_seed_are_not_part_of_the_compiled_step(network, schedule):
    fields = {"schedule": schedule, "average": "uniform", "average_epochs": 2}
    assert text_of(network, 8, seed=0, **fields) == text_of(network, 12, seed=1, **fields)
    assert text_of(network, 8, **fields) != text_of(network, 8, **fields, momentum=0.5)


def test_a_program_takes_the_course_that_it_is_given(network):
    """By hand: cosine to 0 over 4 and over 12 epochs of 7 steps, in the middle of each and at a third of the latter."""
    fields = {"schedule": "cosine", "lr": 0.8, "average": "uniform", "average_epochs": 1}
    short, long = program_of(network, 4, **fields), program_of(network, 12, seed=3, **fields)
    moved = short.during(long.course)
    rates = [float(program.schedule(np.int32(step))) for program, step in ((short, 14), (long, 42), (moved, 28))]
    np.testing.assert_allclose(rates, [0.4, 0.4, 0.6], rtol=1e-6)
    assert float(moved.newest_share(np.int32(80))) == np.float32(1 / 3)  # 78 is the first of the last epoch's steps
    np.testing.assert_array_equal(jax.random.key_data(moved.key), jax.random.key_data(jax.random.key(3)))
