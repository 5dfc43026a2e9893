"""What an engine is, and the simplest one: everything in this process, without Ray."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from harness.errors import HarnessError
from harness.job import Job, Slot
from harness.units import GenerateUnit, Report, ScoreUnit

Unit = GenerateUnit | ScoreUnit
OnReport = Callable[[Report], None]


class Engine(Protocol):
    """Runs units of a job; what finished, or failed, comes back as a report a unit."""

    def __enter__(self) -> "Engine": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, units: Iterable[Unit], job: Job, *, on_report: OnReport | None = None) -> list[Report]:
        """Does all units once and returns when the last is done.

        Raises:
            HarnessError: no worker can start, or the run folder cannot be written.
            KeyboardInterrupt: as it comes; workers are stopped, finished units are kept.
        """
        ...

    def describe(self) -> str:
        """Where the work is done, for people."""
        ...


class LocalEngine:
    """Everything in this process, without Ray: for tests, debuggers and very small runs."""

    def __init__(self) -> None:
        self._workers: list[tuple[Job, Slot, Any]] = []

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.clear()

    def run(self, units: Iterable[Unit], job: Job, *, on_report: OnReport | None = None) -> list[Report]:
        """See `Engine.run`."""
        from harness.worker import DeviceLost

        reports = []
        for slot, group in grouped(units, job):
            worker = self._worker(job, slot)
            for unit in group:
                try:
                    report = worker.run(unit)
                except DeviceLost as error:
                    raise HarnessError(f"the GPU failed: {error}. The same command resumes") from error
                reports.append(report)
                if on_report is not None:
                    on_report(report)
        return reports

    def _worker(self, job: Job, slot: Slot) -> Any:
        from harness.worker import Worker

        for kept_job, kept_slot, worker in self._workers:
            if (kept_job, kept_slot) == (job, slot):
                return worker
        worker = Worker(job, slot)
        self._workers = [(job, slot, worker)]
        return worker

    def describe(self) -> str:
        """See `Engine.describe`."""
        return "this process, without Ray"


def grouped(units: Iterable[Unit], job: Job) -> list[tuple[Slot, list[Unit]]]:
    """Units by what their worker needs, and within that by model, in order of first appearance."""
    groups: dict[Slot, dict[str, list[Unit]]] = {}
    for unit in units:
        groups.setdefault(job.slot(unit), {}).setdefault(unit.part.model, []).append(unit)
    return [(slot, [unit for group in by_model.values() for unit in group]) for slot, by_model in groups.items()]
