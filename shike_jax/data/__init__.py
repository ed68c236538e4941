"""Data: splits, sources, sampling and the two feeds."""
