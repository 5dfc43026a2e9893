"""What tests of several files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all tests, pretending to have two GPUs, its processes able to import `tests`."""
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # workers start with this interpreter, not through uv
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local", num_cpus=4, num_gpus=2, include_dashboard=False, object_store_memory=100 * 2**20,
        log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}},
    )
    yield
    ray.shutdown()
