"""Speed, measured next to what else could be used: `python -m shike_jax benchmark`."""
