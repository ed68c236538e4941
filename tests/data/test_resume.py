"""A run on image files that is stopped in the middle of an epoch ends like one that was not stopped."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shike_jax.storage.weights import load_weights
from tests.conftest import ROOT
from tests.jobs import Job, recorded_steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.slow
def test_stopped_in_the_middle_of_an_epoch_of_photographs(shared, tmp_path):
    """The default network for small folders at 64 px: SIGTERM after four steps, then to the end; bit for bit."""
    for part in ("train", "test"):
        for name in ("bonsai", "ketch", "cup", "platypus"):
            shutil.copytree(shared / "data" / "caltech101_lt" / part / name, tmp_path / "photos" / part / name)
    short = f"root={tmp_path / 'photos'},size=64,batch=16,epochs=2,classifier_epochs=1"
    flags = [f"--config={ROOT}/configs/folder_lt.py:{short}"]
    flags += ["--config.train.log_every_steps=1", "--config.train.eval_every_epochs=0"]
    job = Job(tmp_path / "whole", flags)
    assert job.wait() == [0], job.output()[-2000:]

    job = Job(tmp_path / "stopped", flags)
    while recorded_steps(tmp_path / "stopped") < 4:
        assert job.processes[0].poll() is None, job.output()[-2000:]
        time.sleep(0.05)
    job.processes[0].terminate()
    assert job.wait() == [75], job.output()[-2000:]
    step = int(re.search(r"stopped in stage representation at step (\d+)", job.output()).group(1))
    job = Job(tmp_path / "stopped", flags)
    assert job.wait() == [0], job.output()[-2000:]
    assert f"continuing in stage representation at step {step}" in job.output()

    ends = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped")]
    assert step % -(-ends[0]["split"]["sizes"]["train"] // 16), "stopped at the end of an epoch: nothing was shown"
    assert ends[0]["per_class"] == ends[1]["per_class"]
    for stage in ("representation", "classifier"):
        one, other = (
            flatten_dict(load_weights(tmp_path / name / "weights" / stage)[0], sep="/") for name in ("whole", "stopped")
        )
        assert one.keys() == other.keys()
        differ = [path for path in one if not np.array_equal(one[path], other[path])]
        assert not differ, f"{stage}: {len(differ)} of {len(one)} arrays differ, first {differ[0]}"
