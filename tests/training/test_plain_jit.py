"""A training step under plain `jax.jit`, where no device axis is bound, against the compiled step on two devices."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Everything of a step that looks over its own device: BN statistics, sums, augmentation by the place in the batch,
# mixing with partners anywhere in it, and a loss of a second view that compares all images, draws for each of them and
# carries variables.
COMPARE = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import flax.linen as nn
import numpy as np
from shike_jax import config as schema
from shike_jax import models
from shike_jax.cluster import parallel
from shike_jax.data.views import device_augment
from shike_jax.methods import LOSSES
from shike_jax.training import compiled_steps, loss_variables, steps
from shike_jax.training.program import make_program
from shike_jax.training.state import start_stage

assert jax.device_count() == 2


@LOSSES.register("alike", parameters={"alike_rate": 0.5}, module=True, views=2)
class Alike(nn.Module):
    alike_rate: float = 0.0

    @nn.compact
    def __call__(self, inputs):
        views = jnp.stack([inputs.features.mean(0), inputs.views[0].mean(0)])
        one, other = jnp.tanh(nn.Dense(3, param_dtype=jnp.float64)(views))
        one = one + 0.01 * jax.vmap(lambda key: jax.random.normal(key, (3,)))(inputs.key)
        everyone, real = inputs.gather(other), inputs.gather(inputs.mask)
        seen = self.variable("queue", "mean", jnp.zeros, (3,))
        count = self.variable("queue", "steps", jnp.zeros, (), jnp.int32)
        value = jax.nn.logsumexp(one @ everyone.T, -1, b=real) + one @ seen.value
        if not self.is_initializing():
            newest = jax.lax.stop_gradient(real @ everyone / real.sum())
            seen.value += self.alike_rate * (newest - seen.value)
            count.value += 1
        return value


config = schema.base()
schema.shike_stages(config, "paper")
config.stages.representation.loss.update({"alike": 0.7})
config.stages.representation.update({"mixup": 1.0, "cutmix": 1.0, "weight_decay": 1e-3, "sam_rho": 0.05})
network = models.create_model(
    "resnet20", 5, experts=(1, 2), width=4, blocks=(1, 1, 1), dtype=jnp.float64, axis_name=parallel.AXIS
)
draw = np.random.default_rng(0)
images = draw.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
variables = jax.tree.map(np.asarray, dict(jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))))
counts = np.arange(5, 0, -1)
variables = loss_variables.with_losses(
    variables, [config.stages.representation], (2, 16), counts, 0
)
program = make_program(
    config.stages.representation, network, variables["params"], counts,
    device_augment(config, jnp.float64), jax.random.key(3), 10, 100,
)
mask = np.array([1, 1, 1, 1, 1, 1, 0, 1], np.float64)
batch = {"image": images, "label": draw.integers(0, 5, 8).astype(np.int32), "mask": mask}
state = start_stage(variables, program)

plain, plain_sums = jax.jit(lambda state, batch: steps.train_step(program, state, batch))(state, batch)
call = compiled_steps.compile_train(program, lambda data, item: item)
inputs = jax.tree.map(lambda x: x[:, None], parallel.split_batch(batch))
compiled, sums = call(parallel.replicate(state), (), inputs)

assert float(plain_sums["count"]) == 7 and plain_sums["loss"].dtype == jnp.float64
ours, theirs = parallel.to_host((plain, plain_sums)), parallel.to_host((compiled, sums))
queue = ours[0].batch_stats["losses"]["alike"]["queue"]
assert queue["steps"] == 1 and np.abs(queue["mean"]).min() > 1e-3
trunks = [{name: tree[name] for name in ("trunk", "losses")} for tree in (ours[0].params, variables["params"])]
assert min(jax.tree.leaves(jax.tree.map(lambda new, old: np.abs(new - old).max(), *trunks))) > 0
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11), ours, theirs)
"""


@pytest.mark.usefixtures("quickly_compiled")
def test_one_step_is_that_of_two_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPARE]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **flags}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
