"""SHIKE (CVPR 2023) and related decoupled training for long-tailed recognition, in JAX and Flax."""

__version__ = "0.1.0"
