"""Every loss as a plain function of arrays: what `sj.losses` is."""

from shike_jax.methods.disalign import generalized_reweight
from shike_jax.methods.gcl import gaussian_clouded
from shike_jax.methods.label_aware import label_aware_smoothing
from shike_jax.methods.losses import (
    balanced_experts,
    balanced_softmax,
    class_balanced,
    cross_entropy,
    focal,
    grand_teacher,
    ldam,
    logit_adjusted,
    mutual_distillation,
    non_target_distillation,
    shike,
)
from shike_jax.methods.ride import expert_diversity
from shike_jax.methods.sade import skill_diverse

__all__ = [
    "balanced_experts",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "expert_diversity",
    "focal",
    "gaussian_clouded",
    "generalized_reweight",
    "grand_teacher",
    "label_aware_smoothing",
    "ldam",
    "logit_adjusted",
    "mutual_distillation",
    "non_target_distillation",
    "shike",
    "skill_diverse",
]
