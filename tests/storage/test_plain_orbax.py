"""The lines of docs/pods.md that read a checkpoint with Orbax alone, run in a process without this package."""

import re
import subprocess
import sys

import numpy as np
import pytest

from shike_jax.storage.checkpoints import Checkpoints
from tests.jobs import ROOT, digits, untouched

pytestmark = pytest.mark.usefixtures("quickly_compiled")
BLOCKS = re.findall(r"```python\n(import jax\n.*?)```", (ROOT / "docs" / "pods.md").read_text(), re.DOTALL)
AFTER = """
state, about = (found.state, found.meta) if hasattr(found, "state") else (found["state"], found["meta"])
params = state["params"]
import sys, numpy as np
from jax.tree_util import tree_flatten_with_path
assert not [name for name in sys.modules if name.startswith("shike_jax")]
assert all(isinstance(leaf, jax.Array) or isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
total = sum(float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(params))
print(about["stage"], about["step"], len(jax.tree.leaves(params)), repr(total))
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on two devices that was stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("orbax") / "run"
    changes = ("eval_every_epochs=0", "checkpoint_every_steps=8", "cpu_devices=2")
    flags = digits(1, 1, "log=quiet", *(f"train.{change}" for change in changes))
    command = [sys.executable, "-m", "shike_jax", "train", f"--workdir={folder}", *flags]
    subprocess.run(command, cwd=ROOT, env=untouched(), check=True, capture_output=True)
    return folder


def lines_of_code(block):
    return [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]


def test_there_are_two_interfaces_in_five_lines():
    assert len(BLOCKS) == 2 and all(len(lines_of_code(block)) <= 5 for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=["v0", "v1"])
def test_orbax_alone_reads_a_checkpoint(workdir, tmp_path, block):
    script = block.replace("WORKDIR", str(workdir)) + AFTER
    environment = {name: value for name, value in untouched().items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tree, meta = Checkpoints(workdir, keep=9).restore(pytest.fail)
    leaves = [np.asarray(leaf, np.float64) for leaf in _leaves(tree["params"])]
    stage, step, count, total = done.stdout.splitlines()[-1].split()
    assert (stage, int(step), int(count)) == (meta["stage"], meta["step"], len(leaves))
    assert float(total) == pytest.approx(sum(np.abs(leaf).sum() for leaf in leaves), rel=1e-12)


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


def test_a_checkpoint_of_a_step_holds_global_arrays(workdir):
    """Orbax has noted their sharding: replicated over the devices."""
    newest = [path for path in (workdir / "checkpoints").iterdir() if (path / "state" / "_sharding").exists()]
    assert newest and '"partition_spec\\": []' in (newest[0] / "state" / "_sharding").read_text().replace("\\\\", "\\")
