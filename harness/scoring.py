"""What is still to be scored: for every part of images the metrics that it lacks, and what they compare it with."""

import json
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from harness import orbit_pictures
from harness.errors import HarnessError
from harness.identity import digest
from harness.metrics.base import DistributionMetric, PairedMetric
from harness.plan import Cell
from harness.prompts import Prompt
from harness.resolve import ResolvedMetric
from harness.store import Store
from harness.units import Counterpart, ScoreUnit
from harness.weights import sha256_of

COLUMNS = ["sample_id", "prompt_id", "seed", "width", "height", "error"]


def score_units(
    store: Store, cells: Collection[Cell], wanted: dict[str, ResolvedMetric], planned: Collection[Cell]
) -> Iterator[tuple[ScoreUnit, int]]:
    """A unit for every part of images, with the metrics and features that it lacks, and its number of samples.

    `planned` are all cells of the benchmark: what a sample is compared with may be of none of `cells`.
    """
    by_place = {(cell.model, cell.method, cell.prompts): cell for cell in planned}
    by_shelf = {m.metric.shelf: label for label, m in wanted.items() if isinstance(m.metric, DistributionMetric)}
    paired = {label: m.metric for label, m in wanted.items() if isinstance(m.metric, PairedMetric)}

    @cache
    def images_of(model: str, method: str, prompts: str) -> dict[tuple[str, int], Counterpart]:
        """A cell's images by (prompt id, seed), whatever parts they lie in; none of a class that its prompt had."""
        cell = by_place[model, method, prompts]
        there = {prompt.id for prompt in cell.prompt_set.prompts}
        found = {}
        for part in store.parts("images", model=model, method=method, prompts=prompts):
            rows = store.read_part(part, COLUMNS)
            good = rows[rows["error"].isna()]
            for sample, prompt, seed in zip(good["sample_id"], good["prompt_id"], good["seed"], strict=True):
                if prompt not in there or sample == cell.sample_id(prompt, seed):
                    found[prompt, seed] = Counterpart(part, sample)
        return found

    for cell in cells:
        place: dict[str, Any] = {"model": cell.model, "method": cell.method, "prompts": cell.prompts}
        scored = {
            label: store.sample_ids("scores", label, digest=metric.digest, with_failed=False, **place)
            for label, metric in wanted.items()
            # What the others are compared with is not compared with itself.
            if metric.metric.kind != "distribution" and getattr(metric.metric, "against", None) != cell.method
        }
        compared = {
            label: references(store, label, wanted[label].digest, place) for label in paired if label in scored
        }
        extracted = {name: store.sample_ids("features", name, **place) for name in by_shelf}
        by_id = {prompt.id: prompt for prompt in cell.prompt_set.prompts}
        for part in store.parts("images", **place):
            rows = store.read_part(part, COLUMNS)
            shown = set(rows.loc[rows["error"].isna(), "sample_id"])
            counterparts = {
                label: _by_files(rows, by_id) if not paired[label].against
                else _by_method(rows, paired[label].against, images_of(cell.model, paired[label].against, cell.prompts))
                for label in compared
            }
            lacking = {label: shown - done for label, done in scored.items()}
            for label, given in counterparts.items():
                changed = {s for s, other in given.items() if compared[label].get(s) != getattr(other, "id", None)}
                lacking[label] = (lacking[label] | changed) & shown & set(given)
            metrics = tuple(label for label, samples in lacking.items() if samples)
            extractors = tuple(by_shelf[name] for name, done in extracted.items() if shown - done)
            if metrics or extractors:
                prompts = tuple(by_id[p] for p in dict.fromkeys(rows["prompt_id"]) if p in by_id)
                needed = {label: given for label, given in counterparts.items() if label in metrics}
                yield ScoreUnit(part, metrics, extractors, prompts, needed), len(shown)


def _by_method(
    rows: pd.DataFrame, against: str, images: dict[tuple[str, int], Counterpart]
) -> dict[str, Counterpart | str]:
    """For each sample the other method's image of the same prompt and seed, or that there is none."""
    none = f"there is no image by {against!r} to compare with"
    keys = zip(rows["sample_id"], rows["prompt_id"], rows["seed"], strict=True)
    return {sample: images.get((prompt, seed), none) for sample, prompt, seed in keys}


def _by_files(rows: pd.DataFrame, prompts: dict[str, Prompt]) -> dict[str, Counterpart | str]:
    """For each sample the pictures that its prompt names, one for each of its frames, or why there are none; other
    prompts' samples stay out."""
    found: dict[str, Counterpart | str] = {}
    frames = rows["sample_id"].value_counts()
    for row in rows.drop_duplicates("sample_id").to_dict("records"):
        if row["prompt_id"] in prompts:
            try:
                files = orbit_pictures.to_compare(prompts[row["prompt_id"]], int(frames[row["sample_id"]]))
            except HarnessError as error:
                found[row["sample_id"]] = str(error)
                continue
            hashes = [sha256_of(Path(file)) if Path(file).is_file() else "" for file in files]
            size = None if pd.isna(row["width"]) else (int(row["width"]), int(row["height"]))
            found[row["sample_id"]] = Counterpart(files, hashes[0] if len(files) == 1 else digest(hashes), size)
    return found


def references(store: Store, label: str, metric_digest: str, place: dict[str, Any]) -> dict[str, str | None]:
    """By sample the image that its score by a paired metric belongs to, as the score's detail says."""
    rows = store.read("scores", label, columns=["sample_id", "metric_digest", "detail"], **place)
    rows = rows[rows["metric_digest"] == metric_digest]
    details = (json.loads(detail) for detail in rows["detail"])
    return {sample: detail.get("reference") for sample, detail in zip(rows["sample_id"], details, strict=True)}
