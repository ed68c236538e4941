"""How JAX computes on a CPU: so many devices, convolutions by Eigen, memory that stays; the user's choice wins."""

import pathlib
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.jobs import digits, untouched

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PRINT = """
import jax, os
from shike_jax.cluster import cpu
cpu.prepare({})
print(jax.device_count(), os.getenv("NPROC"))
"""


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ("3", {}, "3 None"),
        ("", {}, "1 None"),
        ("3", {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, "2 None"),
        ("3", {"JAX_NUM_CPU_DEVICES": "2"}, "2 None"),
        ("3", {"NPROC": "9"}, "3 9"),
    ],
)
def test_the_users_choice_wins(arguments, variables, expected):
    environment = {**untouched(), "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", PRINT.format(arguments)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(expected)


CONVOLUTION = """
import jax.numpy as jnp
from shike_jax.cluster import cpu, parallel
from shike_jax.kernels.convolution import convolve
call = parallel.compile_step(lambda x, w: convolve(x, w, 1), replicated_in=(False, True), donate=False)
program = call.lower(jnp.ones((1, 64, 16, 16, 32)), jnp.ones((3, 3, 32, 32))).compile().as_text()
print("ynn" in program, "convolution(" in program)
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "False True"),
        ("--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION", "True True"),
    ],
)
def test_convolutions_are_left_to_eigen(flags, expected):
    """YNNPACK's are a fusion around the convolution, in the program's text."""
    environment = {**untouched(), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", CONVOLUTION]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.strip() == expected


FAULTS = """
import ctypes, resource, threading
from shike_jax.cluster import cpu
cpu.prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def touch():
    piece = libc.malloc(1 << 27)
    ctypes.memset(piece, 1, 1 << 27)
    libc.free(piece)

def twice():
    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def address_space():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

thread = threading.Thread(target=twice)
thread.start()
thread.join()
before = address_space()
libc.free(libc.malloc(3 << 30))
print(address_space() - before)
print(int(" hg" in open("/proc/self/smaps").read()))  # large pages are asked for
"""
LARGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc")
@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({"JAX_PLATFORMS": "cpu"}, True),
        ({"JAX_PLATFORMS": "cuda"}, False),
        ({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, False),
    ],
)
def test_large_pieces_of_memory_stay_in_the_process(variables, kept):
    """A thread frees 128 MiB and takes them again: 32,768 page faults of 4 KiB where the kernel got them back.

    3 GiB go back to it in any case: pieces that are kept would make room, bit by bit, for one that no machine has.
    """
    environment = {**untouched(), "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", FAULTS]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    faults, held, large = map(int, found.split())
    assert faults < 100 if kept else faults > 1000
    assert held < 2**27
    assert large == (kept and LARGE_PAGES.exists())


MAIN = """
import sys, jax
from shike_jax.commands import train
from shike_jax.training import loop
loop.train = lambda config, *_: print("devices:", jax.device_count(), config.train.cpu_devices)
train.main([*sys.argv[1:], "--config.log=quiet"])
"""


def test_a_run_has_the_devices_of_its_configuration(tmp_path):
    command = [sys.executable, "-c", MAIN, f"--workdir={tmp_path / 'run'}", *digits(1, 1, "train.cpu_devices=2")]
    found = subprocess.run(command, cwd=ROOT, env=untouched(), capture_output=True, text=True, check=True).stdout
    assert found == "devices: 2 2\n"


GROUPS = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from shike_jax.cluster import parallel
from shike_jax.cluster.axis import sum_over
for group in (0, 2):
    axis = parallel.bn_axis(True, group)
    step = parallel.compile_step(
        lambda x: parallel.all_gather(sum_over(axis, x)[None]), replicated_in=(False,), donate=False
    )
    print(step(np.arange(4.0)).tolist())
"""


def test_groups_of_neighbours_have_sums_of_their_own():
    """Of 0, 1, 2, 3 on four devices: all together, then the first two and the last two."""
    environment = {**untouched(), "PYTHONPATH": str(ROOT), "NPROC": "8"}
    done = subprocess.run([sys.executable, "-c", GROUPS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[6.0, 6.0, 6.0, 6.0]", "[1.0, 1.0, 5.0, 5.0]"]
