"""From sample rows and scores to table records: a dict a (cell, metric, group), as INTERFACES.md fixes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats

CELL = ["model", "method", "prompts"]
# Not the id alone: two labels of one set, or of one method, share their samples' ids and may have other scores.
SAMPLE = [*CELL, "sample_id"]
Record = dict[str, Any]


@dataclass(frozen=True)
class MetricInfo:
    """What tables need to know of a metric; `missing` is why it could not be computed here, or None.

    `lowest` counts the values that the aggregation "mean_of_lowest" averages; `against` is the method whose images
    a paired metric compares the others with ("": the prompts' own).
    """

    name: str
    digest: str
    kind: str = "sample"
    higher_is_better: bool = True
    aggregation: str = "mean"
    trained: bool = True
    missing: str | None = None
    lowest: int = 0
    against: str = ""

    @property
    def grouped(self) -> bool:
        """Whether the overall value is the unweighted mean of the categories' means."""
        return self.aggregation == "mean_of_groups"


def records(
    images: pd.DataFrame,
    scores: pd.DataFrame,
    distribution: Iterable[Mapping[str, Any]],
    metrics: Mapping[str, MetricInfo],
    trained: Mapping[str, bool] | None = None,
) -> list[Record]:
    """The table records of a run: every cell with every metric, and per category where a metric asks for it.

    Args:
        images: sample rows with model, method, prompts, prompt_id, category, seed, nfe, flops, seconds, error,
            sample_id.
        scores: model, method, prompts, sample_id, metric, metric_digest, value, error; rows of another digest than
            the metric's count for nothing.
        distribution: values of whole cells: model, method, prompts, metric, value, low, high, n, `error` (why
            there is none), and, where it has been computed, `against`: by method the paired difference to it
            (value, low, high), which the record then holds as well.
        metrics: by label, in the order of the table.
        trained: by model label; False marks random weights.

    Besides the agreed keys a record holds `failed` (rows of the cell without a value), `reason` (why there is
    no value, or why rows failed; None where all is well), the metric's `kind` and `higher_is_better`, and, where
    its aggregation is "mean_of_lowest", `lowest`: how many values went into the mean (all where there are fewer).
    Values that do not exist are None, never NaN. The overall record of a metric that is a mean of categories also
    holds what GenEval's summary prints beside it: `mean_of_images` and, over prompts, `mean_of_best` (for values of
    0 and 1 the share of prompts with at least one correct image).
    """
    images = images.drop_duplicates(SAMPLE).reset_index(drop=True)  # frames of one clip are one sample
    whole = {(*(d[key] for key in CELL), d["metric"]): d for d in distribution}
    valued = {
        label: images[SAMPLE].merge(mine, on=SAMPLE, how="left")[["value", "why"]]
        for label, mine in _by_label(scores, metrics).items()
    }
    found: list[Record] = []
    for place, cell in images.groupby(CELL, sort=False):
        cost = _cost(cell)
        for label, info in metrics.items():
            model = (trained or {}).get(str(place[0]), True)
            base = dict(zip(CELL, place, strict=True)) | {"group": None, "metric": label, "metric_digest": info.digest}
            tail: Record = {
                "trained": bool(model and info.trained), "kind": info.kind, "higher_is_better": info.higher_is_better,
            }
            if info.missing is not None:
                found.append(base | _nothing(len(cell), info.missing) | cost | tail)
            elif info.against == place[1]:
                found.append(base | _nothing(0, "the others are compared with these images") | cost | tail)
            elif info.kind == "distribution":
                found.append(base | _of_cell(whole.get((*place, label)), cell) | cost | tail)
            else:
                rows = cell.join(valued[label])
                found.append(base | _of_rows(rows, info.grouped, info.lowest) | cost | tail)
                if info.grouped and rows["category"].notna().any():
                    found[-1] |= _ungrouped(rows)
                    found += [
                        base | {"group": str(name)} | _of_rows(part, False) | _cost(part) | tail
                        for name, part in rows.groupby("category", sort=False)
                    ]
    return found


def scored_rows(images: pd.DataFrame, scores: pd.DataFrame, metrics: Mapping[str, MetricInfo]) -> pd.DataFrame:
    """Every finite score beside its sample: model, method, prompts, prompt_id, category, seed, nfe, flops, seconds,
    metric, value."""
    keep = [*CELL, "prompt_id", "category", "seed", "nfe", "flops", "seconds"]
    samples = images.drop_duplicates(SAMPLE)[["sample_id", *keep]]
    parts = [
        samples.merge(part.loc[part["why"].isna()], on=SAMPLE).assign(metric=label)
        for label, part in _by_label(scores, metrics).items()
        if metrics[label].kind != "distribution"
    ]
    columns = [*keep, "metric", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def baselines(given: str | Mapping[str, str] | None, methods: Iterable[str]) -> dict[str, str]:
    """What each method is compared with: all others with the one that is `given`, or each with its own."""
    if given is None:
        return {}
    own = {method: given for method in methods if method != given} if isinstance(given, str) else given
    return {method: own[method] for method in methods if method in own}


def differences(
    rows: pd.DataFrame,
    baseline: str | Mapping[str, str],
    metrics: Mapping[str, MetricInfo],
    *,
    groups: bool = False,
    methods: Sequence[str] | None = None,
) -> list[Record]:
    """Every method minus `baseline` (or, by method, its own), paired by (prompt, seed), on the rows of `scored_rows`.

    A mapping gives each method a baseline of its own; methods that it does not name are left out.

    A record holds model, method, prompts, group, metric, baseline, value (method - baseline), low, high, n
    (pairs), clusters (prompts), p (sign flips of prompts), p_holm, win_rate, win_low, win_high (the share of prompts
    on which the method is better, ties half), wins, ties, losses, effect_size (Cohen's d_z of the prompts, signed as
    value is), nfe, baseline_nfe, and likewise flops where the rows have them. Holm's family is all methods on one
    metric of one (model, prompts); with `groups`, all methods × categories likewise. A metric whose value is the mean
    of the lowest has none: a difference of such means is no mean of paired differences.
    """
    found: list[Record] = []
    for (model, prompts, label), part in rows.groupby(["model", "prompts", "metric"], sort=False):
        if label not in metrics or metrics[str(label)].lowest:
            continue
        by_method = {str(method): mine for method, mine in part.groupby("method", sort=False)}
        overall: list[Record] = []
        by_group: list[Record] = []
        for method, base in baselines(baseline, by_method).items():
            if base not in by_method or (methods is not None and method not in methods):
                continue
            pairs = by_method[method].merge(by_method[base], on=["prompt_id", "seed"], suffixes=("", "_base"))
            if pairs.empty:
                continue
            head = {"model": model, "method": method, "prompts": prompts, "metric": label, "baseline": base}
            info = metrics[str(label)]
            grouped = info.grouped and bool(pairs["category"].notna().any())
            overall.append(head | {"group": None} | _difference(pairs, grouped, info.higher_is_better))
            if groups and grouped:
                by_group += [
                    head | {"group": str(name)} | _difference(some, False, info.higher_is_better)
                    for name, some in pairs.groupby("category", sort=False)
                ]
        for family in (overall, by_group):
            for record, p in zip(family, stats.holm([r["p"] for r in family]), strict=True):
                record["p_holm"] = float(p)
            found += family
    return found


def win_rates(
    found: Sequence[Record], paired: Sequence[Record], baseline: str | Mapping[str, str]
) -> list[Record]:
    """The overall records of the methods that have a baseline, with their win rates against it for values.

    `found` are the records of a run, `paired` its `differences`. Beside a record's keys: quantity ("win_rate") and
    baseline; value, low and high are shares, n counts prompts.
    """
    key = [*CELL, "metric"]
    won = {tuple(d[name] for name in key): d for d in paired if d["group"] is None}
    against = baselines(baseline, dict.fromkeys(r["method"] for r in found))
    rates = []
    for record in found:
        if record["group"] is not None or record["method"] not in against:
            continue
        base = against[record["method"]]
        rate = won.get(tuple(record[name] for name in key))
        if rate is not None:
            ends = {"value": rate["win_rate"], "low": rate["win_low"], "high": rate["win_high"], "n": rate["clusters"]}
        else:
            why = f"no prompt and seed with a score of it for {base} as well"
            if record["kind"] == "distribution" or record.get("lowest"):
                why = "a value of all images together, so that no prompt is won"
            reason = record["reason"] if record["value"] is None else why
            ends = dict.fromkeys(("value", "low", "high")) | {"n": 0, "reason": reason}
        rates.append(record | {"quantity": "win_rate", "baseline": base} | ends)
    return rates


def paired(
    delta: np.ndarray, prompt_ids: pd.Series, categories: pd.Series | None, higher_is_better: bool
) -> Record:
    """What is said of differences `[N]` of pairs, N at least 1: value, low, high, n (pairs), clusters (prompts), p,
    win_rate, win_low, win_high, wins, ties, losses, effect_size. With `categories`, value is the mean of theirs."""
    prompts = pd.factorize(prompt_ids)[0]
    found = stats.paired_difference(delta, prompts, categories)
    won = stats.win_rate(delta, prompts, higher_is_better)
    return _interval(found) | {
        "clusters": found.clusters, "p": found.p,
        "win_rate": won.rate, "win_low": won.low, "win_high": won.high,
        "wins": won.wins, "ties": won.ties, "losses": won.losses,
        "effect_size": number(stats.effect_size(delta, prompts)),
    }


def _difference(pairs: pd.DataFrame, grouped: bool, higher_is_better: bool) -> Record:
    delta = pairs["value"].to_numpy(float) - pairs["value_base"].to_numpy(float)
    return paired(delta, pairs["prompt_id"], pairs["category"] if grouped else None, higher_is_better) | {
        key + cost: number(pairs[cost + side].mean())
        for cost in ("nfe", "flops") if cost in pairs for key, side in (("", ""), ("baseline_", "_base"))
    }


def _by_label(scores: pd.DataFrame, metrics: Mapping[str, MetricInfo]) -> dict[str, pd.DataFrame]:
    """For each metric of samples its rows: `SAMPLE`, value, and `why` there is no value (None where there is)."""
    found = {}
    for label, info in metrics.items():
        mine = scores[(scores["metric"] == label) & (scores["metric_digest"] == info.digest)]
        mine = mine.drop_duplicates(SAMPLE, keep="last")
        finite = np.isfinite(pd.to_numeric(mine["value"], errors="coerce").astype(float))
        said = mine["error"] if "error" in mine else pd.Series(None, mine.index, dtype=object)
        why = said.astype(object).where(said.notna(), None)
        why = why.mask(why.isna() & ~finite, "no value")
        found[label] = mine[SAMPLE].assign(value=mine["value"].astype(float), why=why)
    return found


def _of_rows(rows: pd.DataFrame, grouped: bool, lowest: int = 0) -> Record:
    """The value of a cell's (or category's) rows; those without one are counted and their reason kept."""
    good = rows["value"].notna() & rows["why"].isna() & rows["error"].isna()
    mine = rows[good]
    extra: Record = {}
    if lowest:
        found = stats.mean_of_lowest_interval(mine["value"], mine["prompt_id"], lowest)
        extra["lowest"] = min(lowest, len(mine))
    elif grouped and mine["category"].notna().any():
        found = stats.mean_of_groups_interval(mine["value"], mine["category"], mine["prompt_id"])
    else:
        found = stats.mean_interval(mine["value"], mine["prompt_id"])
    bad = rows[~good]
    reason = None
    if len(bad):
        why = bad["error"].where(bad["error"].notna(), bad["why"]).fillna("not scored")
        reason = str(why.mode().iloc[0])
    return _interval(found) | {"failed": len(bad), "reason": reason} | extra


def _ungrouped(rows: pd.DataFrame) -> Record:
    """The means that know no categories: over images, and over prompts of the highest of their images."""
    good = rows[rows["value"].notna() & rows["why"].isna() & rows["error"].isna()]
    best = good.groupby("prompt_id")["value"].max()
    return {"mean_of_images": number(good["value"].mean()), "mean_of_best": number(best.mean())}


def _of_cell(value: Mapping[str, Any] | None, cell: pd.DataFrame) -> Record:
    if value is None:
        return _nothing(len(cell), "not computed")
    n = int(value.get("n") or 0)
    lacking = max(len(cell) - n, 0)
    errors = cell["error"].dropna()
    reason = value.get("error") or (str(errors.mode().iloc[0]) if lacking and len(errors) else None)
    ends = {key: number(value.get(key)) for key in ("value", "low", "high")}
    if ends["value"] is None and reason is None:
        reason = "no value"
    against = {"against": value["against"]} if value.get("against") else {}
    return ends | {"n": n, "failed": lacking, "reason": reason} | against


def _nothing(rows: int, reason: str) -> Record:
    return {"value": None, "low": None, "high": None, "n": 0, "failed": rows, "reason": reason}


def _interval(found: stats.Interval) -> Record:
    return {"value": number(found.value), "low": number(found.low), "high": number(found.high), "n": found.n}


def _cost(rows: pd.DataFrame) -> Record:
    """Means over the images that there are."""
    made = rows[rows["error"].isna()]
    return {key: number(made[key].mean()) if key in made else None for key in ("nfe", "flops", "seconds")}


def number(value: Any) -> float | None:
    """A finite float, or None: JSON has no NaN."""
    if value is None:
        return None
    return float(value) if math.isfinite(float(value)) else None
