"""Probabilistic contrastive learning (ProCo, Du et al. 2024, "Probabilistic Contrastive Learning for Long-Tailed Visual
Recognition"): features of each class follow a von Mises-Fisher distribution, estimated while training goes on, and the
contrast with infinitely many samples of all classes has a closed form.

Where this differs from the authors' code: the projection has no batch normalisation, so that an image's loss does not
depend on its neighbours; a class's mean is taken over about its last epoch of features, where the authors begin again
with every epoch; the means have seen both views when the first of them is contrasted.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.losses import balanced_softmax
from shike_jax.methods.registry import Number

Array = jax.Array
LARGEST = 1e5  # concentration of a class whose features agree, as in the authors' code
FRESH = 0.9  # length of a class's mean before one of its images has been seen


def concentration(means: Array) -> Array:
    """The estimated kappa [...] of von Mises-Fisher distributions from mean unit vectors [..., P] (eq. 13)."""
    length = jnp.linalg.norm(means, axis=-1)
    return jnp.minimum(means.shape[-1] * length / jnp.maximum(1 - length**2, 1e-12), LARGEST)


def contrast(features: Array, means: Array, temperature: float) -> Array:
    """log of the ratio of normalisers C_P(kappa_c) / C_P(|kappa_c mu_c + z / temperature|) (eqs. 16 and 17).

    It is log E exp(z . v / temperature) over the features v of class c: the logit of z in a contrast with all of them.
    Features float [B,P] of length 1 and class means float [C,P] give float [B,C].
    """
    order = features.shape[-1] / 2 - 1
    kappa = concentration(means)
    direction = means / jnp.maximum(jnp.linalg.norm(means, axis=-1, keepdims=True), 1e-12)
    growth = 2 * kappa * (features @ direction.T) / temperature + temperature**-2  # of the square of kappa
    before = jnp.sqrt(1 + (kappa / order) ** 2)
    after = jnp.sqrt(jnp.maximum(before**2 + growth / order**2, 1.0))
    # Both normalisers are of the size of kappa, up to 1e5: only their difference, taken term by term, is exact enough.
    step = growth / order**2 / (after + before)
    leading = order * (step - jnp.log1p(step / (1 + before))) - jnp.log1p(step / before) / 2
    return leading + jnp.log(_series(1 / after, order) / _series(1 / before, order))


def _series(t: Array, order: float) -> Array:
    """The first terms of the expansion of the Bessel function I of a large order (Abramowitz & Stegun 9.7.7)."""
    first = (3 * t - 5 * t**3) / 24
    second = (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152
    third = (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720
    return 1 + first / order + second / order**2 + third / order**3


def moved_means(
    means: Array, amounts: Array, features: Array, labels: Array, weights: Array, most: Array
) -> tuple[Array, Array]:
    """Class means [C,P] and how many features they are of [C], after a batch (eq. 14).

    Each image counts as much as each that has been seen; one with weight 0 is padding. The amounts end at `most` [C],
    so that old features fade.
    """
    of_class = jax.nn.one_hot(labels, len(means), dtype=features.dtype) * weights[:, None]
    new = jnp.sum(of_class, 0)
    share = (new / jnp.maximum(new + amounts, 1))[:, None]
    batch_means = of_class.T @ features / jnp.maximum(new, 1)[:, None]
    return (1 - share) * means + share * batch_means, jnp.minimum(amounts + new, most)


@LOSSES.register(
    "proco",
    parameters={
        "proco_temperature": Number(0.1, low=1e-3),
        "proco_dimensions": Number(128, low=8),
        "proco_hidden": Number(512, low=1),
    },
    module=True,
    views=3,
    balances=True,
)
class ProCo(nn.Module):
    """Contrast of two further views with the classes' distributions, logit-adjusted (ProCo, Du et al. 2024, eq. 18).

    Each expert has a projection of its own, two dense layers, to unit vectors of `proco_dimensions` numbers, and class
    means of its own; the losses are averaged over the two views and summed over the experts.
    """

    proco_temperature: float = 0.1
    proco_dimensions: int = 128
    proco_hidden: int = 512

    @nn.compact
    def __call__(self, inputs: LossInputs) -> Array:
        views = jnp.concatenate(inputs.views, 1)  # [M,2B,F]
        experts, _, width = views.shape
        classes, size, kind = len(inputs.class_counts), int(self.proco_dimensions), views.dtype
        hidden = nn.relu(self._dense("hidden", views, (experts, width, int(self.proco_hidden))))
        projected = self._dense("out", hidden, (experts, int(self.proco_hidden), size))
        z = projected / jnp.maximum(jnp.linalg.norm(projected, axis=-1, keepdims=True), 1e-6)

        def first_means() -> Array:
            drawn = jax.random.normal(self.make_rng("params"), (experts, classes, size), kind)
            return FRESH * drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)

        means = self.variable("class_means", "means", first_means)
        amounts = self.variable("class_means", "amounts", jnp.zeros, (classes,), kind)
        if not self.is_initializing():
            rows = inputs.gather(jnp.moveaxis(lax.stop_gradient(z).reshape(experts, 2, -1, size), 2, 0))  # [B,M,2,P]
            labels, weights = inputs.gather(inputs.labels), inputs.gather(inputs.mask)
            of_views = jnp.moveaxis(rows, 0, 2).reshape(experts, -1, size)  # [M,2B,P], the global batch
            most = 2 * jnp.asarray(inputs.class_counts, kind)
            found = [
                moved_means(one, amounts.value, own, jnp.tile(labels, 2), jnp.tile(weights, 2).astype(kind), most)
                for one, own in zip(means.value, of_views, strict=True)
            ]
            means.value, amounts.value = jnp.stack([one for one, _ in found]), found[0][1]
        logits = jnp.stack(
            [contrast(own, one, self.proco_temperature) for own, one in zip(z, means.value, strict=True)]
        )
        each = balanced_softmax(logits, jnp.tile(inputs.labels, 2), inputs.class_counts)
        return jnp.mean(each.reshape(2, -1), 0)

    def _dense(self, name: str, x: Array, shape: tuple[int, int, int]) -> Array:
        """A dense layer of each expert: [M,N,F] to [M,N,shape[-1]]."""
        kernel = self.param(f"{name}_kernel", nn.initializers.lecun_normal(batch_axis=0), shape, x.dtype)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (shape[0], 1, shape[2]), x.dtype)
        return jnp.einsum("mnf,mfh->mnh", x, kernel) + bias
