"""Keeps other libraries' warnings and notices away from the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any


def quiet_third_parties(level: str) -> None:
    """Silences other libraries' warnings unless `level` is debug; call before they are imported."""
    if level == "debug":
        logging.basicConfig(level=logging.INFO)
        return
    # TensorFlow, which clu imports, logs to stderr before anyone can ask it not to.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    sys.unraisablehook = _unraisable
    try:
        from absl import logging as absl_logging

        # Errors reach us as exceptions, and Orbax prints a traceback of its own for each.
        absl_logging.set_verbosity(absl_logging.FATAL)
    except ImportError:
        pass


def _unraisable(found: Any) -> None:
    """Drops what TensorStore prints of its event loop after a save has failed: the failure itself is an exception."""
    if not (isinstance(found.exc_value, RuntimeError) and "Event loop is closed" in str(found.exc_value)):
        sys.__unraisablehook__(found)
