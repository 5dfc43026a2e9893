"""The leaderboard from real runs: what is added, what is refused, and a user's own method beside it."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness import benchmark as benchmarks
from harness import leaderboard, own_method, run
from harness.analysis import leaderboard as board
from harness.analysis import published
from harness.display import Display
from harness.errors import HarnessError
from harness.resolve import resolve
from harness.run import table
from tests.command import harness
from tests.small import small_benchmark, small_folder, small_run

BEST = {"best": {"noise": {"best_of_n": {"candidates": 2}}, "judge": "small_plugins:Brightness"}}
FEW = {"things": {"set": "things", "path": "prompts.txt", "first": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run `base`, with a method that chooses by a metric, and a board to which it was added."""
    before = list(sys.path)
    made = small_folder(tmp_path_factory.mktemp("leaderboard"))
    small_run(made, "base", methods={"plain": {}, "cfg": {"guidance": {"cfg": {"scale": 3}}}} | BEST)
    add(made, "base")
    yield made
    sys.path[:] = before
    sys.modules.pop("small_plugins", None)


def add(folder: Path, name: str, to: str = "board") -> leaderboard.Added:
    return leaderboard.add(name, results=folder / "results", own=folder / to)


@pytest.fixture
def options(folder: Path) -> list[str]:
    return ["--board", str(folder / "board"), "--results", str(folder / "results")]


def rows(folder: Path, to: str = "board") -> list[board.Row]:
    return list(board.read(folder / to).values())


def test_a_run_s_values_are_added_with_all_that_they_need(folder: Path) -> None:
    records = json.loads((folder / "results" / "base" / "tables" / "records.json").read_text())
    wanted = {(r["method"], r["metric"]): r for r in records if r["group"] is None}
    found = {(row.method, row.metric): row for row in rows(folder)}
    assert set(found) == set(wanted)
    definitions = yaml.safe_load((folder / "results" / "base" / "benchmark.yaml").read_text())["definitions"]
    from harness.identity import digest

    for key, row in found.items():
        record = wanted[key]
        for name in ("value", "low", "high", "n", "nfe", "flops", "seconds", "metric_digest", "higher_is_better"):
            assert getattr(row, name) == record[name]
        assert (row.prompts.set, row.prompts.n, row.seeds, row.n) == ("things", 6, (0, 1), 12)
        assert row.judge == (key == ("best", "brightness"))
        assert row.provenance is not None
        assert row.provenance.method == digest(definitions["methods"][row.method])
        assert row.provenance.model == digest(definitions["models"]["sd"])
        assert row.provenance.device == "cpu"
        assert {"harness", "torch", "diffusers"} <= set(row.provenance.versions)


def test_adding_again_changes_nothing(folder: Path) -> None:
    before = (folder / "board" / "things.jsonl").read_bytes()
    again = add(folder, "base")
    assert (again.rows, again.known) == ([], 6)
    assert "6 were there already" in again.text()
    assert (folder / "board" / "things.jsonl").read_bytes() == before


def test_the_judge_s_metric_is_flagged(folder: Path) -> None:
    added = add(folder, "base", to="fresh")
    assert [note for note in added.notes if "marked" in note] == [
        "best by brightness (sd on things, 6 prompts × 2 seeds): marked, as the method chooses by this metric itself"
    ]


def test_another_method_under_a_label_of_the_board_is_refused(folder: Path) -> None:
    small_run(folder, "clash", methods={"cfg": {"guidance": {"cfg": {"scale": 4}}}, "new": {}}, tables=[])
    before = (folder / "board" / "things.jsonl").read_bytes()
    with pytest.raises(HarnessError, match=r"cfg by brightness(.|\n)*where method 'cfg' was another"):
        add(folder, "clash")
    assert (folder / "board" / "things.jsonl").read_bytes() == before


def test_random_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "sd", tmp_path / "random")
    index = tmp_path / "random" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"trained": False}))
    model = {"sd": {"family": "stable_diffusion", "weights": str(tmp_path / "random")}}
    small_run(folder, "random", models=model, methods={"plain": {}}, prompts=FEW, seeds=[0], tables=[])
    with pytest.raises(HarnessError, match=r"sd: random weights \(trained: false\)"):
        add(folder, "random", to="refused")
    assert not (folder / "refused").exists()


def test_a_run_that_is_not_whole_is_refused(folder: Path) -> None:
    small_run(folder, "part", methods={"plain": {}}, tables=[], models={
        "sd": {"family": "stable_diffusion", "weights": str(folder / "sd"), "batch": 1, "size": 64}},
        prompts={"things": {"set": "things", "path": "prompts.txt", "first": 2}})
    next((folder / "results" / "part").glob("images/sd/plain/things/1-*.parquet")).unlink()
    with pytest.raises(HarnessError, match=r"plain \(sd on things\): 2 of 4 images are made"):
        add(folder, "part", to="other")


def test_rows_without_a_value_are_told(folder: Path) -> None:
    small_run(folder, "holes", methods={"plain": {}}, tables=[], metrics=["small_plugins:Brightness"], seeds=[0])
    part = next((folder / "results" / "holes").glob("scores/brightness/sd/plain/things/*.parquet"))
    scores = pd.read_parquet(part)
    scores.loc[0, ["value", "error"]] = [None, "the metric stumbled"]
    import pyarrow as pa

    from harness.parquet import SCORES, serialised
    part.write_bytes(serialised(pa.Table.from_pandas(scores, SCORES, preserve_index=False)))
    added = add(folder, "holes", to="holes")
    assert [row.n for row in added.rows] == [5]
    assert added.notes == ["plain by brightness (sd on things): 1 image without a value: the metric stumbled"]

    scores["value"], scores["error"] = None, "the metric stumbled"
    part.write_bytes(serialised(pa.Table.from_pandas(scores, SCORES, preserve_index=False)))
    with pytest.raises(HarnessError, match="holes has no values to add"):
        add(folder, "holes", to="nothing")
    assert not (folder / "nothing").exists()


def test_a_method_without_any_image_is_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "results" / "base", tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "images" / "sd" / "plain")
    added = leaderboard.add("base", results=tmp_path, own=tmp_path / "board")
    assert {"cfg", "best"} <= {row.method for row in added.rows} <= {"cfg", "best", "Mine"}
    assert added.notes[0] == "plain (sd on things): not added: it has no images"


def test_a_value_without_n_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_n(*given: object) -> run.Outcome:
        outcome = real(*given)  # type: ignore[arg-type]
        outcome.records[0]["n"] = 0
        return outcome

    real = run.tabulate
    monkeypatch.setattr(run, "tabulate", without_n)
    with pytest.raises(HarnessError, match="plain by brightness: a value without n"):
        add(folder, "base", to="other")


# ---- the command ----


def test_the_command_prints_filters_and_writes_a_page(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = harness(capsys, "leaderboard", *options, "--prompts", "things", "--sort", "shift", "--ci")
    assert code == 0
    assert "best chooses by brightness itself" in out
    assert all(method in out for method in ("plain", "cfg", "best"))
    shown = json.loads(harness(capsys, "leaderboard", *options, "--method", "c*g", "--model", "sd", "--json")[1])
    assert [(row["method"], row["metric"]) for row in shown] == [("cfg", "brightness"), ("cfg", "shift")]
    code, out, err = harness(capsys, "leaderboard", *options, "--method", "cgf")
    assert (code, "did you mean 'cfg'" in err) == (2, True)
    place = folder / "page.html"
    assert harness(capsys, "leaderboard", *options, "--prompts", "things", "--html", str(place))[0] == 0
    assert "<td" in place.read_text()
    code, out, _ = harness(capsys, "leaderboard", "--add", "base", *options)
    assert (code, "6 were there already" in out) == (0, True)


def test_published_numbers_are_mixed_in_at_our_scale(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--published", "--model", "sdxl-turbo", "--prompts", "drawbench"]
    out = harness(capsys, "leaderboard", *options, *arguments)[1]
    assert "stable †" in out
    assert "published: Not All Noises Are Created Equally" in out
    found = json.loads(harness(capsys, "leaderboard", *options, *arguments, "--json")[1])
    printed = published.rows("noise-selection-table1").set_index(["method", "prompts", "metric"])
    cited = [row for row in found if row["citation"]["table"] == "noise-selection-table1"]
    assert cited
    for row in cited:
        line = printed.loc[(row["method"], "drawbench", row["metric"])]
        assert row["value"] * line["scale"] == pytest.approx(line["value"])
        assert "n" not in row


def test_a_misprint_is_told_in_the_table_and_on_the_page(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    printed = published.rows("noiserefine-table1")
    (wrong,) = printed[printed["note"].str.contains("misprint") & (printed["method"] == "guided")].to_dict("records")
    arguments = [*options, "--published", "--model", wrong["model"], "--prompts", wrong["prompts"]]
    out = harness(capsys, "leaderboard", *arguments, "--metric", wrong["metric"])[1]
    assert "misprint: below the refined row" in " ".join(out.split())
    assert harness(capsys, "leaderboard", *arguments, "--html", str(tmp_path / "page.html"))[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("misprint: below the refined row") == 1


# ---- a method of one's own ----


def test_a_new_method_is_run_alone_and_stands_beside_the_board(
    folder: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = (folder / "small_plugins.py").read_text().replace("class Shrink", "class Mine")
    (elsewhere / "mine_of_this_test.py").write_text(text)
    method = f'{elsewhere / "mine_of_this_test.py"}:Mine{{"strength": 0.5}}'
    command = ["run", str(folder / "base.yaml"), "--workers", "0", "--method", method, "--against", "leaderboard"]
    code, out, err = harness(capsys, *command, *options)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    shown = {line[0]: line for line in lines if line and line[0] in ("Mine", "plain", "cfg", "best")}
    assert set(shown) == {"Mine", "plain", "cfg", "best"}
    assert shown["Mine"][1:3] == ["(this", "run)"]
    images = sorted((folder / "results" / "base").glob("images/sd/*"))
    assert [path.name for path in images] == ["Mine", "best", "cfg", "plain"]
    kept = yaml.safe_load((folder / "results" / "base" / "benchmark.yaml").read_text())
    assert kept["methods"]["Mine"]["noise"] == {"mine_of_this_test:Mine": {"strength": 0.5}}
    assert kept["methods"]["Mine"]["guidance"] == {"cfg": {"scale": 3}}  # the baseline's
    sys.path.remove(str(elsewhere))
    sys.modules.pop("mine_of_this_test")
    code, out, _ = harness(capsys, "table", "base", "--results", str(folder / "results"))  # finds the file again
    assert (code, "Mine" in out) == (0, True)


def test_a_narrow_run_in_a_wide_folder_has_rows_of_its_own_plan(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "results" / "base", tmp_path / "base")
    with Display(quiet=True) as display:
        outcome = run.run(str(folder / "base.yaml"), results=tmp_path, display=display, workers=0, limit=2,
                          method="small_plugins:Shrink")
    arranged, notes = leaderboard.beside(outcome, folder / "board")
    assert {(row.method, row.n, row.prompts.n, row.seeds) for row in arranged.rows} == {
        ("Shrink (this run)", 2, 2, (0,))
    }
    assert notes == [f"{len(rows(folder))} rows left out: other prompts of things: 6, here 2"]


def test_failures_are_shown_where_nothing_was_scored(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = table("base", results=folder / "results")
    records = [record | {"value": None, "reason": "no weights"} for record in outcome.records]
    nothing = replace(outcome, records=records)
    with pytest.raises(HarnessError, match=r"nothing was scored(.|\n)*plain by brightness: no weights"):
        leaderboard.beside(nothing, folder / "board")
    monkeypatch.setattr(run, "run", lambda *_, **__: replace(nothing, failures=["generate sd/plain: it stumbled"]))
    code, out, err = harness(capsys, "run", "base", "--against", "leaderboard", *options)
    assert (code, out) == (1, "nothing was scored, so there is nothing to set beside the leaderboard\n")
    assert "generate sd/plain: it stumbled" in err


def test_a_row_of_the_board_that_says_something_else_is_shown_and_told(folder: Path, tmp_path: Path) -> None:
    found = {(row.method, row.metric): row for row in rows(folder)}
    plain = found["plain", "brightness"]
    other = plain.model_copy(update={"value": plain.value + 1, "low": None, "high": None})
    board.add(tmp_path, [other, found["cfg", "brightness"]])
    arranged, notes = leaderboard.beside(table("base", results=folder / "results"), tmp_path)
    shown = {place[2]: columns for place, columns in arranged.places.items()}
    assert {method for method in shown if "this run" not in method} == {"plain"}  # cfg agrees: it stands there once
    assert {"plain (this run)", "cfg (this run)", "best (this run)"} <= set(shown)
    assert shown["plain"]["brightness"].value == plain.value + 1
    assert shown["plain (this run)"]["brightness"].value == plain.value
    assert len(notes) == 1
    assert notes[0].startswith("the leaderboard says something else: plain by brightness (sd on things")


@pytest.mark.parametrize(
    ("command", "both"),
    [
        ("run base --against leaderboard --json", ("--against", "--json")),
        ("run base --board here", ("--board", "--against")),
        ("leaderboard --html page.html --json", ("--html", "--json")),
        ("leaderboard --add base --json", ("--add", "--json")),
        ("leaderboard --add base --html page.html", ("--add", "--html")),
        ("leaderboard --add base --published", ("--add", "--published")),
        ("leaderboard --add base --metric hpsv2", ("--add", "--metric")),
        ("leaderboard --add base --top 3", ("--add", "--top")),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    command: str, both: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = harness(capsys, *command.split())
    assert (code, out) == (2, "")
    assert all(option in err for option in both)
    assert list(tmp_path.iterdir()) == []


FOREIGN = board.Prompts(set="things", n=6, selection="0" * 64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metric_digest": "0" * 64}, "brightness of another digest (00000000, here "),
        ({"prompts": FOREIGN.model_copy(update={"n": 7})}, "other prompts of things: 7, here 6"),
        ({"prompts": FOREIGN}, "other prompts of things, though as many (6)"),
        ({"seeds": (0,)}, "other seeds: 0, here 0, 1"),
        ({"seeding": "literal"}, "other seeds: 0, 1 (literal), here 0, 1"),
        ({"model": "another"}, "another model under the name 'sd'"),
        ({"metric": "shine"}, "another metric"),
        ({}, ""),
    ],
)
def test_rows_that_cannot_stand_beside_it_are_left_out_with_the_reason(
    folder: Path, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    row = next(row for row in rows(folder) if (row.method, row.metric) == ("plain", "brightness"))
    if "model" in change:
        change = {"provenance": row.provenance.model_copy(update={"model": "0" * 64})}  # type: ignore[union-attr]
    board.add(tmp_path, [row.model_copy(update={"method": "theirs"} | change)])
    arranged, notes = leaderboard.beside(table("base", results=folder / "results"), tmp_path)
    shown = [place[2] for place in arranged.places]
    assert {"plain (this run)", "cfg (this run)", "best (this run)"} <= {*shown}
    assert ("theirs" in shown) == (reason == "")
    assert notes == [] if reason == "" else notes[0].startswith(f"1 row left out: {reason}")


@pytest.fixture
def small(folder: Path) -> benchmarks.Benchmark:
    return benchmarks.load(small_benchmark(folder, "small"))


def test_a_guidance_of_one_s_own_takes_the_sampler_of_the_baseline(
    folder: Path, small: benchmarks.Benchmark
) -> None:
    grown, label, folders = own_method.add(small, f"{folder}/small_plugins.py:Strong{{scale: 2}}")
    assert (label, folders) == ("Strong", (str(folder),))
    assert grown.methods["Strong"].guidance == {"small_plugins:Strong": {"scale": 2}}
    assert list(grown.methods) == ["plain", "cfg", "Strong"]
    again, label, folders = own_method.add(small, "small_plugins:Strong")
    assert (again.methods["Strong"].guidance, folders) == ({"small_plugins:Strong": {}}, ())


def test_a_baseline_of_each_method_s_own_gives_the_first_s_guidance(folder: Path) -> None:
    path = small_benchmark(folder, "own", tables=[{"baseline": {"plain": "cfg"}}])
    grown, label, _ = own_method.add(benchmarks.load(path), "small_plugins:Shrink")
    assert grown.methods[label].guidance == {"cfg": {"scale": 3}}


def test_a_stage_that_needs_a_judge_takes_that_of_the_first_method_with_one(
    folder: Path, small: benchmarks.Benchmark
) -> None:
    text = "harness.noise.best_of_n:BestOfN{candidates: 2}"
    with pytest.raises(HarnessError, match="needs a judge, and no method of the benchmark has one: name it in the "):
        own_method.add(small, text)
    judge = "small_plugins:Brightness"
    path = small_benchmark(folder, "judged", methods={
        "cfg": {"guidance": {"cfg": {"scale": 3}}}, "best": {"noise": {"best_of_n": {"candidates": 3}}, "judge": judge},
    })
    grown, label, folders = own_method.add(benchmarks.load(path), text)
    assert (label, grown.methods[label].judge) == ("BestOfN", judge)
    resolve(grown, path, folders)
    grown, label, _ = own_method.add(benchmarks.load(path), "small_plugins:Shrink")
    assert grown.methods[label].judge is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("small_plugins", "expected FILE.py:NAME"),
        ("nowhere.py:Mine", "no file nowhere.py"),
        ("small_plugins:Nothing", "cannot be loaded"),
        ("small_plugins:Neither", "expected a dataclass"),
        ("small_plugins:Brightness", "neither a noise stage .* nor a guidance"),
        ("small_plugins:Shrink{strength", "expected FILE.py:NAME"),
        ("small_plugins:Shrink{[}", "not JSON"),
    ],
)
def test_what_is_no_method_is_told(small: benchmarks.Benchmark, text: str, expected: str) -> None:
    with pytest.raises(HarnessError, match=expected):
        own_method.add(small, text)


def test_a_label_of_the_benchmark_or_a_module_s_name_is_not_taken(
    small: benchmarks.Benchmark, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("class JSONDecoder:\n    pass\n")
    with pytest.raises(HarnessError, match="a module of this name is"):
        own_method.add(small, f"{tmp_path}/json.py:JSONDecoder")
    (tmp_path / "two words.py").write_text("")
    with pytest.raises(HarnessError, match="cannot be imported"):
        own_method.add(small, f"{tmp_path}/two words.py:Mine")
    with pytest.raises(HarnessError, match="the benchmark has a method 'cfg'"):
        own_method.add(small, "small_plugins:cfg")
