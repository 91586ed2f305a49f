"""Settings of the test suite: threads, data folder, hypothesis profiles."""

import collections
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Before SciPy is first imported, whose OpenBLAS also serves JAX: one thread for each test process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Programs are small here and run few times: compiling them well took most of the tests' time.
# `XLA_FLAGS= make test` compiles them as a user does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

_data = Path(__file__).parents[2] / "shared" / "data"
if _data.is_dir():
    os.environ.setdefault("LOWRANK_DATA", str(_data))

# JAX compiles within the first example, so no profile has a deadline.
hypothesis.settings.register_profile(
    "ci", max_examples=15, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("dev", max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


gc.disable()  # until everything is imported


def pytest_collection_finish() -> None:
    """Leave what is imported out of all collections of garbage."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of each test in what is marked `thinned(k)`, every k-th case stays; the others are slow."""
    seen: collections.Counter[str] = collections.Counter()
    for item in items:
        marker = item.get_closest_marker("thinned")
        if marker is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % marker.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real networks and data; a test that asks for it is skipped without one."""
    folder = os.environ.get("LOWRANK_DATA")
    if folder is None:
        pytest.skip("LOWRANK_DATA is not set: point it at the folder of real networks and data")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"LOWRANK_DATA is {folder!r}, which is not a folder")
    return path


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Accelerators multiply float32 in fewer digits unless asked."""
    import jax

    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Forget compiled programs before there are too many: Linux gives a process some 65,000 memory
    maps, a program takes fifteen, and the compiler crashes where there are none left.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 15_000:
        import jax  # not above, where it would import SciPy before the number of threads is set

        jax.clear_caches()
