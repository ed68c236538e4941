"""Augmentation in JAX: Pillow's operations, AutoAugment, RandAugment, Cutout and normalisation."""

from shike_jax.augment.pipeline import make_eval_transform, make_train_augment

__all__ = ["make_eval_transform", "make_train_augment"]
