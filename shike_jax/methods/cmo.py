"""Context-rich minority oversampling (CMO, Park et al. 2022, "The Majority Can Help the Minority: Context-rich Minority
Oversampling for Long-tailed Classification"): boxes of images of balanced classes on images as they come.

A stage needs both: `sampler=foregrounds` draws the pairs, `cmo=1.0` (alpha) mixes them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from shike_jax.methods.mixing import MIXINGS, MixingInputs, cutmix
from shike_jax.methods.samplers import SAMPLERS, shuffle

Array = jax.Array
SHARE = 0.5  # of the steps that mix, as in the authors' code


@SAMPLERS.register("foregrounds", partner="balanced")
def foregrounds(key: Array, labels: np.ndarray) -> Array:
    """As `shuffle`; each example comes with one of a class drawn uniformly (CMO, whose weights are 1 / n_c)."""
    return shuffle(key, labels)


@MIXINGS.register("cmo", about="alpha of CMO, 0: off; needs the sampler foregrounds", pairs=True)
def cmo(inputs: MixingInputs) -> tuple[Array, Array]:
    """CutMix with the partner's box as foreground, in half of the steps (CMO, Park et al. 2022, algorithm 1).

    The authors leave the first and the last three epochs unmixed; here all epochs are alike.
    """
    which, key = jax.random.split(inputs.key)
    mixed, share = cutmix(dataclasses.replace(inputs, key=key))
    mixes = jax.random.bernoulli(which, SHARE)
    return jnp.where(mixes, mixed, inputs.images), jnp.where(mixes, share, 1.0)
