"""The command line: parses and prints, decides nothing.

Exit codes: 0 done; 1 some shards or metrics failed; 2 the request itself was wrong; 130 interrupted.
"""

import json
import logging
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from harness.display import Display, Steps
from harness.errors import HarnessError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Benchmarks the initial noise and the guidance of diffusion models.",
)

Results = Annotated[Path, typer.Option(help="Where run folders lie, each named after its benchmark.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster to join, host:port.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Workers to start; 0 runs in this process without Ray.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ci = Annotated[bool, typer.Option("--ci", help="Show 95 % intervals (prompts resampled).")]
Board = Annotated[
    Path | None, typer.Option(help="The folder of your own leaderboard rows; default results/leaderboard.")
]
DEFAULT_RESULTS = Path("results/runs")


class Format(StrEnum):
    """What a table is printed as."""

    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


class Cost(StrEnum):
    """What a method's quality is set against."""

    NFE = "nfe"
    FLOPS = "flops"
    SECONDS = "seconds"


class Kind(StrEnum):
    """What `harness list` knows."""

    MODELS = "models"
    METHODS = "methods"
    METRICS = "metrics"
    PROMPTS = "prompts"
    BENCHMARKS = "benchmarks"


class Against(StrEnum):
    """What a run is printed beside."""

    LEADERBOARD = "leaderboard"


@app.command()
def run(
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name or the path of its YAML file.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts of each set, one seed.")] = None,
    workers: Workers = None,
    address: Address = None,
    as_name: Annotated[str | None, typer.Option("--as", help="Name the run folder differently.")] = None,
    replace: Annotated[
        list[str] | None, typer.Option(help="Throw away what this label made before, then run it anew.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="Take another file for this label of the prompts than its set names.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Run this noise stage or guidance of yours alone: 'FILE.py:NAME{PARAMETERS}'.")
    ] = None,
    against: Annotated[Against | None, typer.Option(help="Print the results among the leaderboard's rows.")] = None,
    board: Board = None,
    ci: Ci = False,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Plan, generate, score and tabulate a benchmark. The same command resumes it.

    harness run shapes

    harness run shapes --method mine.py:Mine --against leaderboard
    """
    from harness import run as runner

    if board is not None and against is None:
        raise HarnessError("--board belongs to --against: add --against leaderboard")
    if against is not None:
        _apart("--against", {"--json": as_json})
    with Display() as display:
        outcome = runner.run(
            benchmark, results=results, display=display, limit=limit, workers=workers, address=address,
            as_name=as_name, replace=tuple(replace or ()), accept=tuple(accept or ()), method=method,
        )
    if as_json:
        typer.echo(outcome.render("json"))
    elif against is None:
        outcome.print_tables(ci)
    else:
        from harness import leaderboard as boards
        from harness.analysis import leaderboard as rows
        from harness.analysis import tables

        arranged, notes = boards.beside(outcome, board)
        if arranged.rows:
            tables.show_tables([rows.lay_out(arranged, ci=ci).table])
        typer.echo("\n".join(notes))
    _finish(outcome.failures)


@app.command()
def score(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or its folder.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="A further metric: NAME, or 'NAME: {PARAMETER: VALUE}'.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    ci: Ci = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Score what a run has generated, again where a metric changed, or with more metrics."""
    from harness import run as runner

    with Display() as display:
        outcome = runner.score(
            run_name, results=results, display=display, metrics=tuple(metric or ()), workers=workers, address=address
        )
    outcome.print_tables(ci)
    _finish(outcome.failures)


@app.command()
def table(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or its folder.")],
    form: Annotated[Format | None, typer.Option("--format", help="Default: for reading on a terminal.")] = None,
    ci: Ci = False,
    groups: Annotated[bool, typer.Option(help="A table of the categories as well.")] = False,
    rows: Annotated[Path | None, typer.Option(help="Keep every score beside its sample in this .parquet.")] = None,
    pareto: Annotated[Cost | None, typer.Option(help="Instead: which methods nobody beats at their price.")] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="PARAMETER", help="Instead: each metric over scale, sigma_hi, steps, ...")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="--pareto, --sweep: only this metric (repeatable).")] = None,
    figure: Annotated[Path | None, typer.Option(help="--pareto, --sweep: draw it into this .png as well.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="--sweep: a grid of images into this .png, a row a value, a column a prompt.")
    ] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Print the tables of a run.

    harness table shapes --pareto nfe --figure front.png

    harness table shapes --sweep scale --figure scales.png
    """
    from harness import run as runner
    from harness.analysis import findings, tables

    if pareto is None and sweep is None and (metric or figure):
        raise HarnessError("--metric and --figure belong to --pareto (nfe, flops or seconds) and --sweep: add one")
    for option, given in (("--pareto", pareto), ("--sweep", sweep)):
        if given is not None and groups:
            raise HarnessError(f"--groups has no part in {option}, which is over all categories: leave one out")
    if pareto is not None:
        _apart("--pareto", {"--sweep": sweep})
    if images is not None and sweep is None:
        raise HarnessError("--images belongs to --sweep: add --sweep PARAMETER")
    outcome = runner.table(run_name, results=results)
    if rows is not None:
        findings.export(outcome, rows)
    if pareto is not None:
        if figure is not None:
            tables.draw_fronts(outcome, pareto.value, metric or (), figure)
        if form is None:
            tables.show_tables(tables.fronts(outcome, pareto.value, metric or ()))
        else:
            typer.echo(tables.render_fronts(outcome, pareto.value, metric or (), form.value))
    elif sweep is not None:
        if figure is not None:
            tables.draw_sweeps(outcome, sweep, metric or (), figure)
        if images is not None:
            from harness import sweep_images

            sweep_images.draw(outcome, sweep, images)
        if form is None:
            tables.show_tables(tables.sweeps(outcome, sweep, metric or ()))
        else:
            typer.echo(tables.render_sweeps(outcome, sweep, metric or (), form.value))
    elif form is None:
        outcome.print_tables(ci, groups)
    else:
        typer.echo(outcome.render(form.value, ci, groups))


@app.command()
def compare(
    sides: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Runs, methods as RUN/METHOD, or published:NAME[/METHOD].")
    ],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare the common pairs of what is not comparable, and say so.")
    ] = False,
    form: Annotated[Format | None, typer.Option("--format", help="Default: for reading on a terminal.")] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Compare runs or methods, paired by prompt and seed, with the first, or set them beside published numbers.

    harness compare shapes/cfg-3 shapes/best-of-6
    """
    from harness import compare as comparing
    from harness.analysis import tables

    found = comparing.compare(sides, results=results, anyway=anyway)
    if form is None:
        tables.show_tables([found.table()])
    else:
        typer.echo(found.render(form.value))


@app.command()
def leaderboard(
    add: Annotated[str | None, typer.Option(metavar="RUN", help="Add a run's values, by name or folder.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model; * stands for anything.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Only this prompt set.")] = None,
    metric: Annotated[str | None, typer.Option(help="Only this metric.")] = None,
    sort: Annotated[str | None, typer.Option(help="By a metric (best first), nfe, seconds or flops.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many of each model and prompts.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Mix in what papers published, marked.")] = False,
    page: Annotated[Path | None, typer.Option("--html", help="Write one self-contained page to this file.")] = None,
    ci: Ci = False,
    as_json: Json = False,
    board: Board = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Print the standing table of results, or add a run to it.

    harness leaderboard --prompts shapes --sort geneval-shapes

    harness leaderboard --add shapes
    """
    from harness import leaderboard as boards
    from harness.analysis import leaderboard as layout
    from harness.analysis import tables

    if page is not None:
        _apart("--html", {"--json": as_json})
    if add is not None:
        filters = {"--model": model, "--method": method, "--prompts": prompts, "--metric": metric, "--sort": sort}
        forms = {"--top": top, "--published": published, "--html": page, "--ci": ci, "--json": as_json}
        _apart("--add", {**filters, **forms})
        typer.echo(boards.add(add, results=results, own=board).text())
        return
    chosen = boards.shown(
        board, with_published=published, model=model, method=method, prompts=prompts, metric=metric, sort=sort, top=top
    )
    if page is not None:
        typer.echo(boards.write_page(chosen, page))
    elif as_json:
        typer.echo("[" + ",\n".join(row.line() for row in chosen.rows) + "]")
    else:
        tables.show_tables([layout.lay_out(chosen, ci=ci).table])


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Json = False,
) -> None:
    """List what this installation knows by name."""
    from harness import catalogue

    entries = catalogue.entries(kind.value, parameters=as_json)
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    typer.echo("\n".join(catalogue.lines(entries)))


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Metrics, weights, prompt sets, Hub ids of models, hub:ID of data."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash again what is here already.")] = False,
) -> None:
    """Get weights of metrics and models, and prompt sets; the same command resumes. Without a name: list them.

    harness fetch hpsv2.1 pickscore drawbench
    """
    from harness import fetch as fetcher

    if not names:
        typer.echo("\n".join(fetcher.listing()))
        return
    failures = []
    for text, failure in fetcher.fetch(names, verify):
        if failure is None:
            typer.echo(text)
        else:
            failures.append(str(failure))
    _finish(failures)


@app.command()
def check(
    benchmark: Annotated[str | None, typer.Argument(help="A benchmark's name or file; none: this machine.")] = None,
    throughput: Annotated[
        float | None, typer.Option(min=1e-9, help="Denoiser evaluations a second of one GPU; default: an assumption.")
    ] = None,
    as_json: Json = False,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Say what this machine has and lacks for a benchmark, and what the benchmark costs, before it is run."""
    from harness import check as checker

    report = checker.check(benchmark, throughput, results)
    typer.echo(json.dumps(report, indent=1) if as_json else checker.text(report))
    raise typer.Exit(1 if report["lacking"] else 0)


@app.command()
def reference(
    name: Annotated[str, typer.Argument(help="What to call it; a metric's parameter `statistics` takes this name.")],
    images: Annotated[Path, typer.Option(help="A folder of png, jpg or webp, Parquet, a run's cell, or an .npz.")],
    metric: Annotated[str, typer.Option(help="The metric whose extractor sees the images.")],
    size: Annotated[int | None, typer.Option(min=1, help="Centre crop to a square, resized to this side.")] = None,
    resample: Annotated[
        str, typer.Option(help="Pillow's filter for --size: bicubic, lanczos, bilinear or box.")
    ] = "bicubic",
    features: Annotated[
        bool, typer.Option("--features", help="Keep the features too: KID, precision/recall and CMMD need them.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Make it anew where it is there already.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Make reference statistics of images, with their preprocessing and hash inside.

    harness reference coco --images val2014 --size 256 --metric fid
    """
    from harness.make_reference import make_reference

    with Display() as display:
        path = make_reference(
            name, images, metric, size=size, resample=resample, keep_features=features, device=device,
            replace=replace, display=display,
        )
    typer.echo(path)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="What to train: shapes, shapes-edm2 or noise-refine.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the finished weights; default runs/NAME.")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="shapes, shapes-edm2: only this stage (in order, repeatable).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="shapes-edm2: steps of each network, in place of the recipe's.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="noise-refine: a recipe's name or the path of its YAML file.")] = "shapes",
    processes: Annotated[int | None, typer.Option(min=1, help="CPU processes of one thread each, or GPUs.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shipped: Annotated[
        bool, typer.Option("--continue", help="shapes: start from the shipped weights, not from none.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="shapes: measure the shipped weights; train nothing.")
    ] = False,
) -> None:
    """Train the embedded models from nothing, or the network of NoiseRefine; the same command resumes.

    harness train shapes

    harness train shapes-edm2 --steps 500 --out runs/try

    harness train noise-refine --recipe shapes --out runs/refiner
    """
    if name not in ("shapes", "shapes-edm2", "noise-refine"):
        raise HarnessError(f"nothing called {name!r} can be trained here; known: shapes, shapes-edm2, noise-refine")
    if steps is not None and name != "shapes-edm2":
        raise HarnessError("--steps belongs to 'harness train shapes-edm2'")
    folder = out or Path("runs") / name
    several = processes or (2 if device == "cpu" else 1)
    _devices(device, several)
    if name == "noise-refine":
        if stage or shipped or evaluate:
            raise HarnessError("--stage, --continue and --evaluate belong to 'harness train shapes'")
        _train_refiner(recipe, folder, several, device)
        return
    if device != "cpu" and several != 1 and not evaluate:
        raise HarnessError(f"--device {device} trains the shapes models in one process, not in {several}")
    if name == "shapes-edm2":
        if shipped or evaluate:
            raise HarnessError("--continue and --evaluate belong to 'harness train shapes'")
        _train_edm2(folder, stage, steps, several, device)
        return
    from harness.shapes import evaluate as measure
    from harness.shapes.train import STEPS
    from harness.shapes.train import train as train_shapes

    if evaluate:
        figures = {
            "held_out": measure.evaluate(seeds=(0, 1), progress=lambda line: typer.echo(line, err=True)),
            "seen": measure.evaluate(seeds=(0, 1), held_out=False, progress=lambda line: typer.echo(line, err=True)),
            "shapes_clip": measure.evaluate_clip(),
        }
        typer.echo(json.dumps(figures, indent=1))
        return
    chosen = _stages(stage, list(STEPS))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start = measure.WEIGHTS if shipped else None
    train_shapes(folder, stages=chosen, processes=several, device=device, continue_from=start)


def _train_edm2(folder: Path, stages: list[str] | None, steps: int | None, processes: int, device: str) -> None:
    from harness.shapes import train_edm2 as edm2

    chosen = _stages(stages, list(edm2.STEPS))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    few = dict.fromkeys(edm2.STEPS, steps) if steps is not None else None
    edm2.train(folder, stages=chosen, processes=processes, device=device, steps=few)


def _stages(wanted: list[str] | None, known: list[str]) -> list[str] | None:
    """The stages that --stage names."""
    for name in wanted or ():
        if name not in known:
            raise HarnessError(f"--stage {name}: no such stage; the stages are {', '.join(known)}")
    return wanted


def _devices(device: str, processes: int) -> None:
    """Refuses a device that is not here."""
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in ("cpu", "cuda"):
        raise HarnessError(f"--device {device}: expected cpu or cuda")
    if device == "cuda" and processes > here:
        gpus = f"{here or 'no'} GPU{'s' * (here > 1)}"
        raise HarnessError(f"--device cuda --processes {processes}: PyTorch finds {gpus} here")


def _train_refiner(recipe: str, folder: Path, processes: int, device: str) -> None:
    from harness.noise_refine import recipe as recipes
    from harness.noise_refine import train as refining

    chosen, here = recipes.load(recipe)
    with Display() as display:
        figures = refining.train(
            chosen, folder, here=here, processes=processes, device=device, display=display, progress=Steps()
        )
    typer.echo(json.dumps(figures, indent=1))


def _apart(option: str, others: Mapping[str, object]) -> None:
    """Refuses an option beside one of `others` that is given."""
    for name, value in others.items():
        if value not in (None, False):
            raise HarnessError(f"{option} cannot be given with {name}: give one of the two")


def _finish(failures: list[str]) -> None:
    """Leaves with 1 where something failed, said last so that nobody misses it."""
    if failures:
        shown = failures[:20] + ([f"... and {len(failures) - 20} more"] if len(failures) > 20 else [])
        typer.echo("\nFailed:\n" + "\n".join(f"  {line}" for line in shown), err=True)
        raise typer.Exit(1)


def main() -> None:
    """The `harness` command. A user's mistake is a message and exit code 2, never a traceback."""
    try:
        app()
    except HarnessError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
