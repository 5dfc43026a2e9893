"""What a study found, in words and tables, written from its rows and from nothing else.

    python -m harness.analysis.findings results/studies/shapes-methods.parquet docs/findings/shapes-methods.md

ROWS is a Parquet or CSV file of per-sample scores (model, method, prompts, prompt_id, category, seed, metric,
value, nfe, seconds, and `judge` where a method chose by a metric), as `export` writes it; table records of the
same name with the suffix .json, where there are any, add the metrics of whole cells.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from harness.analysis import layout, render
from harness.analysis.figures import quality_against_cost
from harness.analysis.matching import ALIKE, alike, nearest
from harness.analysis.records import CELL, MetricInfo, Record, differences, records
from harness.analysis.tables import Outcome
from harness.errors import HarnessError
from harness.files import write_atomic

COLUMNS = [*CELL, "prompt_id", "category", "seed", "metric", "value", "nfe", "seconds"]
CONSTANT = re.compile(r"cfg-\d+(\.\d+)?")
HELPS, HURTS, UNCLEAR = "helps", "hurts", "no established effect"


@dataclass
class Study:
    """A study's rows, made ready for tables."""

    rows: pd.DataFrame
    cells: list[Record]
    metrics: dict[str, MetricInfo]
    primary: str
    judges: dict[str, str] = field(default_factory=dict)

    def part(self, model: str, prompts: str) -> Study:
        """The rows of one model and prompt set."""
        rows = self.rows[(self.rows["model"] == model) & (self.rows["prompts"] == prompts)]
        cells = [r for r in self.cells if (r["model"], r["prompts"]) == (model, prompts)]
        return Study(rows, cells, self.metrics, self.primary, self.judges)

    def value(self, method: str, metric: str) -> float:
        """The overall value of a method, minus infinity where there is none."""
        found = [r["value"] for r in self.cells if (r["method"], r["metric"], r["group"]) == (method, metric, None)]
        return found[0] if found and found[0] is not None else float("-inf")

    def nfe(self) -> dict[str, float]:
        """Mean evaluations an image, by method."""
        return {str(k): float(v) for k, v in self.rows.groupby("method", sort=False)["nfe"].mean().items()}


def export(outcome: Outcome, path: Path) -> Path:
    """Keeps what findings need of a run: its score rows at `path` (Parquet) and its records beside it (JSON)."""
    rows = outcome.scored
    rows = rows.assign(judge=rows["method"].map(dict(outcome.judges)))
    data = io.BytesIO()
    rows.to_parquet(data, index=False, compression="zstd")
    kept = json.dumps(list(outcome.records), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, data.getvalue(), "--rows")
    write_atomic(path.with_suffix(".json"), f"{kept}\n".encode(), "--rows")
    return path


def read(path: Path, primary: str | None = None) -> Study:
    """A study from its rows, and its records where they lie beside them.

    Raises:
        HarnessError: no such file, no rows, or columns that are missing.
    """
    if not path.is_file():
        raise HarnessError(f"{path}: no such file; expected a study's score rows (.parquet or .csv)")
    text = {key: str for key in ("prompt_id", "category", *CELL)}
    rows = pd.read_csv(path, dtype=text) if path.suffix == ".csv" else pd.read_parquet(path)
    lacking = [column for column in COLUMNS if column not in rows]
    if lacking or rows.empty:
        raise HarnessError(f"{path}: {'columns ' + ', '.join(lacking) + ' are missing' if lacking else 'no rows'}")
    beside = path.with_suffix(".json")
    kept: list[Record] = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else []
    return study(rows, kept, primary)


def study(rows: pd.DataFrame, kept: Sequence[Record] = (), primary: str | None = None) -> Study:
    """Score rows as a study, with a run's records: they add the metrics of whole cells, and say which metrics are
    better when lower. The metric of the verdicts is `primary`; without one the first whose name begins with
    "geneval", else the first."""
    names = [str(name) for name in rows["metric"].unique()]
    chosen = primary or next((name for name in names if name.startswith("geneval")), names[0])
    if chosen not in names:
        raise HarnessError(f"no rows of metric {chosen!r}; there are {', '.join(names)}")
    distribution = [r for r in kept if r.get("kind") == "distribution"]
    higher = {r["metric"]: bool(r.get("higher_is_better", True)) for r in kept}
    metrics = {
        name: MetricInfo(
            name, "", higher_is_better=higher.get(name, True),
            aggregation="mean_of_groups" if name.startswith("geneval") else "mean",
        )
        for name in [chosen, *(n for n in names if n != chosen)]
    }
    for record in distribution:
        metrics.setdefault(record["metric"], MetricInfo(
            record["metric"], "", "distribution", bool(record.get("higher_is_better", False))))
    keys = [*CELL, "prompt_id", "seed"]
    images = rows.drop_duplicates(keys)[[*keys, "category", "nfe", "seconds"]]
    images = images.assign(sample_id=_ids(images, keys), error=None)
    scores = rows[[*CELL, "metric", "value"]].assign(sample_id=_ids(rows, keys), metric_digest="", error=None)
    judged = rows.dropna(subset="judge") if "judge" in rows else rows[:0].assign(judge="")
    judges = dict(zip(judged["method"].astype(str), judged["judge"].astype(str), strict=True))
    whole = [r for r in distribution if r["group"] is None]
    return Study(rows, records(images, scores, whole, metrics), metrics, chosen, judges)


def verdict(difference: Record, higher_is_better: bool = True, level: float = 0.05) -> str:
    """`helps` or `hurts` where the 95 % interval excludes zero and Holm's p is below `level`; otherwise
    `no established effect`, which is not the same as none."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or not difference["p_holm"] < level or low <= 0 <= high:
        return UNCLEAR
    return HELPS if (low > 0) == higher_is_better else HURTS


def choose_baseline(found: Study, wanted: str | None) -> str:
    """The method to compare with: `wanted`, or the constant guidance scale ("cfg-3") that scores best.

    Raises:
        HarnessError: no such method.
    """
    methods = [str(name) for name in found.rows["method"].unique()]
    if wanted is not None:
        if wanted not in methods:
            raise HarnessError(f"no rows of method {wanted!r}; there are {', '.join(methods)}")
        return wanted
    constant = [name for name in methods if CONSTANT.fullmatch(name)]
    if not constant:
        raise HarnessError("no method is named like 'cfg-3', so the baseline must be given with --baseline")
    return max(constant, key=lambda name: found.value(name, found.primary))


def findings(
    found: Study, baseline: str | None = None, figure: Mapping[tuple[str, str], str] | None = None,
    title: str = "Findings in the shapes world",
) -> str:
    """The findings as Markdown. `figure` gives the path of each (model, prompt set)'s figure as linked."""
    lines = [
        f"# {title}", "",
        "Written by `python -m harness.analysis.findings` from a study's rows; not to be edited by hand.", "",
        "**How to read it.** Every comparison is paired: the same prompts, the same seeds, and so the same initial "
        "noise. Intervals are 95 % and resample prompts (all seeds of a prompt together); p-values flip the signs of "
        f"whole prompts and are Holm-adjusted over the methods compared. A method *{HELPS}* or *{HURTS}* only where "
        f"its interval excludes zero and the adjusted p is below 0.05. *{UNCLEAR.capitalize()}* means that this "
        "study cannot tell; the interval says how large an effect may still hide. These are results of a small "
        "trained world of coloured shapes; they are no claim about natural images.", "",
    ]
    places = found.rows[["model", "prompts"]].drop_duplicates()
    for model, prompts in places.itertuples(index=False):
        lines += _section(found.part(model, prompts), model, prompts, baseline, (figure or {}).get((model, prompts)))
    return "\n".join(lines).rstrip() + "\n"


def _section(found: Study, model: str, prompts: str, wanted: str | None, figure: str | None) -> list[str]:
    base = choose_baseline(found, wanted)
    rows, primary = found.rows, found.primary
    n, seeds = rows["prompt_id"].nunique(), rows["seed"].nunique()
    spec = layout.TableSpec(rows=("method",))
    compared = differences(rows, base, found.metrics, groups=True)
    overall = [r for r in compared if r["group"] is None]
    lines = [f"## {prompts}, {model}", "", f"{n} prompts × {seeds} seeds, {rows['method'].nunique()} methods.", ""]
    lines += _about_baseline(found, base, wanted)
    lines += ["### In short", ""]
    lines += [_sentence(r, found) for r in overall if r["metric"] == primary]
    others = [r for r in overall if r["metric"] != primary]
    if others:
        lines += ["", "By the other metrics of single images:", ""]
        lines += [_sentence(r, found, name=True) for r in others]
    whole = _whole_cells(found, base)
    if whole:
        lines += ["", "By the metrics of whole cells (prompts left out by jackknife; not adjusted for the number of "
                  "methods):", "", *whole]
    lines += ["", "### All methods", "", render.markdown(_overview(found, spec))]
    if figure:
        lines += [f"![{primary} against denoiser evaluations]({figure})", ""]
    against = layout.lay_out_differences(overall, spec, found.metrics, f"Paired differences against {base}")
    lines += [f"### Against {base}", "", render.markdown(against)]
    tasks = [r for r in compared if r["group"] is not None and r["metric"] == primary]
    if tasks:
        lines += ["### Task by task", ""]
        by_task = layout.lay_out_groups(found.cells, spec, primary, found.metrics, found.judges, ci=True)
        lines += [render.markdown(by_task)]
        clear = [r for r in tasks if verdict(r) != UNCLEAR]
        verb = "is" if len(clear) == 1 else "are"
        lines += [f"Of {len(tasks)} differences to {base} in single tasks (one Holm family) {len(clear) or 'none'} "
                  f"{verb} established{':' if clear else '.'}", ""]
        lines += [_sentence(r, found, name=False) for r in clear] + [""]
    return lines + _equal_cost(found, spec, base)


def _about_baseline(found: Study, base: str, wanted: str | None) -> list[str]:
    if wanted is not None:
        return [f"The baseline is **{base}**.", ""]
    scales = [m for m in found.nfe() if CONSTANT.fullmatch(m)]
    order = sorted(scales, key=lambda m: -found.value(m, found.primary))
    values = ", ".join(f"{m} {found.value(m, found.primary):.3f}" for m in order)
    return [
        f"The baseline is **{base}**, the constant guidance scale with the best {found.primary} ({values}). It was "
        "chosen on these same rows, which favours it a little.", "",
    ]


def _sentence(record: Record, found: Study, name: bool = False) -> str:
    """A bullet: the method, the verdict, the difference with its interval, n, and the relative cost."""
    info = found.metrics[record["metric"]]
    digits = layout.decimals([record["value"], record["low"], record["high"]])
    ratio = record["nfe"] / record["baseline_nfe"] if record["nfe"] and record["baseline_nfe"] else None
    what = f" ({record['metric']})" if name else f" ({record['group']})" if record["group"] else ""
    text = (
        f"- **{record['method']}**{what}: {verdict(record, info.higher_is_better)}; "
        f"{layout.fixed(record['value'], digits, sign=True)}{layout.interval(record, digits, sign=True)}, "
        f"p {_equals(layout.p_value(record['p_holm']))}, {record['n']} pairs of {record['clusters']} prompts"
    )
    if ratio is not None:
        text += ", equal cost" if alike(ratio, 1) else f", {ratio:.2g} times the evaluations"
    if found.judges.get(record["method"]) == record["metric"]:
        text += " (it chooses by this very metric: no independent evidence)"
    return text + "."


def _whole_cells(found: Study, base: str) -> list[str]:
    """Bullets for the paired differences of distribution metrics that the records hold."""
    lines = []
    for record in found.cells:
        delta = (record.get("against") or {}).get(base)
        if delta is None or record["method"] == base:
            continue
        info = found.metrics[record["metric"]]
        digits = layout.decimals([delta["value"], delta["low"], delta["high"]])
        lines.append(
            f"- **{record['method']}** ({record['metric']}): "
            f"{verdict(delta | {'p_holm': 0.0}, info.higher_is_better)}; "
            f"{layout.fixed(delta['value'], digits, sign=True)}{layout.interval(delta, digits, sign=True)}, "
            f"{record['n']} images."
        )
    return lines


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _overview(found: Study, spec: layout.TableSpec) -> layout.Table:
    return layout.lay_out(found.cells, spec, found.metrics, found.judges, ci=True)


def _equal_cost(found: Study, spec: layout.TableSpec, base: str) -> list[str]:
    """Methods that cost more than the baseline, beside what else the same evaluations buy."""
    costs = found.nfe()
    dear = {m: c for m, c in costs.items() if c > costs[base] * (1 + ALIKE)}
    lines = ["### At equal cost", ""]
    if not dear:
        return [*lines, f"No method costs more than {base}.", ""]
    while dear:
        first = next(iter(dear))
        cost = dear[first]
        rivals = {m: c for m, c in dear.items() if alike(c, cost)}
        dear = {m: c for m, c in dear.items() if m not in rivals}
        if len(rivals) == 1:
            lines += [f"**{first}** ({cost:.0f} NFE, {cost / costs[base]:.2g} times {base}) has no rival of its cost "
                      "in this study, so that its gain cannot be told from that of spending more.", ""]
            continue
        reference = nearest(cost, {m: c for m, c in rivals.items() if "best-of" in m}) or first
        some = found.rows[found.rows["method"].isin(rivals)]
        compared = differences(some, reference, {found.primary: found.metrics[found.primary]})
        lines += [f"{', '.join(f'**{m}**' for m in rivals)} spend about {cost:.0f} NFE. Against {reference}:", ""]
        lines += [_sentence(r, found) for r in compared] + [""]
    return lines


def _ids(rows: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    joined = rows[keys[0]].astype(str)
    for key in keys[1:]:
        joined = joined + "\x1f" + rows[key].astype(str)
    return joined


def write(rows: Path, out: Path, *, baseline: str | None = None, primary: str | None = None,
          figures: Path | None = None, title: str | None = None) -> Path:
    """Writes the findings of a rows file to `out`, and a figure for each (model, prompt set) into `figures`
    (default: the folder `figures` beside `out`)."""
    found = read(rows, primary)
    folder = figures or out.parent / "figures"
    links = {}
    for model, prompts in found.rows[["model", "prompts"]].drop_duplicates().itertuples(index=False):
        part = found.part(model, prompts)
        drawn = quality_against_cost(part.cells, list(part.metrics), folder / f"{rows.stem}-{model}-{prompts}.png")
        links[model, prompts] = Path(os.path.relpath(drawn, out.parent)).as_posix()
    text = findings(found, baseline, links, **({"title": title} if title else {}))
    write_atomic(out, text.encode(), "OUT")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit code 2, and a sentence, for a request that makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m harness.analysis.findings", description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, metavar="ROWS", help="the study's score rows, .parquet or .csv")
    parser.add_argument("out", type=Path, metavar="OUT", help="the Markdown file to write")
    parser.add_argument("--baseline", help="the method to compare with (default: the best constant scale, cfg-*)")
    parser.add_argument("--primary", help="the metric of the verdicts (default: geneval-*, else the first)")
    parser.add_argument("--figures", type=Path, help="folder for the figures (default: figures/ beside OUT)")
    parser.add_argument("--title", help="the heading")
    given = parser.parse_args(arguments)
    try:
        print(write(given.rows, given.out, baseline=given.baseline, primary=given.primary, figures=given.figures,
                    title=given.title))
    except HarnessError as error:
        parser.exit(2, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
