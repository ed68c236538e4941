"""One thing of each kind that a user may register, in a file outside the package: `test_everything.py` copies it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from shike_jax import config as schema
from shike_jax.augment import POLICIES
from shike_jax.data import SOURCES, Part, Source, Split
from shike_jax.methods import (
    ADJUSTMENTS,
    AVERAGES,
    FEATURE_HOOKS,
    LOSSES,
    MIXINGS,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULES,
    SCORES,
    Number,
)
from shike_jax.models import NETWORKS

COUNTS = {"train": (24, 12, 6, 4), "test": (8, 8, 8, 8)}


@SOURCES.register("waves", parameters={"noise": Number(0.3, low=0)})
def waves(data, noise):
    """float32 [N,12,2]: sine and cosine of a frequency for each class."""
    draw, parts, values = np.random.default_rng(data.subset_seed), {}, {}
    for part, counts in COUNTS.items():
        labels = np.repeat(np.arange(4, dtype=np.int32), counts)
        angle = np.arange(12) * (1 + labels[:, None]) / 3 + draw.uniform(0, 6, (len(labels), 1))
        clean = np.stack([np.sin(angle), np.cos(angle)], -1)
        values[part] = (clean + noise * draw.standard_normal(clean.shape)).astype(np.float32)
        parts[part] = Part(np.arange(len(labels)), labels)
    return Source(Split("waves", f"waves of noise {noise:g}", data.subset_seed, tuple("abcd"), parts), values)


class Waves(nn.Module):
    """Two experts over one layer, with features and without batch normalisation."""

    classes: int
    width: int
    dtype: jnp.dtype

    def setup(self):
        self.shared = nn.Dense(self.width, dtype=self.dtype)
        self.own = [nn.Dense(self.width, dtype=self.dtype) for _ in range(2)]
        self.heads = [nn.Dense(self.classes) for _ in range(2)]

    def features(self, images, **mode):
        shared = nn.relu(self.shared(images.reshape(images.shape[0], -1)))
        return {"fused": [nn.relu(layer(shared)) for layer in self.own]}

    def classify(self, fused, heads="representation"):
        return jnp.stack([head(x.astype(jnp.float32)) for head, x in zip(self.heads, fused, strict=True)])

    def __call__(self, images, heads="representation", **mode):
        return self.classify(self.features(images)["fused"], heads)


@NETWORKS.register("layered", parameters={"units": 8})
def layered(model, num_classes, *, dtype, axis_name, units):
    return Waves(num_classes, units, dtype)


@POLICIES.register("jitter", parameters={"size": 0.1})
def jitter(key, image, size):
    return image + size * jax.random.normal(key, image.shape, image.dtype)


@SAMPLERS.register("rarely", balances=True)
def rarely(key, labels):
    """Positions drawn in proportion to 1 / n of their class."""
    weights = (1 / np.bincount(labels))[labels]
    return jax.random.choice(key, len(labels), labels.shape, p=jnp.asarray(weights / weights.sum())).astype(jnp.int32)


@SAMPLERS.register("with_rare", partner="rarely")
def with_rare(key, labels):
    return jax.random.permutation(key, len(labels))


@MIXINGS.register("onto", about="length of what a rare partner covers, from 0 to 1; 0: off", high=1.0, pairs=True)
def onto(inputs):
    """The partner's first part before the own rest, of a length for each image (as CMO, Park et al. 2022)."""
    length = inputs.images.shape[1]
    share = jax.vmap(jax.random.uniform)(inputs.keys)
    covered = jnp.floor(inputs.strength * share * length)
    own = jnp.arange(length) >= covered[:, None]
    return jnp.where(own[..., None], inputs.images, inputs.partners), 1 - covered / length


@FEATURE_HOOKS.register("shaken", about="size of noise on the features; 0: off")
def shaken(inputs):
    keys = jax.random.split(inputs.key, len(inputs.maps))
    return [x + inputs.strength * jax.random.normal(k, x.shape) for k, x in zip(keys, inputs.maps, strict=True)]


@LOSSES.register("noisy", parameters={"noisy_size": Number(0.1, low=0)})
def noisy(inputs, noisy_size):
    noise = jax.vmap(lambda key: jax.random.normal(key, inputs.logits.shape[-1:]))(inputs.key)
    z = inputs.logits - noisy_size * jnp.abs(noise)
    return -jnp.take_along_axis(jax.nn.log_softmax(z), inputs.labels[None, :, None], -1)[..., 0].sum(0)


@LOSSES.register("centred", parameters={"centred_rate": 0.1}, module=True, views=2)
class Centred(nn.Module):
    """Distance of projected views to class centres that are carried from step to step."""

    centred_rate: float = 0.1

    @nn.compact
    def __call__(self, inputs):
        z = nn.Dense(4, name="out")(jnp.concatenate([inputs.features, *inputs.views]).mean(0))
        centres = self.variable("memory", "centres", jnp.zeros, (len(inputs.class_counts), 4))
        steps = self.variable("memory", "steps", jnp.zeros, (), jnp.int32)
        value = jnp.sum((z - centres.value[inputs.labels]) ** 2, -1)
        if not self.is_initializing():
            of = jax.nn.one_hot(inputs.gather(inputs.labels), len(centres.value))
            of = of * inputs.gather(inputs.mask)[:, None]
            mean = of.T @ inputs.gather(jax.lax.stop_gradient(z)) / jnp.maximum(of.sum(0), 1)[:, None]
            seen = (of.sum(0) > 0)[:, None]
            centres.value += jnp.where(seen, self.centred_rate * (mean - centres.value), 0)
            steps.value += 1
        return value


@SCHEDULES.register("thirds")
def thirds(step, stage):
    return stage.lr / 3.0 ** (step // stage.steps_per_epoch)


@OPTIMIZERS.register("lion_like")
def lion_like(learning_rate, momentum, weight_decay):
    return optax.chain(optax.scale_by_lion(b1=momentum), optax.scale_by_learning_rate(learning_rate))


@AVERAGES.register("tenth")
def tenth(done, settings):
    return jnp.where(done == 1, 1.0, 0.1)


@SCORES.register("worst", title="worst class")
def worst(predictions):
    return float(np.nanmin(predictions.class_accuracy()))


@ADJUSTMENTS.register("agreed", views=3)
def agreed(inputs, tau):
    """Experts weighted by how well their softmax agrees between the further views (as SADE, Zhang et al. 2022)."""
    assert len(inputs.views) == 2 and all(view.shape == inputs.logits.shape for view in inputs.views)
    one, other = (np.asarray(jax.nn.softmax(view)) for view in inputs.views)
    weights = np.exp(tau * (one * other).sum(-1).mean(-1))
    return inputs.logits * (weights / weights.mean())[:, None, None]


def get_config(arguments=None):
    config = schema.base()
    config.name = "everything"
    config.data.update({"source": "waves", "name": "waves"})
    config.augment.update({"crop": "none", "flip": False, "policy": "jitter"})
    config.model.update({"backbone": "layered", "depths": (1, 1)})
    config.model.layered.units = 6
    config.run = ("first", "second")
    common = {"batch_size": 16, "epochs": 3, "schedule": "thirds", "optimizer": "lion_like", "lr": 0.01}
    config.stages.first = schema.stage(**common, sampler="with_rare", onto=0.5)
    config.stages.first.loss.update({"ce": 1.0, "noisy": 0.5, "centred": 0.1})
    config.stages.second = schema.stage(**common, shaken=0.1, average="tenth", train=("heads_.*", "losses/.*"))
    config.stages.second.loss.update({"ce": 0.0, "balanced": 1.0, "centred": 0.1, "centred_rate": 0.2})
    config.train.update({"tensorboard": False, "log_every_steps": 1})
    return config
