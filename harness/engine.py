"""Spreads units over workers: Ray actors here or on a cluster, or this very process. The only file that imports ray.

Plain actors, each with a model of its own and two units in flight (docs/performance.md has the reasons):
ten times the throughput of Ray Data for units of this size, and a killed worker costs only the unit in hand.
"""

import contextlib
import os
import socket
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import harness
from harness.engine_local import Engine, LocalEngine, OnReport, Unit, grouped
from harness.errors import HarnessError
from harness.job import Job, Slot
from harness.units import GenerateUnit, Part, Report

__all__ = ["Engine", "LocalEngine", "RayEngine", "open_engine"]

IN_FLIGHT = 2  # units an actor holds: while one is being written, the next one computes
CURRENT_CLUSTER = "ray_current_cluster"  # the file in which `ray start` notes its address
TRIES = 3  # workers that may die over one unit
START_TIMEOUT = 600.0  # seconds without any worker before it is said that none can start
# What a worker on another node must know of this process's environment. No tokens: Ray shows these to its users.
PASSED_ON = (
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "HARNESS_WEIGHTS", "TORCH_HOME",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG",
)
# glibc would give the memory of each step's tensors back to the system and take it again at the next: 1 to 2 % of
# the time on a CPU. One arena, since the calls come in two threads and only the first arena grows in place.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_TOP_PAD_": str(2**26),
             "MALLOC_MMAP_THRESHOLD_": str(2**25)}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def open_engine(*, address: str | None = None, workers: int | None = None, deadline: float | None = None) -> Engine:
    """Ray, or with `workers=0` this process alone."""
    if workers == 0:
        if address is not None:
            raise HarnessError("--workers 0 runs in this process; it cannot be used together with --address")
        return LocalEngine()
    return RayEngine(address, workers=workers, deadline=deadline)


class _Actor:
    """The Ray side of a worker. Made in an instant; the worker comes with `ready`, so that what goes wrong
    with it arrives as an exception and not as a dead actor."""

    def __init__(self, job: Job, slot: Slot) -> None:
        self.job, self.slot = job, slot
        self.worker: Any = None

    def ready(self) -> dict[str, Any]:
        """Builds the worker; says where it is."""
        from harness.worker import Worker

        self.worker = Worker(self.job, self.slot)
        return {"pid": os.getpid(), "host": socket.gethostname(), "device": self.worker.device}

    def run(self, unit: Unit) -> Report:
        """Does a unit."""
        from harness.worker import DeviceLost

        try:
            report: Report = self.worker.run(unit)
            return report
        except DeviceLost:
            os._exit(70)  # the driver puts a fresh process in this one's place and tries the unit there


@dataclass
class _Slot:
    """An actor as the driver sees it."""

    handle: Any
    starting: Any  # the reference of `ready`, None once it has come
    units: deque[tuple[Any, Unit]] = field(default_factory=deque)  # the first one is being done
    since: float = 0.0  # when the first one began


class RayEngine:
    """Actors on a Ray cluster: one that is given or that this machine belongs to, or else one of our own."""

    def __init__(
        self, address: str | None = None, *, workers: int | None = None, deadline: float | None = None
    ) -> None:
        """
        Args:
            address: a cluster to join; without it RAY_ADDRESS, then the cluster that this machine is a node of.
            workers: how many actors; as many as the cluster's CPUs or GPUs allow without it.
            deadline: seconds a unit may take, the loading of its model included, before its worker is
                killed and the unit tried again; None is no limit.
        """
        self.address, self.workers, self.deadline = address, workers, deadline
        self._started = False  # whether Ray is ours to shut down
        self._pool: tuple[Job, Slot, list[_Slot]] | None = None

    def __enter__(self) -> "RayEngine":
        # Read when ray is imported. Under `uv run` Ray would otherwise start every worker through uv, which
        # resolves the project anew each time; the interpreter at hand has all that a worker needs.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        if not ray.is_initialized():
            self._connect()
            self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        self._dismiss()
        if self._started:
            with _patient():
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray's default is 15: beside any other busy process a worker then gets next to nothing.
        os.environ.setdefault("RAY_worker_niceness", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        named = self.address or os.environ.get("RAY_ADDRESS")
        if named and named != "local":
            try:
                _knock(named)
                ray.init(address=named, **quiet)
            except Exception as error:  # Ray raises a different kind for every way in which this fails
                hint = "; if it asks for a token, set RAY_AUTH_MODE=token and put the token in ~/.ray/auth_token"
                raise HarnessError(
                    f"no Ray cluster answers at {named!r} (from {'--address' if self.address else 'RAY_ADDRESS'}): "
                    f"{str(error).strip().splitlines()[0]}{'' if os.environ.get('RAY_AUTH_MODE') else hint}"
                ) from error
            return
        folder = None if named == "local" else _cluster_of_this_machine()
        if folder is not None:
            with contextlib.suppress(Exception):  # the address was stale, or of another Ray version
                # "auto" and not the address itself: only so does Ray show this machine's own token where one is kept.
                ray.init(address="auto", _temp_dir=str(folder), **quiet)
                return
            ray.shutdown()
        cores = os.cpu_count() or 1
        with contextlib.suppress(AttributeError):
            cores = len(os.sched_getaffinity(0))
        for attempt in range(2):
            try:
                ray.init(
                    address="local", num_cpus=cores, include_dashboard=False, object_store_memory=100 * 2**20,
                    _node_ip_address="127.0.0.1", **quiet,
                )
                return
            except Exception as error:  # on a very busy machine Ray loses patience with its own processes
                ray.shutdown()
                if attempt:
                    raise HarnessError(
                        f"Ray could not start on this machine: {_last_line(error)}. Try again when it is less busy, "
                        f"or with --workers 0, which needs no Ray"
                    ) from error

    def describe(self) -> str:
        """See `Engine.describe`."""
        import ray

        nodes = sum(node["Alive"] for node in ray.nodes())
        offers = {name: int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}
        address = ray.get_runtime_context().gcs_address
        return f"Ray at {address}: {nodes} node(s), {offers['CPU']} CPU(s), {offers['GPU']} GPU(s)"

    # ---- the pool ----

    def _resources(self, slot: Slot) -> tuple[dict[str, float], int]:
        """What an actor asks of Ray, and how many of them the cluster holds."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in nodes)
        if slot.device.startswith("cuda") and not gpus and self._started:
            raise HarnessError(f"device {slot.device!r}: Ray sees no GPU here; use 'device: cpu' or 'auto'")
        if slot.device != "cpu" and (gpus or slot.device.startswith("cuda")):
            # The GPU is what is scarce: CPUs are not booked beside it, threads are set all the same.
            per_gpu = int(1 / slot.gpus + 1e-9) if slot.gpus < 1 else 1 / slot.gpus
            return {"num_gpus": slot.gpus, "num_cpus": 0}, int(sum(int(n.get("GPU", 0) * per_gpu) for n in nodes))
        room = int(sum(node.get("CPU", 0) // slot.threads for node in nodes))
        if self._started and len(nodes) == 1 and (self.workers or 1) > room:
            # More workers than cores were asked for, or more threads than cores: on one's own machine one may.
            return {"num_cpus": 0}, max(room, 1)
        return {"num_cpus": slot.threads}, room

    def _start(self, job: Job, slot: Slot) -> _Slot:
        import ray

        resources, _ = self._resources(slot)
        actor = ray.remote(_Actor).options(
            # Both units in flight run: one computes while the other is being written (`Worker.run`).
            **resources, max_concurrency=IN_FLIGHT, max_restarts=0, max_task_retries=0,
            runtime_env={"env_vars": _environment(slot)},
        )
        handle = actor.remote(job, slot)
        return _Slot(handle, handle.ready.remote())

    def _hire(self, job: Job, slot: Slot, wanted: int) -> list[_Slot]:
        """A pool for this job and slot: the one at hand where it fits, since models stay loaded in it."""
        if self._pool is not None and self._pool[:2] != (job, slot):
            self._dismiss()
        if self._pool is None:
            self._pool = (job, slot, [])
        _, room = self._resources(slot)
        pool = self._pool[2]
        for _ in range(min(wanted, self.workers or max(room, 1)) - len(pool)):
            pool.append(self._start(job, slot))
        return pool

    def _dismiss(self) -> None:
        """Ends all actors. What they hold in hand is lost, and was not whole on the disk."""
        import ray

        if self._pool is not None:
            with _patient():
                for worker in self._pool[2]:
                    with contextlib.suppress(Exception):
                        ray.kill(worker.handle)
            self._pool = None

    # ---- the loop ----

    def run(self, units: Iterable[Unit], job: Job, *, on_report: OnReport | None = None) -> list[Report]:
        """See `Engine.run`."""
        reports: list[Report] = []

        def keep(report: Report) -> None:
            reports.append(report)
            if on_report is not None:
                on_report(report)

        try:
            for slot, group in grouped(units, job):
                _Rush(self, job, slot, group, keep).run()
        except BaseException:
            self._dismiss()
            raise
        return reports


class _Rush:
    """One pass of a pool over the units of one slot."""

    def __init__(self, engine: RayEngine, job: Job, slot: Slot, units: Sequence[Unit], keep: OnReport) -> None:
        self.engine, self.job, self.slot, self.keep = engine, job, slot, keep
        self.queue = deque(units)
        self.tries: dict[Part, int] = {}
        self.pool = engine._hire(job, slot, len(units))
        self.deaths = 0  # workers lost since a unit last finished
        self.allowed_deaths = 3 * TRIES + len(self.pool)

    def run(self) -> None:
        """Until every unit has its report."""
        import ray

        waiting_since = time.monotonic()
        while self.queue or any(worker.units for worker in self.pool):
            self._hand_out()
            refs = {worker.starting: worker for worker in self.pool if worker.starting is not None}
            refs |= {worker.units[0][0]: worker for worker in self.pool if worker.units}
            done, _ = ray.wait(list(refs), num_returns=1, timeout=self._patience())
            for ref in done:
                self._take(ref, refs[ref])
            if all(worker.starting is not None for worker in self.pool):
                if time.monotonic() - waiting_since > START_TIMEOUT:
                    raise HarnessError(self._nobody())
            else:
                waiting_since = time.monotonic()
            self._enforce_deadline()

    def _hand_out(self) -> None:
        """Units to workers: first one each; a second one only while there are plenty, so that at the end no
        unit waits behind another while a worker is idle."""
        for depth in range(IN_FLIGHT):
            for worker in self.pool:
                if worker.starting is not None or len(worker.units) != depth or not self.queue:
                    continue
                if depth > 0 and not self._may_wait(worker, self.queue[0]):
                    continue
                unit = self.queue.popleft()
                if not worker.units:
                    worker.since = time.monotonic()
                worker.units.append((worker.handle.run.remote(unit), unit))

    def _may_wait(self, worker: _Slot, unit: Unit) -> bool:
        """Whether a unit may wait behind the one that a worker does. Not while another worker is on its way or
        the queue is short, and not beside a unit over which a worker has died: the next death must tell which."""
        if len(self.queue) <= len(self.pool) or any(other.starting is not None for other in self.pool):
            return False
        return unit.part not in self.tries and worker.units[0][1].part not in self.tries

    def _take(self, ref: Any, worker: _Slot) -> None:
        """What has come back from a worker: that it is ready, a report, or word of its death."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            value = ray.get(ref)
        except RayTaskError as error:
            # Units report their own failures: what arrives here ends the run.
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            if isinstance(cause, HarnessError):
                raise type(cause)(str(cause)) from None
            raise HarnessError(f"a worker cannot work: {type(cause).__name__}: {_last_line(cause)}") from cause
        except RayError as error:
            self._bury(worker, str(error))
            return
        if ref == worker.starting:
            worker.starting = None
            return
        worker.units.popleft()
        worker.since = time.monotonic()
        self.deaths = 0
        self.keep(value)

    def _bury(self, worker: _Slot, reason: str) -> None:
        """Replaces a dead worker. The unit that it was doing is tried again; those behind it only wait again."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(worker.handle)
        self.pool.remove(worker)
        self.deaths += 1
        said = _last_line(reason) or "it died"
        doing = [unit for _, unit in worker.units]
        for unit in reversed(doing[1:]):
            self.queue.appendleft(unit)
        if doing:
            unit = doing[0]
            self.tries[unit.part] = self.tries.get(unit.part, 0) + 1
            if self.tries[unit.part] < TRIES:
                self.queue.appendleft(unit)
            else:
                stage = "generate" if isinstance(unit, GenerateUnit) else "score"
                text = f"{TRIES} workers died over it, the last one so: {said}"
                self.keep(Report(unit.part, stage, 0, 0.0, [{"error": text, "unit": True}]))
        if self.deaths > self.allowed_deaths:
            raise HarnessError(
                f"{self.deaths} workers died and not one unit was finished between; the last one so: {said} "
                f"(often for want of memory: give fewer --workers, or a smaller batch)"
            )
        if self.queue or any(other.units for other in self.pool):
            self.pool.append(self.engine._start(self.job, self.slot))

    def _patience(self) -> float | None:
        """Seconds to wait for news at most."""
        if any(worker.starting is not None for worker in self.pool) or not self.pool:
            return 5.0
        return None if self.engine.deadline is None else min(5.0, self.engine.deadline / 4)

    def _enforce_deadline(self) -> None:
        deadline = self.engine.deadline
        for worker in list(self.pool):
            if deadline is not None and worker.units and time.monotonic() - worker.since > deadline:
                self._bury(worker, f"the unit took longer than the deadline of {deadline:g} s")

    def _nobody(self) -> str:
        resources, room = self.engine._resources(self.slot)
        needs = ", ".join(f"{value:g} {name.removeprefix('num_')}" for name, value in resources.items() if value)
        return (
            f"no worker could start within {START_TIMEOUT:g} s: each needs {needs or 'a process'}, and "
            f"{self.engine.describe()} has room for {room}. Wait for other jobs to end, or ask for less"
        )


def _last_line(error: object) -> str:
    """The last line of a message of several: Ray's tracebacks end with what happened."""
    return next((line.strip(" .") for line in reversed(str(error).splitlines()) if line.strip()), "")


def _environment(slot: Slot) -> dict[str, str]:
    """The environment of a worker's process."""
    variables = {name: str(slot.threads) for name in THREAD_VARIABLES}
    variables |= ALLOCATOR | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    package = str(Path(harness.__file__).resolve().parent.parent)
    if package not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:  # a checkout
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return variables


def _knock(address: str) -> None:
    """Raises OSError when nobody listens at `host:port` (Ray itself would try for a minute)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # others, like "auto", are for Ray to understand
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _cluster_of_this_machine() -> Path | None:
    """The folder in which `ray start` noted an address on this machine, if somebody still answers there."""
    for folder in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"):
        if folder:
            with contextlib.suppress(OSError):
                address = (Path(folder) / "ray" / CURRENT_CLUSTER).read_text().strip()
                if ":" in address:
                    _knock(address)
                    return Path(folder) / "ray"
    return None


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """A second Ctrl-C must not leave processes behind: it waits until they are gone."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
