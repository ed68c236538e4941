"""Splits, sources, samplers and the two pipelines."""
