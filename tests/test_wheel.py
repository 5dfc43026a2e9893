"""An installed wheel runs benchmarks in an empty folder, far from any checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("ray-runs")  # see tests/conftest.py
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content as an installer lays it out; its dependencies are those of this interpreter."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next(out.glob("*.whl"))
    assert wheel.stat().st_size < 20e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


BENCHMARK = """
name: first
models: {shapes-sd: {family: stable_diffusion, weights: "builtin:shapes-sd", size: 64, batch: 2}}
prompts: {shapes: {set: shapes, first: 2}}
sampler: {name: ddim, steps: 4}
methods: {plain: {}}
metrics: [geneval-shapes, fd-shapes-clip]
"""


def test_the_wheel_runs_a_benchmark_of_what_it_carries(site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": "local"}
    where = [sys.executable, "-c", "import harness; print(harness.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(site)
    (tmp_path / "first.yaml").write_text(BENCHMARK)
    first = ("run", "first.yaml", "--workers", "1")
    for arguments, shown in ((("list", "benchmarks"), "shapes-noise"), (first, "plain")):
        done = subprocess.run(
            [sys.executable, "-m", "harness", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False,
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
    assert list((tmp_path / "results" / "runs" / "first").glob("images/**/*.parquet"))


def test_the_wheel_carries_its_data(site: Path) -> None:
    names = {path.relative_to(site / "harness").as_posix() for path in (site / "harness").rglob("*") if path.is_file()}
    assert {"benchmarks/shapes.yaml", "datasets/shapes.yaml", "datasets/shapes.jsonl"} <= names
    assert "results/published/noise-selection-table1.yaml" in names
    assert "shapes/weights/shapes-sd/model_index.json" in names
    assert {"results/leaderboard/shapes.jsonl", "leaderboard.py", "analysis/leaderboard.html.j2"} <= names
