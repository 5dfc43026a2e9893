"""Real Ray, real processes: the number of workers changes nothing, and a kill costs only the shard in hand."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness.store import DETERMINISTIC, Store
from tests.tiny import tiny_stable_diffusion

pytestmark = pytest.mark.xdist_group("ray-runs")  # see tests/conftest.py
ROOT = Path(__file__).parent.parent
SLOW = '''
import time
from dataclasses import dataclass

from harness.noise.base import NoiseContext, Refined


@dataclass(frozen=True)
class Slow:
    """Leaves the noise as it is, slowly, so that a kill meets a shard in hand."""

    def __call__(self, ctx: NoiseContext) -> Refined:
        time.sleep(0.3)
        return Refined(ctx.noise)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("resume")
    weights = tiny_stable_diffusion(made / "weights")
    (made / "slow.py").write_text(SLOW)
    (made / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(20)))
    content: dict[str, Any] = {
        "name": "killed",
        "models": {"sd": {"family": "stable_diffusion", "weights": str(weights), "batch": 4}},
        "prompts": {"things": {"set": "things", "path": "prompts.txt"}},
        "seeds": [0, 1],
        "sampler": {"name": "ddim", "steps": 2},
        "methods": {
            "slow": {"noise": "slow:Slow"},
            "guided": {"noise": "slow:Slow", "guidance": {"cfg": {"scale": 4}}},
        },
    }
    (made / "killed.yaml").write_text(yaml.safe_dump(content))
    return made


# A Ray of each run's own, whatever else runs on this machine: its workers then descend from its driver.
ALONE = {**os.environ, "RAY_ADDRESS": "local"}


def command(folder: Path, results: str, workers: int) -> list[str]:
    return [
        sys.executable, "-m", "harness", "run", str(folder / "killed.yaml"), "--results", str(folder / results),
        "--workers", str(workers),
    ]


def finish(folder: Path, results: str, workers: int) -> pd.DataFrame:
    done = subprocess.run(
        command(folder, results, workers), cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return images(folder, results)


def images(folder: Path, results: str) -> pd.DataFrame:
    rows = Store(folder / results / "killed").read("images", columns=list(DETERMINISTIC))
    rows["image"] = [image and image["bytes"] for image in rows["image"]]
    return rows.sort_values(["method", "sample_id"], ignore_index=True)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> pd.DataFrame:
    rows = finish(folder, "one", 0)  # in one process, without Ray
    assert len(rows) == 2 * 2 * 20
    assert rows["error"].isna().all()
    return rows


def test_two_workers_make_what_one_process_makes_byte_for_byte(folder: Path, undisturbed: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(finish(folder, "two", 2), undisturbed)


def _actors(driver: int) -> list[int]:
    """Processes of Ray actors that descend from this driver."""
    parent = {}
    names = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(entry)] = Path(f"/proc/{entry}/cmdline").read_text()
        except OSError:
            continue

    def descends(pid: int) -> bool:
        while pid in parent and pid != driver:
            pid = parent[pid]
        return pid == driver

    return [pid for pid, name in names.items() if name.startswith("ray::_Actor") and descends(pid)]


def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(folder: Path, undisturbed: pd.DataFrame) -> None:
    moments = random.Random(7)
    store = Store(folder / "killed" / "killed")
    kills = {"worker": 0, "driver": 0}
    victims = ("worker", "worker", "driver")
    log = folder / "killed.log"
    for attempt in range(8):
        before = len(list(store.parts("images")))
        with log.open("wb") as out:
            driver = subprocess.Popen(command(folder, "killed", 2), cwd=ROOT, env=ALONE, stdout=out, stderr=out)
            # Once the workers are there (the first time) or at work: two of them at random, then the driver.
            while driver.poll() is None and not _actors(driver.pid):
                time.sleep(0.05)
            while driver.poll() is None and attempt > 0 and len(list(store.parts("images"))) == before:
                time.sleep(0.02)
            for victim in victims:
                time.sleep(moments.uniform(0, 1.0))
                target = driver.pid if victim == "driver" else moments.choice(_actors(driver.pid) or [0])
                if driver.poll() is None and target:
                    os.kill(target, signal.SIGKILL)
                    kills[victim] += 1
            if driver.wait(timeout=300) == 0:  # it was done before its turn came: leave something to kill over
                for part in list(store.parts("images"))[::2]:
                    store.path("images", part).unlink()
        for path in store.root.rglob("*.parquet"):
            pd.read_parquet(path)  # whole, whatever was killed
        if kills["worker"] >= 2 and kills["driver"] >= 1:
            break
    assert kills["worker"] >= 2, log.read_text()
    assert kills["driver"] >= 1, log.read_text()
    # The last time only a worker is killed: the driver goes on by itself and needs nobody's help.
    for part in list(store.parts("images"))[::2]:  # so that there is something to do for a worker
        store.path("images", part).unlink()
    driver = subprocess.Popen(command(folder, "killed", 2), cwd=ROOT, env=ALONE, stderr=subprocess.PIPE, text=True)
    actors: list[int] = []
    while driver.poll() is None and not actors:
        time.sleep(0.05)
        actors = _actors(driver.pid)
    os.kill(actors[0], signal.SIGKILL)
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    pd.testing.assert_frame_equal(images(folder, "killed"), undisturbed)


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(folder: Path, undisturbed: pd.DataFrame, ctrl_c: None) -> None:
    driver = subprocess.Popen(
        command(folder, "stopped", 2), cwd=ROOT, env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while driver.poll() is None and not _actors(driver.pid):
        time.sleep(0.05)
    time.sleep(0.5)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    pd.testing.assert_frame_equal(finish(folder, "stopped", 0), undisturbed)
