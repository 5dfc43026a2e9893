"""The driver's side of the engine on a simulated Ray: no processes, no clock, every fate of a worker at will.

What real actors do is in `test_engine.py`; here each decision of the scheduler is met exactly, in milliseconds.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from harness import engine as engine_module
from harness.engine import RayEngine
from harness.errors import HarnessError
from harness.files import StoreError
from harness.job import Job, ModelJob, Slot
from harness.units import GenerateUnit, Part, Report

CPU = ModelJob("fake", "", slot=Slot("cpu"))
JOB = Job("/nowhere", models={"model": CPU, "other": CPU})


def unit(name: str, model: str = "model") -> GenerateUnit:
    """`3` goes well, `3~die` kills its first worker, `3~always` every one, `3~hang` hangs at the first one."""
    return GenerateUnit(Part(model, "method", "prompts", name), "set", 0, "identity", 1, ())


def units(count: int) -> list[GenerateUnit]:
    return [unit(str(i)) for i in range(count)]


class Handle:
    """An actor: calls queue up and are done in order, one for every time that the driver waits."""

    def __init__(self, cluster: "Cluster") -> None:
        self.dead = False
        self.calls: list[SimpleNamespace] = []
        self.last = 0.0
        for name in ("ready", "run"):
            setattr(self, name, SimpleNamespace(remote=lambda *given, name=name: cluster.call(self, name, given)))


class Cluster:
    """As much of Ray as the engine uses: 4 CPUs and 2 GPUs, all on one node."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.start = "well"
        self.actors: list[Handle] = []
        self.options: dict[str, Any] = {}
        self.tried: set[str] = set()
        self.deepest = 0
        self.order: list[str] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}]

    def remote(self, cls: type) -> Any:
        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=self.hire)

        return SimpleNamespace(options=options)

    def hire(self, job: Job, slot: Slot) -> Handle:
        self.actors.append(Handle(self))
        return self.actors[-1]

    def call(self, actor: Handle, name: str, given: tuple[Any, ...]) -> Any:
        class Reference(SimpleNamespace):
            __hash__ = object.__hash__
            __eq__ = object.__eq__

        reference = Reference(actor=actor, name=name, unit=given[0] if given else None, answer=None)
        actor.calls.append(reference)
        self.deepest = max(self.deepest, len(actor.calls))
        return reference

    def wait(self, references: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        for reference in sorted(references, key=lambda r: (not r.actor.dead, r.actor.last)):
            if reference.actor.dead or self.answer(reference):
                self.clock += 0.01
                reference.actor.last = self.clock
                return [reference], []
        assert timeout is not None, "the engine would wait for ever"
        self.clock += timeout
        return [], references

    def answer(self, reference: Any) -> bool:
        """Whether the call has come back, or its actor died over it."""
        if reference.name == "ready":
            if self.start == "never":
                return False
            reference.actor.dead = self.start == "dies"
            reference.answer = HarnessError("made of cheese") if self.start == "badly" else {}
        else:
            name = reference.unit.part.name
            command = name.partition("~")[2]
            first = (name, id(reference.actor)) if command == "hang" else name
            again = name in self.tried
            if command == "hang" and (not again or first in self.tried):
                self.tried |= {name, first}  # type: ignore[arg-type]
                return False
            self.tried.add(name)
            if command == "always" or (command == "die" and not again):
                reference.actor.dead = True
                return True
            full = StoreError("the disk is full")
            reference.answer = full if command == "full" else Report(reference.unit.part, "generate", 1, 0.1)
            self.order.append(name)
        reference.actor.calls.pop(0)
        return True

    def get(self, reference: Any) -> Any:
        if reference.actor.dead:
            raise WorkerCrashedError
        if isinstance(reference.answer, Exception):
            raise RayTaskError("run", "a traceback", reference.answer).as_instanceof_cause()
        return reference.answer

    def kill(self, actor: Handle, no_restart: bool = True) -> None:
        actor.dead = True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    for name in ("nodes", "remote", "wait", "get", "kill"):
        monkeypatch.setattr(ray, name, getattr(made, name))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(RayEngine, "describe", lambda self: "this cluster")
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: made.clock))
    return made


def test_every_unit_once_with_two_in_flight(cluster: Cluster) -> None:
    with RayEngine(workers=3) as engine:
        reports = engine.run(units(60), JOB)
        engine.run([unit("one more")], JOB)
        assert len(cluster.actors) == 3  # kept for the next stage
    assert sorted(int(report.part.name) for report in reports) == list(range(60))
    assert cluster.deepest == 2
    assert all(actor.dead for actor in cluster.actors)


def test_workers_are_as_many_as_there_are_cpus_or_units(cluster: Cluster) -> None:
    with RayEngine() as engine:
        assert engine.run([], JOB) == []
        assert cluster.actors == []
        engine.run(units(1), JOB)
        assert len(cluster.actors) == 1
        engine.run(units(20), JOB)
        assert len(cluster.actors) == 4
        engine.run(units(20), replace(JOB, models={"model": replace(CPU, slot=Slot("cpu", threads=2))}))
        assert len(cluster.actors) == 4 + 2
    assert cluster.options["num_cpus"] == 2
    assert cluster.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_gpus_are_shared_by_fractions(cluster: Cluster) -> None:
    with RayEngine() as engine:
        engine.run(units(12), replace(JOB, models={"model": replace(CPU, slot=Slot("auto", threads=8, gpus=0.5))}))
    assert len(cluster.actors) == 4
    assert (cluster.options["num_gpus"], cluster.options["num_cpus"]) == (0.5, 0)


def test_a_model_is_finished_before_the_next_one_begins(cluster: Cluster) -> None:
    with RayEngine(workers=1) as engine:
        engine.run([unit(str(i), ("model", "other")[i % 2]) for i in range(8)], JOB)
    assert cluster.order == ["0", "2", "4", "6", "1", "3", "5", "7"]


def test_dead_workers_are_replaced_and_a_deadly_unit_is_given_up(cluster: Cluster) -> None:
    work = units(10)
    work[1], work[4] = unit("1~die"), unit("4~always")
    with RayEngine(workers=2) as engine:
        reports = engine.run(work, JOB)
    assert len(reports) == len({report.part for report in reports}) == 10
    (failed,) = [report for report in reports if report.failed]
    assert failed.part.name == "4~always"
    assert failed.rows == 0
    assert failed.failed[0]["error"].startswith("3 workers died over it, the last one so: ")
    assert len(cluster.actors) == 2 + 1 + 3


def test_a_unit_beyond_its_deadline_is_tried_on_another_worker(cluster: Cluster) -> None:
    with RayEngine(workers=2, deadline=2) as engine:
        reports = engine.run([unit("0~hang"), *units(6)[1:]], JOB)
    assert len(reports) == 6
    assert not any(report.failed for report in reports)
    assert len(cluster.actors) == 3


def test_a_full_disk_ends_the_run(cluster: Cluster) -> None:
    with RayEngine(workers=2) as engine, pytest.raises(StoreError, match="the disk is full"):
        engine.run([unit("0~full"), *units(9)], JOB)
    assert all(actor.dead for actor in cluster.actors)


@pytest.mark.parametrize(
    ("start", "message", "actors"),
    [
        ("badly", "made of cheese", 2),
        ("dies", "12 workers died and not one unit was finished between", 13),
        ("never", "no worker could start within 600 s: each needs 1 cpus, and this cluster has room for 4", 2),
    ],
)
def test_workers_that_cannot_start_are_said_and_not_tried_for_ever(
    cluster: Cluster, start: str, message: str, actors: int
) -> None:
    cluster.start = start
    with RayEngine(workers=2) as engine, pytest.raises(HarnessError, match=message):
        engine.run(units(2), JOB)
    assert len(cluster.actors) == actors


def test_ctrl_c_ends_the_workers(cluster: Cluster) -> None:
    def interrupt(report: Report) -> None:
        raise KeyboardInterrupt

    with RayEngine(workers=2) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(units(9), JOB, on_report=interrupt)
    assert all(actor.dead for actor in cluster.actors)
