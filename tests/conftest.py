"""Shared fixtures: where the reference data lies, and a CPU-only JAX."""

import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parent.parent


GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with golden files and real data: $SHIKE_SHARED, else ../shared beside the repository."""
    path = pathlib.Path(os.environ.get("SHIKE_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"the shared data folder {path} is absent (set SHIKE_SHARED)")
    return path
