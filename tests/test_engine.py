"""The engine: every unit once, whatever happens to the workers. With actors that start at once."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from harness import engine as engine_module
from harness.engine import LocalEngine, RayEngine, _cluster_of_this_machine, _environment, open_engine
from harness.engine_local import grouped
from harness.errors import HarnessError
from harness.files import StoreError
from harness.job import Job, ModelJob, Slot
from harness.units import Report
from tests.light import LightActor, light_unit, within

pytestmark = pytest.mark.xdist_group("ray-engine")  # see tests/conftest.py
ROOT = Path(__file__).parent.parent
CPU = ModelJob("fake", "", slot=Slot("cpu"))


@pytest.fixture
def light(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_Actor", LightActor)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path), models={"model": CPU, "other": CPU})


def done(job: Job) -> list[list[str]]:
    return [line.split() for line in (Path(job.root) / "done").read_text().splitlines()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- the scheduler, with light actors ----


def test_units_are_spread_over_workers_and_done_once(light: None, job: Job) -> None:
    units = [light_unit(str(i)) for i in range(60)]
    with RayEngine(workers=3) as engine:
        reports = engine.run(units, job)
        assert len(engine._pool[2]) == 3  # type: ignore[index]
        more = engine.run([light_unit(f"more{i}") for i in range(3)], job)
    assert len(more) == 3
    assert Counter(report.part for report in reports) == Counter(u.part for u in units)
    assert Counter(name for _, _, name in done(job)).most_common(1)[0][1] == 1
    assert len({pid for pid, _, _ in done(job)}) <= 3  # the second call's workers are the first one's


def test_no_more_workers_than_units_and_none_for_nothing(light: None, job: Job) -> None:
    with RayEngine() as engine:
        assert engine.run([], job) == []
        assert engine._pool is None
        engine.run([light_unit("0")], job)
        assert len(engine._pool[2]) == 1  # type: ignore[index]


def test_dead_workers_are_replaced_and_a_deadly_unit_is_given_up(light: None, job: Job, tmp_path: Path) -> None:
    units = [light_unit(str(i)) for i in range(10)]
    units[1] = light_unit("1", die=tmp_path / "a")
    units[4] = light_unit("4", always_die=tmp_path / "b")
    with RayEngine(workers=2) as engine:
        reports = engine.run(units, job)
    assert len(reports) == 10
    failed = [(report.part.name[0], entry) for report in reports for entry in report.failed]
    assert [name for name, _ in failed] == ["4"]
    assert failed[0][1]["unit"]
    assert failed[0][1]["error"].startswith("3 workers died over it")
    assert sorted(int(name.split("~")[0]) for _, _, name in done(job)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_a_unit_beyond_its_deadline_is_tried_on_another_worker(light: None, job: Job, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    units = [light_unit("0", sleep=mark), *[light_unit(str(i)) for i in range(1, 6)]]
    started = time.monotonic()
    with RayEngine(workers=2, deadline=5) as engine:
        reports = engine.run(units, job)
    assert time.monotonic() - started < 300  # the unit sleeps for 600
    assert len(reports) == 6
    assert not any(report.failed for report in reports)
    assert within(120, lambda: not alive(int(mark.read_text())))  # a killed process takes a moment to be gone


def test_failed_units_are_reported_and_the_rest_goes_on(light: None, job: Job, tmp_path: Path) -> None:
    with RayEngine(workers=2) as engine:
        reports = engine.run([light_unit("0", fail=tmp_path / "x"), light_unit("1")], job)
    assert sorted(len(report.failed) for report in reports) == [0, 1]


def test_a_full_disk_or_a_bug_ends_the_run(light: None, job: Job, tmp_path: Path) -> None:
    with RayEngine(workers=2) as engine:
        with pytest.raises(StoreError, match="the disk is full"):
            engine.run([light_unit("0", full=tmp_path / "x"), *[light_unit(str(i)) for i in range(1, 50)]], job)
        assert engine._pool is None
        with pytest.raises(HarnessError, match="a worker cannot work: RuntimeError: last line"):
            engine.run([light_unit("0", bug=tmp_path / "x")], job)


@pytest.mark.parametrize(
    ("codec", "message"),
    [("cannot-start", "made of cheese"), ("dies-at-start", "workers died and not one unit was finished")],
)
def test_workers_that_cannot_start_are_said_and_not_tried_for_ever(
    light: None, job: Job, monkeypatch: pytest.MonkeyPatch, codec: str, message: str
) -> None:
    monkeypatch.setattr(engine_module, "TRIES", 1)
    with RayEngine(workers=2) as engine, pytest.raises(HarnessError, match=message):
        engine.run([light_unit("0"), light_unit("1")], replace(job, codec=codec))


def test_a_cluster_without_room_is_said(light: None, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "START_TIMEOUT", 1.0)
    big = replace(job, models={"model": replace(CPU, slot=Slot("cpu", threads=64))})
    with RayEngine() as engine, pytest.raises(HarnessError, match=r"no worker could start.*64 cpus.*room for 0"):
        engine.run([light_unit("0")], big)


def test_gpus_are_shared_by_fractions(light: None, job: Job) -> None:
    half = replace(job, models={"model": replace(CPU, slot=Slot("auto", threads=8, gpus=0.5))})
    with RayEngine() as engine:
        engine.run([light_unit(str(i)) for i in range(12)], half)
        assert len(engine._pool[2]) == 4  # type: ignore[index]
        assert engine.describe().endswith(": 1 node(s), 4 CPU(s), 2 GPU(s)")


def test_ctrl_c_stops_the_workers_and_keeps_what_is_done(
    light: None, ctrl_c: None, job: Job, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    units = [light_unit("0", sleep=mark), *[light_unit(str(i)) for i in range(1, 4)]]
    seen: list[Report] = []

    def interrupt() -> None:
        within(60, lambda: mark.exists() and mark.read_text() != "" and len(seen) == 3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with RayEngine(workers=2) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(units, job, on_report=seen.append)
    assert len(seen) == 3
    assert within(20, lambda: not alive(int(mark.read_text())))


def test_units_of_a_model_follow_each_other(job: Job) -> None:
    gpu = replace(CPU, slot=Slot("cuda"))
    job = replace(job, models={"a": CPU, "b": gpu, "c": CPU})
    units = [light_unit(str(i), "abc"[i % 3]) for i in range(9)]
    groups = grouped(units, job)
    assert [(slot.device, [u.part.model for u in group]) for slot, group in groups] == [
        ("cpu", list("aaaccc")), ("cuda", list("bbb")),
    ]
    assert [u.part.name for u in groups[0][1]] == ["0", "3", "6", "2", "5", "8"]


# ---- where the work is done ----


def test_zero_workers_is_this_process() -> None:
    assert isinstance(open_engine(workers=0), LocalEngine)
    with pytest.raises(HarnessError, match="--workers 0"):
        open_engine(workers=0, address="10.0.0.1:6379")


def test_an_address_without_a_cluster_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(HarnessError, match=r"no Ray cluster answers at '127\.0\.0\.1:9' \(from --address\)"):
        RayEngine("127.0.0.1:9").__enter__()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(HarnessError, match="from RAY_ADDRESS"):
        RayEngine().__enter__()


def test_a_stale_note_of_a_cluster_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CURRENT_CLUSTER", "cluster_of_a_test")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _cluster_of_this_machine() is None
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "cluster_of_a_test"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        note.write_text(address + "\n")
        assert _cluster_of_this_machine() == tmp_path / "ray"
    assert _cluster_of_this_machine() is None
    note.write_text("nonsense")
    assert _cluster_of_this_machine() is None


def test_threads_and_paths_reach_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("HF_TOKEN", "secret")
    variables = _environment(Slot("cpu", threads=3))
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "3"
    assert variables["HF_HOME"] == "/somewhere"
    assert "HF_TOKEN" not in variables
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


# ---- a Ray of one's own, and a node that goes away ----


def script(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], env=environment, capture_output=True, text=True, timeout=240,
        check=False,
    )


def test_a_local_ray_is_quiet_and_takes_more_workers_than_cores(tmp_path: Path) -> None:
    ran = script(f"""
        import os
        from harness import engine
        from harness.job import Job, ModelJob, Slot
        from tests.light import LightActor, light_unit, within
        engine._Actor = LightActor
        job = Job({str(tmp_path)!r}, models={{"model": ModelJob("fake", "", slot=Slot("cpu"))}})
        with engine.RayEngine("local", workers=os.cpu_count() + 1) as ray_engine:
            print(ray_engine.describe())
            print(len(ray_engine.run([light_unit(str(i)) for i in range(20)], job)), len(ray_engine._pool[2]))
    """)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert "1 node(s)" in ran.stdout.splitlines()[0]
    assert ran.stdout.splitlines()[1:] == [f"20 {(os.cpu_count() or 1) + 1}"]


def test_a_node_that_is_removed_costs_its_units_in_hand(tmp_path: Path) -> None:
    ran = script(f"""
        import threading, time
        from pathlib import Path
        from ray.cluster_utils import Cluster
        from harness import engine
        from harness.job import Job, ModelJob, Slot
        from tests.light import LightActor, light_unit, patiently
        engine._Actor = LightActor
        head = {{"num_cpus": 1, "include_dashboard": False}}
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        second = patiently(lambda: cluster.add_node(num_cpus=1))
        root = Path({str(tmp_path)!r})
        job = Job(str(root), models={{"model": ModelJob("fake", "", slot=Slot("cpu"))}})
        units = [light_unit(str(i)) for i in range(12)]
        units[0], units[1] = light_unit("0", sleep=root / "a"), light_unit("1", sleep=root / "b")
        def remove():
            while not ((root / "a").exists() and (root / "b").exists()):
                time.sleep(0.1)
            cluster.remove_node(second, allow_graceful=False)
        threading.Thread(target=remove).start()
        with engine.RayEngine(cluster.address, deadline=20) as ray_engine:
            reports = ray_engine.run(units, job)
        print(len(reports), sum(len(report.failed) for report in reports))
        cluster.shutdown()
    """)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1:] == ["12 0"]
