"""The standing table of results: a run's values as rows of the leaderboard, after validation.

`harness.analysis.leaderboard` holds the rows, the files and the table.
"""

from dataclasses import dataclass
from pathlib import Path

from harness import registry, run
from harness.analysis import leaderboard as board
from harness.analysis import published
from harness.analysis.leaderboard import Arranged, Citation, Prompts, Provenance, Row
from harness.analysis.leaderboard_page import page
from harness.benchmark import resources
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.identity import digest
from harness.metrics.load import higher_is_better
from harness.orbit_pictures import orbit_of
from harness.prompts import Prompt, PromptSet
from harness.resolve import Resolved
from harness.store import Store
from harness.weights import sha256_of

OWN = Path("results/leaderboard")


@dataclass
class Added:
    """What `add` did: the rows that are new, how many were there already, and what is to be said."""

    folder: Path
    rows: list[Row]
    known: int
    notes: list[str]

    def text(self) -> str:
        """For people."""
        there = f", {self.known} were there already" if self.known else ""
        lines = [f"{len(self.rows)} rows added to {self.folder}{there}", *(f"  {note}" for note in self.notes)]
        return "\n".join(lines)


def boards(own: Path | None = None) -> list[Path]:
    """The folders that are read: what ships, then the user's own, whose rows win."""
    found = [resources("leaderboard"), own or OWN]
    return found if found[0].resolve() != found[1].resolve() else found[1:]


def rows(own: Path | None = None) -> list[Row]:
    """All rows of the leaderboard."""
    found: dict[board.Key, Row] = {}
    for folder in boards(own):
        found |= board.read(folder)
    return list(found.values())


def cited() -> list[Row]:
    """The published values of metrics that this project has, in the scale of these metrics."""
    table = published.rows()
    known = registry.names("metric")
    return [
        Row(
            model=row["model"], method=row["method"], prompts=Prompts(set=row["prompts"]), metric=row["metric"],
            higher_is_better=higher_is_better(row["metric"]), value=row["value"] / row["scale"],
            citation=Citation(paper=row["paper"], table=row["table"], source=row["source"], note=row["note"] or None),
        )
        for row in table[table["quantity"] == "value"].to_dict("records") if row["metric"] in known
    ]


def shown(
    own: Path | None = None, *, with_published: bool = False, sort: str | None = None, top: int | None = None,
    **wanted: str | None,
) -> Arranged:
    """What is to be shown: rows by model, method, prompts, metric (`wanted`), sorted.

    Raises:
        HarnessError: a broken row, or nothing to show.
    """
    found = rows(own) + (cited() if with_published else [])
    if not found:
        raise HarnessError("the leaderboard has no rows yet: `harness leaderboard --add RUN` adds those of a run")
    return board.arrange(board.select(found, **wanted), sort, top)


def write_page(arranged: Arranged, path: Path) -> Path:
    """Writes the HTML page."""
    write_atomic(path, page(board.lay_out(arranged, sources=True)).encode(), "--html")
    return path


def add(run_name: str, *, results: Path, own: Path | None = None) -> Added:
    """Adds a run's values to the leaderboard.

    Raises:
        HarnessError: the run is not whole, has random weights, has no values, or says something else than a row that
            is there; nothing is written.
    """
    store, resolved = run.opened(run_name, results)
    outcome = run.tabulate(store, resolved, resolved.cells(), [])
    _refuse(run_name, resolved, outcome)
    new = rows_of(store, resolved, outcome)
    if not new:
        raise HarnessError(f"{run_name} has no values to add: score it first, `harness score {run_name}`")
    folder = own or OWN
    fresh = board.add(folder, new, [other for other in boards(own) if other.resolve() != folder.resolve()])
    made = {(record["model"], record["method"], record["prompts"]) for record in outcome.records}
    notes = [
        f"{cell.method} ({cell.model} on {cell.prompts}): not added: it has no images"
        for cell in resolved.cells() if (cell.model, cell.method, cell.prompts) not in made
    ]
    for record in outcome.records:
        place = f"{record['method']} by {record['metric']} ({record['model']} on {record['prompts']})"
        if record["group"] is None and record["value"] is None:
            notes.append(f"{place}: not added: {record['reason']}")
        elif record["group"] is None and record["failed"]:
            images = f"{record['failed']} image{'s' * (record['failed'] > 1)}"
            notes.append(f"{place}: {images} without a value: {record['reason']}")
    notes += [f"{row.text}: marked, as the method chooses by this metric itself" for row in fresh if row.judge]
    return Added(folder, fresh, len(new) - len(fresh), notes)


def beside(outcome: run.Outcome, own: Path | None = None) -> tuple[Arranged, list[str]]:
    """A run's values among the leaderboard's rows of the same models, prompts, seeds and metrics; and why the other
    rows of these prompts and models are left out. No rows where nothing was scored and the outcome's failures say why.

    Raises:
        HarnessError: nothing was scored, though nothing failed.
    """
    assert outcome.resolved is not None
    mine = rows_of(Store(outcome.root), outcome.resolved, outcome)
    if not mine:
        nothing = "nothing was scored, so there is nothing to set beside the leaderboard"
        if outcome.failures:
            return board.arrange([]), [nothing]
        raise HarnessError("\n".join([nothing, *dict.fromkeys(
            f"  {r['method']} by {r['metric']}: {r['reason']}" for r in outcome.records if r["reason"]
        )]))
    same = {row.key: row for row in mine}
    notes: list[str] = []
    kept: list[Row] = []
    others: dict[str, list[Row]] = {}
    for row in rows(own):
        near = [other for other in mine if (other.model, other.prompts.set) == (row.model, row.prompts.set)]
        if not near or (row.key in same and row.agrees(same[row.key])):
            continue
        if row.key in same:
            notes.append(f"the leaderboard says something else: {board.clash(row, same[row.key])}")
        reasons = [_unlike(row, other) for other in near if other.metric == row.metric] or ["another metric"]
        if "" in reasons:
            kept.append(row)
        else:
            others.setdefault(reasons[0], []).append(row)
    notes += [f"{len(some)} row{'s' * (len(some) > 1)} left out: {reason}" for reason, some in others.items()]
    if any(not record["trained"] for record in outcome.records):
        notes.insert(0, "random weights: the numbers of this run say nothing about a trained model")
    return board.arrange([row.model_copy(update={"method": f"{row.method} (this run)"}) for row in mine] + kept), notes


def _unlike(row: Row, mine: Row) -> str:
    """Why a row of the leaderboard cannot stand beside one of a run; "" where it can."""
    if row.provenance is None or mine.provenance is None:
        return "published numbers, whose prompts and seeds are not known"
    if row.prompts.selection != mine.prompts.selection:
        if row.prompts.n != mine.prompts.n:
            return f"other prompts of {row.prompts.set}: {row.prompts.n}, here {mine.prompts.n}"
        return f"other prompts of {row.prompts.set}, though as many ({row.prompts.n})"
    if (row.seeds, row.seeding) != (mine.seeds, mine.seeding):
        return f"other seeds: {_seeds(row)}, here {_seeds(mine)}"
    if row.provenance.model != mine.provenance.model:
        return f"another model under the name {row.model!r}"
    if row.metric_digest != mine.metric_digest:
        return f"{row.metric} of another digest ({str(row.metric_digest)[:8]}, here {str(mine.metric_digest)[:8]})"
    return ""


def _seeds(row: Row) -> str:
    return ", ".join(map(str, row.seeds or ())) + ("" if row.seeding == "identity" else f" ({row.seeding})")


def _refuse(run_name: str, resolved: Resolved, outcome: run.Outcome) -> None:
    """Refuses a run that is no result: random weights, some images of a cell still to be made."""
    problems = []
    random = dict.fromkeys(r["model"] for r in outcome.records if not r["trained"])
    if random:
        problems.append(f"{', '.join(random)}: random weights (trained: false), of which no number says anything")
    made = outcome.rows.groupby(["model", "method", "prompts"]).size()
    for cell in resolved.cells():
        there = int(made.get((cell.model, cell.method, cell.prompts), 0))
        if 0 < there < len(cell):
            problems.append(f"{cell.method} ({cell.model} on {cell.prompts}): {there} of {len(cell)} images are made")
    if problems:
        raise HarnessError(f"{run_name} cannot be added to the leaderboard:\n" + "\n".join(f"  {p}" for p in problems))


def selection(prompts: PromptSet) -> str:
    """The digest of which prompts these are: their ids and texts, the classes that they give and the SHA-256 of their
    pictures, in any order."""
    return digest(sorted([prompt.id, prompt.text, *_beside_text(prompt)] for prompt in prompts.prompts))


def _beside_text(prompt: Prompt) -> list[int | str]:
    """The class that a prompt gives; the SHA-256 of its picture and of its orbit's, "" for one that is not there."""
    given = [] if prompt.class_label is None else [prompt.class_label]
    own = [] if prompt.image is None else [prompt.image]
    return [*given, *(sha256_of(Path(path)) if Path(path).is_file() else "" for path in (*own, *orbit_of(prompt)))]


def rows_of(store: Store, resolved: Resolved, outcome: run.Outcome) -> list[Row]:
    """A run's overall values as rows."""
    identity = {label: digest(model.identity) for label, model in resolved.models.items()}
    methods = {label: digest(method.identity) for label, method in resolved.methods.items()}
    prompts = {label: (chosen, selection(chosen)) for label, chosen in resolved.prompts.items()}
    seeds = tuple(sorted(resolved.benchmark.seeds))
    whole = digest([
        identity, methods, {label: made for label, (_, made) in prompts.items()}, seeds, resolved.benchmark.seeding,
        {label: metric.digest for label, metric in resolved.metrics.items()},
    ])
    environment = store.read_environment()
    versions = {"harness": environment.get("harness", "")} | environment.get("packages", {})
    measured = store.read("images", columns=["sample_id", "device", "created"])
    measured = measured[measured["sample_id"].isin(outcome.rows["sample_id"])]
    found = []
    for record in outcome.records:
        if record["group"] is not None or record["value"] is None:
            continue
        if not record["n"]:
            raise HarnessError(f"{record['method']} by {record['metric']}: a value without n")
        place = (measured["model"] == record["model"]) & (measured["method"] == record["method"])
        mine = measured[place & (measured["prompts"] == record["prompts"])]
        chosen, made = prompts[record["prompts"]]
        found.append(Row(
            model=record["model"], method=record["method"],
            prompts=Prompts(set=chosen.id, n=len(chosen.prompts), selection=made),
            seeds=seeds, seeding=resolved.benchmark.seeding, metric=record["metric"],
            metric_digest=record["metric_digest"], higher_is_better=record["higher_is_better"],
            value=record["value"], low=record["low"], high=record["high"], n=record["n"],
            nfe=record["nfe"], flops=record["flops"], seconds=record["seconds"],
            judge=outcome.judges.get(record["method"]) == record["metric"],
            provenance=Provenance(
                run=whole, model=identity[record["model"]], method=methods[record["method"]], versions=versions,
                commit=environment.get("commit"), device=", ".join(sorted(set(mine["device"].dropna()))),
                date=mine["created"].max().date().isoformat(),
            ),
        ))
    return found
