"""Units of work: what the driver hands to a worker, and what comes back. Plain data, cheap to pickle."""

from dataclasses import dataclass, field
from typing import Any

from harness.prompts import Prompt


@dataclass(frozen=True)
class Part:
    """The tail that a shard's files share: `<model>/<method>/<prompts>/<name>.parquet`, all labels."""

    model: str
    method: str
    prompts: str
    name: str  # "<seed>-<first>-<last>"


@dataclass(frozen=True)
class Row:
    """One sample to make."""

    sample_id: str
    prompt: Prompt
    place: int = 0  # of the prompt in its set


@dataclass(frozen=True)
class GenerateUnit:
    """A shard to generate: the rows of one part file, with their micro-batch size."""

    part: Part
    prompt_set: str  # the set's id, which seeds the noise; the label may differ
    seed: int
    seeding: str
    batch: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Counterpart:
    """What a sample is compared with: one of this run, or files, a picture a frame."""

    source: Part | tuple[str, ...]  # the part that holds it, or the files' paths
    id: str  # the id of that sample, the SHA-256 of the file, or the digest of those of several
    size: tuple[int, int] | None = None  # the sample's width and height, to which files of its shape are brought


@dataclass(frozen=True)
class ScoreUnit:
    """One image part to score with the metrics that it still lacks (or to extract features from)."""

    part: Part
    metrics: tuple[str, ...]  # labels of sample and paired metrics
    extractors: tuple[str, ...]  # labels of distribution metrics, one for each extractor wanted
    prompts: tuple[Prompt, ...]  # the prompts that the part's rows name
    # For each paired metric what to compare a sample (by id) with, or why there is nothing; others are not scored.
    counterparts: dict[str, dict[str, Counterpart | str]] = field(default_factory=dict)


@dataclass
class Report:
    """What a finished unit says: counts and timings only; pixels stay in the worker."""

    part: Part
    stage: str  # "generate" or "score"
    rows: int
    seconds: float
    failed: list[dict[str, Any]] = field(default_factory=list)  # rows or metrics that failed, with the reason
