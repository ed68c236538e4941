"""Other batches than the recipe's: scaled learning rates, warm-ups, BN statistics of groups of devices."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from shike_jax.config.loading import load_config, parse_config
from shike_jax.errors import UserError
from shike_jax.training import loop
from tests.jobs import ROOT, digits, untouched

pytestmark = pytest.mark.usefixtures("quickly_compiled")
BATCH = ("stages.representation.batch_size=96", "train.eval_every_epochs=0", "log=quiet")
SCALED = ("lr_scaling=linear", "warmup_lr=0.02", "lr=0.05", "warmup_steps=3")


def of_representation(*changes):
    return [f"stages.representation.{change}" for change in changes]


def test_a_scaled_run_is_one_of_explicit_rates(tmp_path):
    """In float64, 96 images in place of the recipe's 32: three times the rates, to the last bit."""
    explicit = of_representation("lr=0.15", "warmup_lr=0.06", "warmup_steps=3")
    found = []
    with jax.enable_x64(True):
        for name, changes in (("scaled", of_representation(*SCALED)), ("explicit", explicit)):
            one_stage = ("run=('representation',)", "model.depths=(1,)", "dtype=float64")  # less to compile
            config, _ = parse_config(digits(3, 1, *BATCH, *changes, *one_stage))
            loop.train(config, tmp_path / name)
            rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            found.append([json.loads(row)["epoch_loss"] for row in rows if "epoch_loss" in row])
    assert len(found[0]) == 3
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_the_recipes_own_batch_is_that_of_the_file(capsys):
    config, _ = parse_config(digits(1, 1, *BATCH, *of_representation(*SCALED)))
    assert config.stages.representation.base_batch_size == 32
    assert config.stages.classifier.base_batch_size == 0
    assert capsys.readouterr().err == ""
    parse_config(digits(1, 1, *BATCH))
    said = capsys.readouterr().err
    assert said.startswith("config.stages.representation.batch_size=96, and 32 in the recipe: its learning rates stay")
    assert said.count("\n") == 1


def test_scaling_needs_to_know_the_batch(tmp_path):
    config = load_config("digits_lt")
    config.stages.classifier.lr_scaling = "sqrt"
    with pytest.raises(UserError, match=r"classifier.base_batch_size=0: expected the batch that lr is meant for"):
        loop.train(config, tmp_path / "run")


GROUPS = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from shike_jax.cluster import parallel
from shike_jax.models.layers import BatchNorm

def normalised(axis, images):
    layer = BatchNorm(axis)
    variables = layer.init(jax.random.key(0), images, train=False)
    return layer.apply(variables, images, train=True, mutable=["batch_stats"])[0]

x = np.random.default_rng(0).normal(size=(4, 3, 2, 2, 5)).astype(np.float32)
for backend in parallel.BACKENDS:
    parallel.use_backend(backend)
    step = lambda images: jax.lax.all_gather(normalised(parallel.bn_axis(True, 2), images), parallel.AXIS)
    grouped = np.asarray(parallel.compile_step(step, replicated_in=(False,), donate=False)(x))
    for half in (0, 2):
        alone = normalised(None, np.concatenate(x[half : half + 2]))
        np.testing.assert_allclose(np.concatenate(grouped[half : half + 2]), alone, atol=1e-5)
    assert np.abs(grouped - normalised(None, x.reshape(-1, 2, 2, 5)).reshape(x.shape)).max() > 0.01
"""


def test_groups_of_devices_have_bn_statistics_of_their_own():
    """Four devices in groups of two normalise as two networks that see half of the batch each."""
    done = subprocess.run([sys.executable, "-c", GROUPS], env=untouched(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RING = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from shike_jax.cluster import parallel

images = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
order = np.random.default_rng(1).permutation(12)

def step(share):
    here = parallel.device_index() * 3 + np.arange(3)
    return jax.lax.all_gather(parallel.rows_of_all(share, jax.numpy.asarray(order)[here]), parallel.AXIS, tiled=True)

for backend in parallel.BACKENDS:
    parallel.use_backend(backend)
    call = parallel.compile_step(step, replicated_in=(False,), donate=False)
    np.testing.assert_array_equal(call(images), images.reshape(12, 2, 2)[order])
"""


def test_partners_come_from_the_whole_batch_without_gathering_it():
    """Four devices: the rows at positions of a permutation, as from the whole batch in one place."""
    done = subprocess.run([sys.executable, "-c", RING], env=untouched(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
