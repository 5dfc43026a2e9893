"""What tests of several files share.

Tests that start Ray stand in two groups of about equal length, `ray-runs` and `ray-engine`: those of a group run one
after the other, so that two processes of tests never have more than two Rays on the machine.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.light import patiently

# Read when ray is first imported, by whichever test: workers start with this interpreter, not through uv.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.setdefault("RAY_worker_niceness", "0")  # as the engine does

# The same examples everywhere and no deadline, so that what fails on a slow machine fails on every other one too;
# `pytest --hypothesis-profile default` draws new examples.
settings.register_profile("harness", deadline=None, derandomize=True)
settings.load_profile("harness")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all tests, pretending to have two GPUs, its processes able to import `tests`."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    patiently(lambda: ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False, object_store_memory=100 * 2**20,
        log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}},
    ), after=ray.shutdown)
    yield
    ray.shutdown()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C works, here and in child processes, also where the tests are a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread, as a worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
