"""Data: splits, sources, sampling and the two feeds.

from shike_jax.data import SOURCES, Part, Source, Split
"""

from shike_jax.data.sources import Source
from shike_jax.data.splits import Part, Split, longtailed
from shike_jax.methods.tables import SOURCES

__all__ = ["SOURCES", "Part", "Source", "Split", "longtailed"]
