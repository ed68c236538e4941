"""What papers write: losses, samplers, schedules, optimisers, mixing, feature hooks and scores, in registries.

Everything here is a pure function of arrays. A configuration file may add its own:

    from shike_jax.methods import LOSSES, SAMPLERS, SCHEDULES, SCORES
"""

from shike_jax.methods import proco  # noqa: F401 (registers itself)
from shike_jax.methods.adjustment import ADJUSTMENTS, AdjustmentInputs
from shike_jax.methods.averaging import AVERAGES
from shike_jax.methods.feature_hooks import FEATURE_HOOKS, HookInputs
from shike_jax.methods.loss_registry import LOSSES, LossInputs
from shike_jax.methods.mixing import MIXINGS, MixingInputs
from shike_jax.methods.optimizers import OPTIMIZERS
from shike_jax.methods.registry import Choice, Number, Option, Registry, default_of
from shike_jax.methods.samplers import SAMPLERS
from shike_jax.methods.schedules import SCHEDULES, StageLength
from shike_jax.methods.scores import SCORES, Predictions

__all__ = [
    "ADJUSTMENTS",
    "AVERAGES",
    "FEATURE_HOOKS",
    "LOSSES",
    "MIXINGS",
    "OPTIMIZERS",
    "SAMPLERS",
    "SCHEDULES",
    "SCORES",
    "AdjustmentInputs",
    "Choice",
    "HookInputs",
    "LossInputs",
    "MixingInputs",
    "Number",
    "Option",
    "Predictions",
    "Registry",
    "StageLength",
    "default_of",
]
