"""Distribution metrics of cells, from stored features."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from harness import distribution
from harness.distribution import distribution_values, paired_distances
from harness.images import encode
from harness.metrics.base import DistributionMetric, Reference
from harness.plan import Cell
from harness.prompts import Prompt, PromptSet
from harness.store import Store
from harness.units import Part

PROMPTS = tuple(Prompt(str(i), "text") for i in range(12))
METHODS = ("a", "b", "c")


@dataclass(frozen=True)
class Shift(DistributionMetric):
    """The distance of the means."""

    name: ClassVar[str] = "shift"
    extractor: ClassVar[str] = "toy"
    power: int = 1

    def features(self, images: np.ndarray) -> np.ndarray:
        return images

    def extractor_content(self) -> dict[str, str]:
        return {}

    def reference(self) -> Reference:
        return Reference(np.zeros(2), np.eye(2), 5, None, "toy", "0")

    def distance(self, features: np.ndarray, reference: Reference) -> float:
        if len(features) < 2:
            raise ValueError("too few rows")
        return float(np.abs(features.mean(axis=0, dtype=np.float64)).sum() ** self.power)


def _cell(method: str, prompts: str = "p") -> Cell:
    return Cell("m", method, prompts, "model", method, PromptSet(prompts, PROMPTS), (0, 1), "identity", 4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Features that lie i away from 0 for the i-th method, and a sample that no plan knows."""
    made = Store(tmp_path)
    for i, method in enumerate(METHODS):
        for prompts in ("p", "q"):
            ids = [*_cell(method, prompts).sample_ids(), "unknown"]
            noise = np.random.default_rng(i).normal(size=(len(ids), 2)) * 0.1
            features = (noise + i + (prompts == "q")).astype(np.float32)
            made.write_features(Shift().shelf, Part("m", method, prompts, "0-0-11"), ids, features)
    return made


def test_values_intervals_and_differences(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(distribution, "_side", lambda s, c, shelf, real=distribution._side: (
        read.append(f"{c.method} {c.prompts}"), real(s, c, shelf))[1])
    left_out: list[int] = []
    monkeypatch.setattr(Shift, "without", lambda self, x, group, reference: (
        left_out.append(len(x)), DistributionMetric.without(self, x, group, reference))[1])
    cells = [_cell(method, prompts) for method in METHODS for prompts in ("p", "q")]
    metrics = {"one": (Shift(), "1"), "two": (Shift(power=2), "2")}
    records = distribution_values(store, cells, metrics, baselines=["b", "unknown"])
    assert [(r["metric"], r["method"], r["prompts"]) for r in records] == [
        (metric, cell.method, cell.prompts) for metric in metrics for cell in cells
    ]
    assert sorted(read) == sorted(f"{m} {p}" for m in METHODS for p in ("p", "q"))  # each cell's features once
    assert len(left_out) == len(metrics) * len(cells)  # and the values with groups left out, whatever the baselines
    of = {(r["metric"], r["method"], r["prompts"]): r for r in records}
    for i, method in enumerate(METHODS):
        record = of["one", method, "q"]
        assert (record["n"], record["error"], record["metric_digest"]) == (24, None, "1")
        assert record["value"] == pytest.approx(2 * (i + 1), abs=0.2)
        assert record["low"] < record["value"] < record["high"]
        if method == "b":
            assert record["against"] == {}
        else:
            difference = record["against"]["b"]
            assert difference["value"] == pytest.approx(record["value"] - of["one", "b", "q"]["value"])
            assert difference["low"] < difference["value"] < difference["high"]
    assert of["two", "c", "p"]["value"] == pytest.approx(of["one", "c", "p"]["value"] ** 2)


def test_a_cell_without_images_says_so(store: Store) -> None:
    records = distribution_values(store, [_cell("nothing"), _cell("a")], {"one": (Shift(), "1")}, baselines=["a"])
    assert [(r["n"], r["value"] is None, r["error"]) for r in records] == [(0, True, "no images"), (24, False, None)]
    assert records[0]["against"] == {}


def test_a_cell_with_images_whose_features_are_not_there_says_so(store: Store) -> None:
    cell = _cell("unscored")
    part = Part("m", "unscored", "p", "0-0-11")
    row = {"model": "m", "method": "unscored", "prompts": "p", "prompt_id": "0", "seed": 0, "error": None}
    image = encode(np.zeros((1, 8, 8, 3), np.uint8), "png")
    store.write_images(part, [row | {"sample_id": cell.sample_id("0", 0)}], [image])
    (record,) = distribution_values(store, [cell], {"one": (Shift(), "1")})
    assert record["error"] == "no features of the images here; `harness score RUN` makes them, or says what they lack"


def test_two_cells_on_common_pairs_with_each_distance_computed_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    monkeypatch.setattr(Shift, "distance", lambda self, x, reference, real=Shift.distance: (
        rows.append(len(x)), real(self, x, reference))[1])
    pairs = {(str(i), seed) for i in range(8) for seed in (0, 1)}
    found = paired_distances(Shift(), (store, _cell("b")), (store, _cell("a")), {*pairs, ("unknown", 0)})
    assert rows.count(16) == 2
    assert (found["n"], found["prompts"]) == (16, 8)
    assert found["value"] == pytest.approx(found["first"] - found["second"])
    assert found["value"] == pytest.approx(2, abs=0.3)
    assert found["low"] < found["value"] < found["high"]
    with pytest.raises(ValueError, match="no \\(prompt, seed\\)"):
        paired_distances(Shift(), (store, _cell("b")), (store, _cell("a")), {("unknown", 0)})
