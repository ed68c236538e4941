"""Augmentation in JAX: Pillow's operations, AutoAugment, RandAugment, Cutout and normalisation."""

from shike_jax.augment.pipeline import make_eval_transform, make_train_augment
from shike_jax.methods.tables import POLICIES

__all__ = ["POLICIES", "make_eval_transform", "make_train_augment"]
