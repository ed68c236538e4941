"""TensorBoard's files as tests read them: TensorFlow writes curves as tensors, tensorboardX as plain values."""

import pytest


def read(folder):
    """The accumulator of a folder's events; the test is skipped where TensorBoard is not installed."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder))
    found.Reload()
    return found


def tags(found):
    """Everything that has been recorded, by name."""
    return {tag for kind in found.Tags().values() if isinstance(kind, list) for tag in kind}


def last(found, name):
    """The last value of a curve."""
    if name in found.Tags()["scalars"]:
        return found.Scalars(name)[-1].value
    from tensorboard.util import tensor_util

    return float(tensor_util.make_ndarray(found.Tensors(name)[-1].tensor_proto))
