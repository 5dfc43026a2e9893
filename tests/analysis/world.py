"""A small run made by hand: two prompt sets' worth of rows, three methods, every kind of trouble."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.records import MetricInfo, Record, records, scored_rows

METRICS = {
    "geneval-shapes": MetricInfo("geneval-shapes", "g1", aggregation="mean_of_groups"),
    "clipscore-shapes": MetricInfo("clipscore-shapes", "c1"),
    "fd-shapes-clip": MetricInfo("fd-shapes-clip", "f1", kind="distribution", higher_is_better=False),
    "pickscore": MetricInfo("pickscore", "", missing="weights are not here; `harness fetch pickscore` gets them"),
}
METHODS = {"no-guidance": (20, 0.3), "cfg-3": (40, 0.7), "best_of_6": (240, 0.75)}


@dataclass
class World:
    """Has the attributes of `harness.run.Outcome` that tables use."""

    rows: pd.DataFrame
    scores: pd.DataFrame
    distribution: list[dict[str, Any]]
    metrics: dict[str, MetricInfo] = field(default_factory=lambda: dict(METRICS))
    judges: dict[str, str] = field(default_factory=lambda: {"best_of_6": "clipscore-shapes"})
    published: pd.DataFrame | None = None

    specs: list[Any] = field(default_factory=list)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    candidates: dict[str, int] = field(default_factory=lambda: {"no-guidance": 1, "cfg-3": 1, "best_of_6": 6})

    @property
    def scored(self) -> pd.DataFrame:  # nothing is kept: tests change the rows
        return scored_rows(self.rows, self.scores, self.metrics)

    @property
    def paired(self) -> dict[str, list[Record]]:
        return {}

    @property
    def records(self) -> list[Record]:
        return records(self.rows, self.scores, self.distribution, self.metrics)


def world(prompts: int = 12, seeds: int = 2) -> World:
    """Two categories of unequal size; the scores of equal (prompt, seed) are correlated between methods."""
    rng = np.random.default_rng(0)
    luck = rng.random((prompts, seeds))
    rows, scores = [], []
    for method, (nfe, chance) in METHODS.items():
        for i in range(prompts):
            for seed in range(seeds):
                sample = f"{method}/{i}/{seed}"
                rows.append({
                    "sample_id": sample, "model": "sd", "method": method, "prompts": "shapes", "prompt_id": f"p{i}",
                    "category": "position" if i % 3 == 0 else "colors", "seed": seed, "nfe": nfe, "flops": 1e9 * nfe,
                    "seconds": nfe / 100, "error": None,
                })
                right, cosine = float(luck[i, seed] < chance), chance + luck[i, seed] / 10
                for label, value in (("geneval-shapes", right), ("clipscore-shapes", cosine)):
                    scores.append({
                        "sample_id": sample, "model": "sd", "method": method, "prompts": "shapes", "metric": label,
                        "metric_digest": METRICS[label].digest, "value": value, "error": None,
                    })
    distribution = [
        {"model": "sd", "method": method, "prompts": "shapes", "metric": "fd-shapes-clip", "metric_digest": "f1",
         "value": 100.0 / nfe, "low": 90.0 / nfe, "high": 110.0 / nfe, "n": prompts * seeds, "error": None}
        for method, (nfe, _) in METHODS.items()
    ]
    return World(pd.DataFrame(rows), pd.DataFrame(scores), distribution)
