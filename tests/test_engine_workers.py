"""The engine with real workers: the number of workers changes nothing, and a kill costs the unit in hand."""

import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from harness.engine import LocalEngine, RayEngine
from harness.errors import HarnessError
from harness.store import DETERMINISTIC, Store
from harness.units import Report, ScoreUnit
from tests.fakes import part, unit
from tests.light import within
from tests.test_worker import make_job

pytestmark = pytest.mark.xdist_group("ray-engine")  # see tests/conftest.py


def test_every_unit_once_and_the_same_on_two_workers_as_in_this_process(cluster: None, tmp_path: Path) -> None:
    texts = [[f"prompt {i} {j}" + (" raise" if i == j == 1 else "") for j in range(4)] for i in range(6)]
    units = [unit(text, f"0-{4 * i}-{4 * i + 3}", batch=2) for i, text in enumerate(texts)]
    scoring = [
        ScoreUnit(part(u.part.name), ("brightness",), ("colours",), tuple(row.prompt for row in u.rows)) for u in units
    ]
    seen: list[Report] = []
    for name, engine in {"here": LocalEngine(), "ray": RayEngine(workers=2)}.items():
        job = make_job(tmp_path / name)
        with engine:
            reports = engine.run(units, job, on_report=seen.append)
            scored = engine.run(scoring, job)
        assert Counter(report.part.name for report in reports) == Counter(u.part.name for u in units)
        assert [f["error"] for r in reports for f in r.failed] == ["ValueError: this prompt is cursed"]
        assert sum(report.rows for report in scored) == 24
    assert len(seen) == 12
    here, there = (
        Store(tmp_path / name).read("images", columns=list(DETERMINISTIC)) for name in ("here", "ray")
    )
    assert here.equals(there)
    assert len(here) == 24
    assert Store(tmp_path / "here").read("scores", "brightness").equals(
        Store(tmp_path / "ray").read("scores", "brightness")
    )


@pytest.mark.long  # tests/test_resume.py kills real workers in every run of the tests
def test_a_killed_worker_costs_the_unit_in_hand(cluster: None, tmp_path: Path) -> None:
    job, mark, lost = make_job(tmp_path / "run"), tmp_path / "mark", tmp_path / "lost"
    units = [unit([f"a {i}"] * 2, f"0-{i}-{i}", batch=2) for i in range(8)]
    units[2] = unit([f"sleep-60 once-{mark}", "b"], "0-2-2", batch=2)
    units[5] = unit([f"lost once-{lost}", "b"], "0-5-5", batch=2)  # a GPU that fails: the process gives itself up

    def kill() -> None:
        assert within(120, lambda: mark.exists() and mark.read_text() != "")
        os.kill(int(mark.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with RayEngine(workers=2) as engine:
        reports = engine.run(units, job)
    killer.join()
    assert sorted(report.part.name for report in reports) == [f"0-{i}-{i}" for i in range(8)]
    assert [failed for report in reports for failed in report.failed] == []
    assert len(Store(job.root).read("images")) == 16
    assert not any(Store(job.root).read("images")["retried"])


def test_what_a_worker_cannot_do_ends_the_run_with_its_reason(cluster: None, tmp_path: Path) -> None:
    job = replace(make_job(tmp_path / "run"), root=str(tmp_path / "nowhere"))
    with RayEngine(workers=1) as engine, pytest.raises(HarnessError, match="not visible on this machine"):
        engine.run([unit(["a"])], job)
