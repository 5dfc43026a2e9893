"""What `ray submit` does on a head node: runs the thin script there, which joins the cluster."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_stable_diffusion

ROOT = Path(__file__).parent.parent


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    """A real head as `cluster.yaml` starts it, with a temporary folder of its own, so that no other Ray on this
    machine is touched; the path is short because Ray puts sockets below it."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
    ray = Path(sys.executable).with_name("ray")
    arguments = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    process = subprocess.Popen(
        [str(ray), *arguments, "--node-ip-address=127.0.0.1", "--disable-usage-stats"],
        env={key: value for key, value in environment.items() if key != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    try:
        for _ in range(600):
            assert process.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield environment | {"ADDRESS": f"127.0.0.1:{port}"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skip(reason="not solved: the head of `ray start` answers the driver with InvalidAuthToken (Ray 2.60)")
def test_the_submitted_script_joins_the_cluster(head: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "home"  # `ray submit` copies this one file to ~ and runs it there
    home.mkdir()
    shutil.copy(ROOT / "harness" / "__main__.py", home / "__main__.py")
    weights = tiny_stable_diffusion(tmp_path / "weights")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 2}},
                "prompts": {"two": {"set": "two", "path": "prompts.txt"}},
                "sampler": {"steps": 2},
                "methods": {"plain": {}},
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "__main__.py", "run", str(tmp_path / "small.yaml"), "--results", str(tmp_path / "results")],
        cwd=home, env=head, capture_output=True, text=True, timeout=300, check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "results" / "small" / "log.jsonl").read_text().splitlines()]
    where = next(event for event in events if event["event"] == "engine")
    assert f"Ray at {head['ADDRESS']}:" in where["where"]


def test_an_address_where_nobody_answers_is_a_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "shapes", "--limit", "1", "--address", "127.0.0.1:1",
         "--results", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
