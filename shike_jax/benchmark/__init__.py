"""Speed, measured beside what else could be used: `python -m shike_jax benchmark`."""
