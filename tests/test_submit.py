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
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.light import patiently, within
from tests.tiny import tiny_stable_diffusion

pytestmark = pytest.mark.xdist_group("ray-engine")  # see tests/conftest.py
ROOT = Path(__file__).parent.parent


def _kill_all(folder: str) -> None:
    """Ends every process that names a folder on its command line: the head and all that it started."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if folder in Path(f"/proc/{entry}/cmdline").read_text() and int(entry) != os.getpid():
                os.kill(int(entry), signal.SIGKILL)


@pytest.fixture(params=["no token", "token"])
def head(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a shell on a head that `ray start` has made, as `cluster.yaml` does. Ray asks for a token
    where one is kept in the home folder. The head has a temporary folder of its own, so that no other Ray on this
    machine is touched; its path is short because Ray puts sockets below it."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    if request.param == "token":
        (home / ".ray" / "auth_token").write_text("0123456789abcdef0123456789abcdef")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    environment |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(home), "PYTHONPATH": str(ROOT)}
    arguments = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    noted = Path(folder) / "ray" / "ray_current_cluster"

    def start() -> None:
        Path(folder).mkdir(exist_ok=True)
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *arguments, "--disable-usage-stats"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        started.append(process)
        assert within(120, lambda: noted.exists() or process.poll() is not None)
        assert process.poll() is None

    def stop() -> None:
        _kill_all(folder)
        started.pop().wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)

    started: list[subprocess.Popen[bytes]] = []
    try:
        patiently(start, after=stop)
        yield environment | {"PORT": str(port)}
    finally:
        stop()


def test_the_submitted_script_joins_the_cluster(head: dict[str, str], tmp_path: Path) -> None:
    home = Path(head["HOME"])  # `ray submit` copies this one file to ~ and runs it there
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
    assert f":{head['PORT']}: " in where["where"]


def test_an_address_where_nobody_answers_is_a_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "shapes", "--limit", "1", "--address", "127.0.0.1:1",
         "--results", str(tmp_path)],
        cwd=ROOT, env={name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"},
        capture_output=True, text=True, timeout=300, check=False,
    )
    assert done.returncode == 2
    assert "127.0.0.1:1" in done.stderr
    assert "set RAY_AUTH_MODE=token" in done.stderr  # no token is shown to an address that may be anybody's
    assert "Traceback" not in done.stderr
