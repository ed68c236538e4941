"""Shared fixtures: where the reference data lies, a CPU-only JAX, and one cache of compiled programs for all tests."""

import gc
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the tests' time goes into compiling the same small networks: all tests, their workers and the processes that
# they start share one cache, which goes when the tests end.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
_CACHE = "JAX_COMPILATION_CACHE_DIR"
# One device, here and in processes that tests start, unless a test says otherwise: the same on every machine.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
ROOT = pathlib.Path(__file__).resolve().parent.parent


_MADE_HERE = pytest.StashKey[str]()
GOLDEN = ROOT / "tests" / "golden"
SHARED = pathlib.Path(os.environ.get("SHIKE_SHARED", ROOT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """Makes the cache before workers start, which inherit the variable that names it."""
    if _CACHE not in os.environ:
        os.environ[_CACHE] = config.stash[_MADE_HERE] = tempfile.mkdtemp(prefix="shike-tests-compiled-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the cache that this process made."""
    if _MADE_HERE in config.stash:
        shutil.rmtree(config.stash[_MADE_HERE], ignore_errors=True)


# Files whose runs take longest, two processes or whole commands: begun last, one would keep a single worker busy.
LONGEST = ("test_restarts", "test_library", "test_everything", "test_older_runs", "test_parallel", "test_stopping")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files; `launch/test.sh` has the workers keep to this order."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def no_job_outlives_its_test() -> Iterator[None]:
    """A run that a failed test did not wait for would train on, and slow down every test after it."""
    from tests import jobs

    before = len(jobs.STARTED)
    yield
    for job in jobs.STARTED[before:]:
        job.kill()


@pytest.fixture(autouse=True, scope="module")
def registries_as_they_were() -> Iterator[None]:
    """What the guide or a test registers is forgotten after its module, whichever modules a worker runs next."""
    from shike_jax import augment, data, methods, models  # noqa: F401  (what comes with the package registers itself)
    from shike_jax.methods import tables

    found = [*vars(methods).values(), *vars(tables).values()]
    registries = [value for value in found if isinstance(value, methods.Registry)]
    before = [dict(registry._entries) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry._entries = entries


@pytest.fixture(autouse=True, scope="module")
def what_a_file_leaves_is_not_collected_again() -> Iterator[None]:
    """Compiled programs stay for the files after it; going through all of them in every collection takes longer."""
    yield
    gc.freeze()


@pytest.fixture(scope="module")
def quickly_compiled() -> Iterator[None]:
    """Has XLA compile with few optimisations, in this process and in those that it starts.

    For files that start whole runs to see what a run does: compiling takes most of their time. Tests of numbers against
    other code's numbers do without it, so that they see what users run.
    """
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")
        yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with golden files and real data: $SHIKE_SHARED, else ../shared beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data folder {SHARED} is absent (set SHIKE_SHARED)")
    return SHARED
