"""What all units of a run refer to by label: plain data that the driver hands to every worker."""

from dataclasses import dataclass, field
from typing import Any

from harness.units import GenerateUnit, ScoreUnit


@dataclass(frozen=True)
class Slot:
    """What a worker takes of a machine. `threads` is fixed by the benchmark and never by the number of
    workers, because it can change the last bits of an image."""

    device: str = "auto"  # "auto": a GPU where the worker has one, else the CPU
    threads: int = 1
    gpus: float = 1.0  # GPUs, or a fraction of one; counts only where there are any and the device is not "cpu"


@dataclass(frozen=True)
class ModelJob:
    """A model block of the benchmark."""

    family: str
    weights: str  # as `Diffusion.load` takes it; resolved again where the worker runs
    revision: str | None = None
    dtype: str = "float32"
    size: int | None = None
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    slot: Slot = Slot()


@dataclass(frozen=True)
class MethodJob:
    """A method as the YAML says it, its sampler complete. `judge` is a label of `Job.metrics`."""

    noise: Any = None
    guidance: Any = None
    sampler: dict[str, Any] = field(default_factory=dict)
    judge: str | None = None


@dataclass(frozen=True)
class MetricJob:
    """A metric by registered name, with the digest that its score rows carry."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Job:
    """All that units refer to by label. One job serves both stages of a run, so that workers live on between them."""

    root: str  # the run folder, on storage that every worker sees
    models: dict[str, ModelJob] = field(default_factory=dict)
    methods: dict[str, MethodJob] = field(default_factory=dict)
    metrics: dict[str, MetricJob] = field(default_factory=dict)
    scoring: Slot = Slot()
    codec: str = "webp"
    sys_path: tuple[str, ...] = ()  # where users' own plug-ins are looked for

    def slot(self, unit: GenerateUnit | ScoreUnit) -> Slot:
        """What the worker of a unit must have."""
        return self.models[unit.part.model].slot if isinstance(unit, GenerateUnit) else self.scoring
