"""The leaderboard's rows, files, table and page."""

import html.parser
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import files
from harness.analysis import leaderboard, leaderboard_page
from harness.analysis.leaderboard import Citation, Prompts, Provenance, Row
from harness.errors import HarnessError
from harness.files import StoreError

PROVENANCE = Provenance(run="a" * 64, model="b" * 64, method="c" * 64, versions={"torch": "2"}, commit="d" * 40,
                        device="cpu", date="2026-01-02")


def row(**change: Any) -> Row:
    known: dict[str, Any] = {
        "model": "sd", "method": "cfg", "prompts": Prompts(set="shapes", n=96, selection="e" * 64), "seeds": (0, 1),
        "metric": "geneval", "metric_digest": "f" * 64, "higher_is_better": True, "value": 0.5, "low": 0.4,
        "high": 0.6, "n": 192, "nfe": 40.0, "flops": 1e12, "seconds": 0.5, "provenance": PROVENANCE,
    }
    return Row(**known | change)


CITED = row(method="best", prompts=Prompts(set="shapes"), seeds=None, metric_digest=None, n=None, low=None, high=None,
            nfe=None, flops=None, seconds=None, value=0.9, provenance=None,
            citation=Citation(paper="A paper", table="table-1", source="page 3"))

# ---- rows and files ----

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(
    method=TEXTS, device=st.text(st.characters(exclude_categories=("Cs",)), max_size=20), value=FLOATS,
    seeds=st.lists(st.integers(0, 2**63), min_size=1, max_size=3).map(tuple), judge=st.booleans(),
    seconds=st.none() | st.floats(0, allow_infinity=False),
)
def test_a_row_survives_its_line(
    method: str, device: str, value: float, seeds: tuple[int, ...], judge: bool, seconds: float | None
) -> None:
    made = row(method=method, value=value, low=value, high=value, seeds=seeds, judge=judge, seconds=seconds,
               provenance=PROVENANCE.model_copy(update={"device": device}))
    line = made.line()
    assert "\n" not in line
    assert leaderboard.parse(line, "here") == made
    assert leaderboard.parse(line, "here").key == made.key


@settings(max_examples=30, deadline=None)
@given(methods=st.lists(TEXTS, unique=True, min_size=1, max_size=8), cut=st.integers(0, 8))
def test_a_board_does_not_depend_on_the_order_of_additions(
    tmp_path_factory: pytest.TempPathFactory, methods: list[str], cut: int
) -> None:
    rows = [row(method=method) for method in methods]
    files = []
    for parts in ((rows,), (rows[cut:], rows[:cut]), (rows, rows[:cut])):
        folder = tmp_path_factory.mktemp("board")
        added = [len(leaderboard.add(folder, part)) for part in parts]
        assert sum(added) == len(rows)
        assert sorted(leaderboard.read(folder).values(), key=lambda r: r.method) == sorted(rows, key=lambda r: r.method)
        files.append((folder / "shapes.jsonl").read_bytes())
    assert files[0] == files[1] == files[2]


def broken(**change: Any) -> str:
    """The line of a good row with keys replaced; None takes one away."""
    content = json.loads(row().line())
    for key, value in change.items():
        place, _, inner = key.partition("__")
        target = content[place] if inner else content
        if value is None:
            del target[inner or place]
        else:
            target[inner or place] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (broken(n=None), "n: a measured value needs it"),
        (broken(n=0), "n: Input should be greater than or equal to 1, got 0"),
        (broken(n="96"), "n: Input should be a valid integer, got '96'"),
        (broken(n=9.5), "n: Input should be a valid integer"),
        (broken(value=None), "value: this key is required"),
        (broken(value="high"), "value: Input should be a valid number, got 'high'"),
        (broken(value=float("nan")), "not JSON: NaN is no JSON value"),
        (broken(value=float("inf")), "not JSON: Infinity is no JSON value"),
        (broken(value=0.9), "value: 0.9 lies outside its interval"),
        (broken(low=None), "low: an interval has two ends"),
        (broken(valu=1), "valu: unknown key: did you mean 'value'"),
        (broken(metric_digest=None), "metric_digest: a measured value needs it"),
        (broken(metric_digest="xyz"), "metric_digest: String should match"),
        (broken(prompts__selection=None), "prompts.selection: a measured value needs it"),
        (broken(prompts__set=None), "prompts.set: this key is required"),
        (broken(provenance__run=None), "provenance.run: this key is required"),
        (broken(provenance__date="yesterday"), "provenance.date: String should match"),
        (broken(provenance=None), "provenance: expected 'provenance' or 'citation'"),
        (broken(seeds=[]), "seeds: Tuple should have at least 1 item"),
        (broken(seeds=[-1]), "seeds.0: Input should be greater than or equal to 0"),
        (broken(method=""), "method: String should have at least 1 character"),
        ('{"n": 1, "n": 2}', "not JSON: the key 'n' stands twice in one object"),
        ('{"n": 1,', "not JSON: "),
        ("[1]", "Input should be an object"),
        ("[" * 100_000, "shapes.jsonl, line 2: "),
    ],
)
def test_a_broken_row_is_told_with_file_line_and_column(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "shapes.jsonl").write_text(row(method="good").line() + "\n" + line + "\n")
    with pytest.raises(HarnessError, match=re.escape(str(tmp_path / "shapes.jsonl, line 2: "))) as told:
        leaderboard.read(tmp_path)
    assert expected in str(told.value)
    with pytest.raises(HarnessError):
        leaderboard.add(tmp_path, [row(method="new")])
    assert "new" not in (tmp_path / "shapes.jsonl").read_text()


def test_a_row_that_stands_twice_is_told_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row().line() + "\n")
    (tmp_path / "b.jsonl").write_text(row(method="x").line() + "\n\n" + row(value=0.41).line() + "\n")
    with pytest.raises(HarnessError, match=r"b\.jsonl, line 3: cfg by geneval .*a\.jsonl, line 1"):
        leaderboard.read(tmp_path)


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(HarnessError, match=r"a\.jsonl cannot be read"):
        leaderboard.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"value": 0.41}, {"n": 191}, {"provenance": PROVENANCE.model_copy(update={"method": "1" * 64})},
     {"provenance": PROVENANCE.model_copy(update={"model": "1" * 64})}],
)
def test_a_clash_is_shown_and_nothing_is_written(tmp_path: Path, change: dict[str, Any]) -> None:
    leaderboard.add(tmp_path, [row()])
    before = (tmp_path / "shapes.jsonl").read_bytes()
    with pytest.raises(HarnessError, match=r"cfg by geneval \(sd on shapes, 96 prompts × 2 seeds\): 0\.5 \(n = 192\)"):
        leaderboard.add(tmp_path, [row(method="new"), row(**change)])
    assert (tmp_path / "shapes.jsonl").read_bytes() == before


def test_measured_columns_may_differ_in_a_row_that_is_there(tmp_path: Path) -> None:
    leaderboard.add(tmp_path, [row()])
    before = (tmp_path / "shapes.jsonl").read_bytes()
    later = PROVENANCE.model_copy(update={"date": "2027-01-01", "device": "cuda", "versions": {}})
    assert leaderboard.add(tmp_path, [row(seconds=9.0, provenance=later)]) == []
    assert (tmp_path / "shapes.jsonl").read_bytes() == before


def test_rows_of_another_board_count_as_there(tmp_path: Path) -> None:
    leaderboard.add(tmp_path / "shipped", [row()])
    assert leaderboard.add(tmp_path / "own", [row()], [tmp_path / "shipped"]) == []
    assert leaderboard.read(tmp_path / "own") == {}
    with pytest.raises(HarnessError, match="other values"):
        leaderboard.add(tmp_path / "own", [row(value=0.45)], [tmp_path / "shipped"])


@pytest.mark.parametrize("name", ["../shapes", "a/b", ".hidden", ""])
def test_a_prompt_set_that_is_a_path_names_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises((HarnessError, ValueError)):
        leaderboard.add(tmp_path / "board", [row(prompts=Prompts(set=name, n=1, selection="e" * 64))])
    assert list(tmp_path.rglob("*.jsonl")) == []


def adding(folder: Path, methods: Sequence[str], killed: bool = False) -> multiprocessing.process.BaseProcess:
    """A process of its own that adds a row a method, one after the other."""

    def work() -> None:
        if killed:
            files.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        for method in methods:
            leaderboard.add(folder, [row(method=method)])

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_two_that_add_at_once_lose_no_row(tmp_path: Path) -> None:
    names = [[f"{who}{number}" for number in range(15)] for who in "ab"]
    processes = [adding(tmp_path, some) for some in names]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert {r.method for r in leaderboard.read(tmp_path).values()} == {*names[0], *names[1]}


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    leaderboard.add(tmp_path, [row()])
    before = (tmp_path / "shapes.jsonl").read_bytes()
    process = adding(tmp_path, ["new"], killed=True)
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))  # it had written beside
    assert (tmp_path / "shapes.jsonl").read_bytes() == before
    leaderboard.add(tmp_path, [row(method="next")])  # and its lock has gone with it
    assert len(leaderboard.read(tmp_path)) == 2


# ---- the table ----

BOARD = [
    row(method="a", value=0.5, nfe=40.0), row(method="b", value=0.6, low=None, high=None, nfe=20.0),
    row(method="c", value=0.4, nfe=240.0),
    row(method="b", metric="fd", higher_is_better=False, value=3.0, low=2.0, high=4.0, judge=True), CITED,
    row(method="a", model="xl", value=0.7, low=None, high=None),
]


def methods(**options: Any) -> list[str]:
    return [place[2] for place in leaderboard.arrange(BOARD, **options).places]


def test_rows_of_a_method_stand_together_and_blocks_in_order() -> None:
    arranged = leaderboard.arrange(BOARD)
    shown = "shapes, 96 prompts × 2 seeds"
    assert list(arranged.places) == [
        ("shapes", "sd", "best †"), (shown, "sd", "a"), (shown, "sd", "b"), (shown, "sd", "c"), (shown, "xl", "a"),
    ]
    assert set(arranged.places[shown, "sd", "b"]) == {"geneval", "fd"}
    assert sorted(r.line() for r in arranged.rows) == sorted(r.line() for r in BOARD)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sort": "geneval"}, ["best †", "b", "a", "c", "a"]),
        ({"sort": "fd"}, ["best †", "b", "a", "c", "a"]),
        ({"sort": "nfe"}, ["best †", "b", "a", "c", "a"]),
        ({"sort": "geneval", "top": 1}, ["best †", "b", "a"]),
    ],
)
def test_sorting_is_best_first_within_a_block(options: dict[str, Any], expected: list[str]) -> None:
    assert methods(**options) == expected


def test_what_cannot_be_sorted_by_is_told() -> None:
    with pytest.raises(HarnessError, match="did you mean 'geneval'"):
        methods(sort="genevl")
    with pytest.raises(HarnessError, match="--top needs --sort"):
        methods(top=2)


def test_values_of_two_digests_or_selections_never_share_a_column_or_a_row() -> None:
    other = row(metric_digest="0" * 64, value=0.45)
    assert set(leaderboard.arrange([row(), other]).metrics) == {"geneval (ffffff)", "geneval (000000)"}
    prompts = row(prompts=Prompts(set="shapes", n=96, selection="0" * 64))
    assert len(leaderboard.arrange([row(), prompts]).places) == 2


def of(kind: str) -> Provenance:
    """Another model or method."""
    return PROVENANCE.model_copy(update={kind: "1" * 64})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"prompts": Prompts(set="shapes", n=96, selection="0" * 64)}, ("shapes, 96 prompts × 2 seeds (2)", "sd")),
        ({"seeds": (0, 2)}, ("shapes, 96 prompts × 2 seeds (2)", "sd")),
        ({"seeding": "literal"}, ("shapes, 96 prompts × 2 seeds (2)", "sd")),
        ({"provenance": of("model")}, ("shapes, 96 prompts × 2 seeds", "sd (2)")),
    ],
)
def test_other_prompts_seeds_and_models_are_a_block_of_their_own(
    change: dict[str, Any], place: tuple[str, str]
) -> None:
    """Ranked, and cut by --top, apart from what shares no more than the label."""
    others = [row(method="c", value=0.59, **change), row(method="d", **change)]
    rows = [row(), row(method="b", value=0.41), *others]
    arranged = leaderboard.arrange(rows, sort="geneval", top=1)
    assert list(arranged.places) == [("shapes, 96 prompts × 2 seeds", "sd", "cfg"), (*place, "c")]
    board = leaderboard.lay_out(leaderboard.arrange(rows))
    best = [labels[2] for labels, cells in board.table.rows if cells[0].rank == 1]
    assert best == ["cfg", "c"]
    assert "(2) behind a label" in board.table.caption
    assert "(2)" not in leaderboard.lay_out(leaderboard.arrange(rows[:2])).table.caption


def test_values_of_two_methods_of_one_name_never_share_a_line() -> None:
    other = row(metric="fd", provenance=of("method"))
    assert [place[2] for place in leaderboard.arrange([row(), other]).places] == ["cfg", "cfg (2)"]
    third = row(metric="fid")
    assert [place[2] for place in leaderboard.arrange([row(), other, third]).places] == ["cfg", "cfg (2)"]


@pytest.mark.parametrize("kind", ["method", "model"])
def test_a_metric_of_something_else_under_a_line_s_labels_is_a_clash(tmp_path: Path, kind: str) -> None:
    leaderboard.add(tmp_path, [row()])
    before = (tmp_path / "shapes.jsonl").read_bytes()
    with pytest.raises(HarnessError, match=rf"cfg by fd .*its line has geneval; .*2026-01-02, where {kind} .* another"):
        leaderboard.add(tmp_path, [row(metric="fd", provenance=of(kind))])
    assert (tmp_path / "shapes.jsonl").read_bytes() == before
    assert len(leaderboard.add(tmp_path, [row(metric="fd"), row(seeds=(7,), provenance=of(kind))])) == 2


def test_a_judge_is_marked_only_where_it_is_this_row_s() -> None:
    rows = [row(judge=True), row(metric="fd"), row(model="xl"), row(model="xl", metric="fd", judge=True)]
    board = leaderboard.lay_out(leaderboard.arrange(rows))
    marks = {labels[1]: [[board.table.notes[mark] for mark in cell.marks] for cell in cells[:2]]
             for labels, cells in board.table.rows}
    said = [[f"cfg chooses by {metric} itself: no independent evidence there"] for metric in ("geneval", "fd")]
    assert marks == {"sd": [said[0], []], "xl": [[], said[1]]}


def test_a_lock_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*--board"):
        leaderboard.add(tmp_path, [row()])


def test_filters_match_whole_labels_and_stars() -> None:
    assert len(leaderboard.select(BOARD, model="sd", method=None)) == 5
    assert [r.model for r in leaderboard.select(BOARD, model="x*")] == ["xl"]
    with pytest.raises(HarnessError, match=r"--metric genval: .*did you mean 'geneval'"):
        leaderboard.select(BOARD, metric="genval")


def test_the_table_marks_citations_judges_and_the_best() -> None:
    board = leaderboard.lay_out(leaderboard.arrange(BOARD), ci=True)
    texts = {labels[2]: [cell.text for cell in cells] for labels, cells in board.table.rows if labels[1] == "sd"}
    assert texts["a"] == ["0.500 [0.400, 0.600]", "–", "192", "40", "0.500"]
    assert texts["best †"] == ["0.900", "–", "–", "–", "–"]
    assert board.cited == {0}
    (best,) = [labels[2] for labels, cells in board.table.rows[1:4] if cells[0].rank == 1]
    assert best == "b"
    notes = " ".join(board.table.notes)
    assert "published: A paper, table-1" in notes
    assert "b chooses by fd itself" in notes


# ---- the page ----

SCRIPT = "<script>alert(1)</script>"
NASTY = [*BOARD, row(method=SCRIPT, model='"><img src=x onerror=alert(1)>'), row(metric="{{ 7 * 7 }}</td>", method="'")]


class Reader(html.parser.HTMLParser):
    """What stands in a page: tags with their attributes, and the texts of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts, self.rows = "", list[list[str]]()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.scripts += data
        elif self.rows and {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page() -> str:
    return leaderboard_page.page(leaderboard.lay_out(leaderboard.arrange(NASTY), sources=True))


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(page: str) -> None:
    read = Reader(page)
    tags = [tag for tag, _ in read.tags]
    assert tags.count("script") == tags.count("style") == 1
    assert not {"img", "link", "iframe", "object", "embed"} & {*tags}
    for _, attributes in read.tags:
        assert not {name for name in attributes if name.startswith("on")} | ({"src", "href"} & {*attributes})
    assert "http" not in page.replace("http-equiv", "")
    assert "alert" not in read.scripts
    assert any(SCRIPT in cells for cells in read.rows)
    assert "{{ 7 * 7 }}</td> ↑" in [head.strip() for head in read.rows[0]]


def test_every_head_is_a_button_that_says_how_it_sorts(page: str) -> None:
    read = Reader(page)
    heads = [attributes for tag, attributes in read.tags if tag == "th" and attributes.get("scope") == "col"]
    buttons = [attributes for tag, attributes in read.tags if tag == "button"]
    assert len(heads) == len(buttons) == len(read.rows[0])
    assert {head["aria-sort"] for head in heads} == {"none"}
    first = {name.strip(): b["data-first"] for name, b in zip(read.rows[0], buttons, strict=True)}
    assert (first["geneval ↑"], first["fd ↓"], first["method"]) == ("descending", "ascending", "ascending")
    assert len(read.rows) == 1 + len(leaderboard.arrange(NASTY).places)
    assert all(len(cells) == len(heads) for cells in read.rows)
    classes = [attributes.get("class") for tag, attributes in read.tags if tag == "tr"]
    assert classes.count("cited") == 1


def test_intervals_and_sources_stand_on_the_page(page: str) -> None:
    cells = next(cells for cells in Reader(page).rows if cells[1:3] == ["sd", "a"])
    assert "0.500[0.400, 0.600]" in cells
    assert cells[-1] == "run aaaaaaaa, cpu, 2026-01-02, commit dddddddd"


DOM = """
const made = [["b", "2"], ["a", ""], ["c", "10"], ["d", "-1"]].map(([name, value]) => ({
  hidden: false, textContent: name + " " + value,
  cells: [name, value].map((text) => ({dataset: {value: text}, hidden: false})),
}));
const tbody = {rows: made, append(...rows) { this.rows = rows; }};
const ths = ["ascending", "descending"].map((first) => {
  const button = {dataset: {first}, addEventListener(_, f) { this.click = f; }};
  return {hidden: false, sort: "none", querySelector: () => button, getAttribute() { return this.sort; },
          setAttribute(_, value) { this.sort = value; }, button};
});
const field = {value: "", addEventListener(_, f) { this.input = f; }}, line = {};
globalThis.document = {
  querySelector: (what) => ({tbody, "#filter": field, "#count": line})[what], querySelectorAll: () => ths,
};
"""
STEPS = """
const seen = () => tbody.rows.filter((row) => !row.hidden).map((row) => row.cells[0].dataset.value).join("");
const out = [line.textContent];
for (const column of [1, 1, 0, 0]) { ths[column].button.click(); out.push(seen(), ths.map((th) => th.sort).join()); }
for (const text of ["A", "b  2", "nothing", ""]) {
  field.value = text; field.input(); out.push(seen(), line.textContent, ths[1].hidden);
}
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on this machine")
def test_the_script_sorts_and_filters(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.js").write_text(DOM + Reader(page).scripts + STEPS)
    done = subprocess.run(["node", str(tmp_path / "page.js")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "4 of 4 rows",
        "cbda", "none,descending", "dbca", "none,ascending",  # the empty one last in both
        "abcd", "ascending,none", "dcba", "descending,none",
        "a", "1 of 4 rows", True, "b", "1 of 4 rows", False, "", "0 of 4 rows", False, "dcba", "4 of 4 rows", False,
    ]
