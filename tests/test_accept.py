"""Another file than a prompt set names: what is told, what --accept records, and one's own files in a run."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import benchmark, prompts, run
from harness.analysis.figures import must_blur
from harness.benchmark import PromptSpec
from harness.display import Display
from harness.errors import HarnessError
from harness.store import Store
from tests.command import harness

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
OTHER = b"Prompts,Category,Note\na red circle,Colors,x\na blue square,Colors,y\n"
HASH = hashlib.sha256(OTHER).hexdigest()


def write(folder: Path, name: str = "some", **blocks: Any) -> str:
    """A benchmark of two steps with these prompts; its path."""
    content = {
        "name": name, "models": {"sd": {"family": "stable_diffusion", "weights": "builtin:shapes-sd", "batch": 2}},
        "prompts": blocks, "sampler": {"steps": 2}, "methods": {"plain": {}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def go(path: str, folder: Path, **options: Any) -> run.Outcome:
    with Display(quiet=True) as display:
        return run.run(path, results=folder / "results", display=display, workers=0, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another file than DrawBench's, taken with --accept, and of a list of one's own."""
    made = tmp_path_factory.mktemp("accept")
    (made / "drawbench.csv").write_bytes(OTHER)
    (made / "mine.txt").write_text("a green star\na red ring\n")
    path = write(made, draw={"set": "drawbench", "path": "drawbench.csv"}, mine="mine.txt",
                 nude={"set": "adult", "path": "mine.txt", "nsfw": True, "first": 1})
    assert go(path, made, accept=("draw",)).failures == []
    return made


def test_what_differs_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = harness(capsys, "run", str(folder / "some.yaml"), "--workers", "0")
    assert code == 2
    for line in (
        "prompts.draw: prompt set 'drawbench'",
        f"SHA-256: expected e120fd4d8aa8f6c44b0b3ee92d9dfb7463c67f5b2d427d23a2bf388f80a0c0c1, found {HASH}",
        f"bytes: expected 15,717, found {len(OTHER)}",
        "rows: expected 200, found 2",
        "columns: Prompts, Category are there, and beside them Note",
        "Colors 2 (expected 25)", "Reddit 0 (expected 38)",
        "--accept LABEL", f"accept: {HASH}",
    ):
        assert line in err, line


def test_the_accepted_hash_is_in_the_run(folder: Path) -> None:
    store = Store(folder / "results" / "some")
    kept = store.read_benchmark()
    assert kept is not None
    assert kept["prompts"]["draw"]["accept"] == [HASH]
    assert kept["definitions"]["prompts"]["draw"] == {
        "set": "drawbench", "files": {"drawbench.csv": HASH}, "nsfw": False,
    }
    mine = hashlib.sha256((folder / "mine.txt").read_bytes()).hexdigest()
    assert kept["definitions"]["prompts"]["mine"] == {"set": "mine", "files": {"mine.txt": mine}, "nsfw": False}
    assert len(store.read("images", prompts="draw")) == 2
    assert len(run.table("some", results=folder / "results").rows) == 5  # reads the prompts again, without --accept


def test_accept_says_what_to_write_for_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ("--workers", "0", "--results", str(folder / "results"))  # where all is made already
    code, _, err = harness(capsys, "run", str(folder / "some.yaml"), "--accept", "draw", *results)
    assert code == 0
    assert f"this line says the same:\n  accept: {HASH}\n" in err
    write(folder, "some2", draw={"set": "drawbench", "path": "drawbench.csv", "accept": HASH})
    found = prompts.load(PromptSpec(set="drawbench", path="drawbench.csv", accept=[HASH]), folder)
    assert [p.text for p in found.prompts] == ["a red circle", "a blue square"]
    code, _, err = harness(capsys, "run", str(folder / "some.yaml"), "--accept", "drew", *results)
    assert code == 2
    assert "did you mean 'draw'" in err


def test_a_changed_text_is_refused_and_a_longer_file_is_not(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path, mine = str(copy / "some.yaml"), copy / "mine.txt"
    mine.write_text("a green star\na red ring\na blue cross\n")
    assert len(go(path, copy, accept=("draw",)).rows) == 6
    kept = Store(copy / "results" / "some").read_benchmark()
    assert kept is not None
    now = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert kept["definitions"]["prompts"]["mine"]["files"] == {"mine.txt": now}
    mine.write_text("a green star\na red square\na blue cross\n")
    with pytest.raises(HarnessError, match=r"prompts\.mine: prompt '1' reads 'a red square' now, but 'a red ring'"):
        go(path, copy, accept=("draw",))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("drawbench", {"set": "drawbench"}),
        ("lists/mine.csv", {"set": "mine", "path": "lists/mine.csv"}),
        ({"set": "a.JSONL", "first": 2}, {"set": "a", "path": "a.JSONL", "first": 2}),
        ("folder/of.texts/", {"set": "of", "path": "folder/of.texts/"}),
        ("hub:a/b", {"set": "hub:a/b"}),
        ({"set": "drawbench", "accept": HASH}, {"set": "drawbench", "accept": [HASH]}),
    ],
)
def test_a_prompt_set_in_one_line(block: Any, expected: dict[str, Any]) -> None:
    assert PromptSpec.model_validate(block).model_dump(exclude_unset=True) == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"set": "a.csv", "path": "b.csv"}, "prompts.x: the file stands here twice: as set 'a.csv' and as path"),
        ("my list.csv", "prompts.x.set: 'my list' cannot name a prompt set"),
        ("hub:name", "prompts.x.set: expected hub:ORGANISATION/NAME, got 'hub:name'"),
        ({"set": "a.csv", "split": "test"}, "prompts.x: 'split' has no meaning for a file here"),
        ({"set": "hub:a/b", "accept": HASH}, "prompts.x: 'accept' has no meaning for a data set on the Hub"),
        ({"set": "a.csv", "columns": {"txt": "b"}}, "prompts.x: columns: no role 'txt': did you mean 'text'"),
        ({"set": "a.csv", "columns": {"id": "b"}}, "prompts.x: columns: say which column is the text"),
        ({"set": "a.csv", "accept": "abc"}, "prompts.x.accept.0: String should match pattern"),
        ({"set": "a.csv", "first": 1, "sample": 1}, "prompts.x: give 'first' or 'sample', not both"),
        ({"set": "a.csv", "colums": {}}, "prompts.x.colums: unknown key: did you mean 'columns'?"),
        (7, "prompts.x: Input should be"),
    ],
)
def test_what_a_prompts_block_may_not_say(block: Any, expected: str) -> None:
    models = {"m": {"family": "f", "weights": "w"}}
    content = {"name": "n", "models": models, "prompts": {"x": block}, "methods": {"a": {}}}
    with pytest.raises(HarnessError, match=re.escape(f"a.yaml: {expected}")):
        benchmark.parse(content, "a.yaml")


def test_a_moved_file_keeps_its_samples(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.txt").write_bytes((folder / "mine.txt").read_bytes())
    moved = prompts.load(PromptSpec.model_validate(str(tmp_path / "deep" / "mine.txt")), folder)
    assert moved.id == prompts.load(PromptSpec.model_validate("mine.txt"), folder).id == "mine"


def test_the_mark_lands_in_the_run_and_decides_what_is_blurred(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Store(folder / "results" / "some").read_benchmark()
    assert kept is not None
    assert [must_blur(kept, label) for label in ("draw", "mine", "nude")] == [False, False, True]
    del kept["definitions"]["prompts"]["mine"]["nsfw"]
    assert must_blur(kept, "mine")  # nothing is known of it
    path = write(folder, "blurs", nude={"set": "adult", "path": "mine.txt", "nsfw": True})
    assert "prompts   nude: 2 of set adult, NSFW: its images are blurred" in harness(capsys, "check", path)[1]
    report = json.loads(harness(capsys, "check", path, "--json")[1])
    assert [entry["nsfw"] for entry in report["prompts"]] == [True]


def test_two_texts_under_one_id_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "mine.txt").write_text("something else\n")
    (folder / "both.csv").write_text("en,de\na red ring,ein roter Ring\n")
    path = write(
        folder, "twice", one="mine.txt", two="sub/mine.txt", again={"set": "mine.txt", "first": 1},
        en={"set": "both.csv", "columns": {"text": "en"}}, de={"set": "both.csv", "columns": {"text": "de"}},
    )
    code, _, err = harness(capsys, "check", path)
    assert code == 2
    assert "prompts.two: prompt '0' of set 'mine' reads 'something else', in prompts.one 'a green star'" in err
    assert "prompts.de: prompt '0' of set 'both' reads 'ein roter Ring', in prompts.en 'a red ring'" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda data: data.replace(b"\n", b"\r\n"), "the ends of its lines differ"),
        (lambda data: b"\xef\xbb\xbf" + data, "a byte-order mark differs"),
        (lambda data: data + b"\n", "the end of its last line differs"),
    ],
)
def test_a_mere_difference_of_form_is_named(change: Any, cause: str, tmp_path: Path) -> None:
    shipped = Path(__file__).parent.parent / "datasets" / "shapes.jsonl"
    (tmp_path / "shapes.jsonl").write_bytes(change(shipped.read_bytes()))
    with pytest.raises(HarnessError, match=f"only {cause}; the text is the same"):
        prompts.load(PromptSpec(set="shapes", path="shapes.jsonl"), tmp_path)


def test_a_file_of_one_s_own_can_be_pinned(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    spec = PromptSpec(set="a", path="a.txt")
    (pin,) = prompts.to_accept(spec, tmp_path)
    pinned = spec.model_copy(update={"accept": [pin]})
    assert prompts.load(pinned, tmp_path).files == {"a.txt": pin}
    (tmp_path / "a.txt").write_text("two\n")
    with pytest.raises(HarnessError, match=r"a\.txt has changed: its SHA-256 is .*run with --accept LABEL"):
        prompts.load(pinned, tmp_path)


def test_an_accepted_file_of_another_kind_is_read_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "draw.json").write_text('["a", "b"]')
    with pytest.raises(HarnessError, match="as a csv file with the manifest's columns it cannot be read"):
        prompts.load(PromptSpec(set="drawbench", path="draw.json"), tmp_path)
    accept = prompts.to_accept(PromptSpec(set="drawbench", path="draw.json"), tmp_path)
    found = prompts.load(PromptSpec(set="drawbench", path="draw.json", accept=accept), tmp_path)
    assert [p.text for p in found.prompts] == ["a", "b"]
    (tmp_path / "draw.csv").write_text("key,caption\nx,a\ny,b\n")
    spec = PromptSpec(set="drawbench", path="draw.csv", columns={"text": "caption", "id": "key"})
    found = prompts.load(spec.model_copy(update={"accept": prompts.to_accept(spec, tmp_path)}), tmp_path)
    assert [(p.id, p.text) for p in found.prompts] == [("x", "a"), ("y", "b")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real prompt files are not beside this checkout")
def test_the_two_lists_called_pick_a_pic_are_told_apart() -> None:
    other = str(SHARED / "pickapic" / "papv2.json")
    known = {"set": "pick-a-pic", "path": other}
    for block in (known, known | {"accept": "0" * 64}, other):
        with pytest.raises(HarnessError, match="this is pick-a-pic-v2's file"):
            prompts.load(PromptSpec.model_validate(block), Path())
    with pytest.raises(HarnessError, match="this is pick-a-pic-v2's file"):
        prompts.to_accept(PromptSpec(set="pick-a-pic", path=other), Path())


def test_categories_samples_and_limits_combine(tmp_path: Path) -> None:
    rows = "".join(f"{i},t{i},{'abc'[i % 3]}\n" for i in range(60))
    (tmp_path / "p.csv").write_text("id,prompt,category\n" + rows)

    def ids(**selection: Any) -> list[str]:
        return [p.id for p in prompts.load(PromptSpec(set="p", path="p.csv", **selection), tmp_path).prompts]

    assert ids(first=4) == ["0", "1", "2", "3"]
    assert ids(category="b", first=2) == ["1", "4"]
    both = ids(category=["a", "c"], sample=10)
    assert len(both) == 10
    assert all(int(i) % 3 != 1 for i in both)
    assert set(ids(category=["a", "c"], sample=4)) < set(both)
    assert both == sorted(both, key=int)
    assert both == ids(category=["c", "a"], sample=10)  # the same without any state
