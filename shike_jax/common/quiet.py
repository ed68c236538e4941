"""Keeps other libraries' warnings and notices away from the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
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
    # Each write of a failed save once more, when its future is collected; the failure itself is an exception.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    from absl import logging as absl_logging

    # Errors reach us as exceptions, and Orbax prints a traceback of its own for each.
    absl_logging.set_verbosity(absl_logging.FATAL)


@contextlib.contextmanager
def quieted(level: str) -> Iterator[None]:
    """`quiet_third_parties` while the body runs, for callers from Python, whose settings come back after it."""
    from absl import logging as absl_logging

    root, hook, variables = logging.getLogger(), sys.unraisablehook, set(os.environ)
    root_level, handlers, verbosity = root.level, root.handlers[:], absl_logging.get_verbosity()
    events = logging.getLogger("asyncio")
    events_level = events.level
    with warnings.catch_warnings():
        quiet_third_parties(level)
        try:
            yield
        finally:
            absl_logging.set_verbosity(verbosity)
            root.setLevel(root_level)
            events.setLevel(events_level)
            root.handlers[:] = handlers  # a library that logs before anyone has set this up adds one of its own
            sys.unraisablehook = hook
            for name in set(os.environ) - variables:
                del os.environ[name]


def _unraisable(found: Any) -> None:
    """Drops what TensorStore prints of its event loop after a save has failed: the failure itself is an exception."""
    if not (isinstance(found.exc_value, RuntimeError) and "Event loop is closed" in str(found.exc_value)):
        sys.__unraisablehook__(found)
