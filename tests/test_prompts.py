"""Prompt sets: parsing, selection, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import prompt_files, prompts
from harness.benchmark import PromptSpec
from harness.errors import HarnessError


def read(tmp_path: Path, name: str, content: str | bytes) -> list[prompts.Prompt]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return prompt_files.read_file(path, path.suffix[1:], {})


def test_each_format_gives_texts_and_ids(tmp_path: Path) -> None:
    assert [p.text for p in read(tmp_path, "a.txt", "one\ntwo, three\n\n")] == ["one", "two, three"]
    table = read(tmp_path, "a.csv", 'id,Prompt,Category\n7,"a, b", x \n8,c,y\n')
    assert [(p.id, p.text, p.category) for p in table] == [("7", "a, b", "x"), ("8", "c", "y")]
    assert [p.text for p in read(tmp_path, "a.tsv", 'prompt\tnote\nsay "hi"\tx\n')] == ['say "hi"']
    lines = read(tmp_path, "a.jsonl", '{"prompt": "é", "id": 3}\n')
    assert (lines[0].id, lines[0].text) == ("3", "é")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "\ufeffcaption\nx\n")[0].text == "x"


def test_other_columns_are_kept_for_seeding_by_column(tmp_path: Path) -> None:
    row = read(tmp_path, "a.csv", "prompt,evaluation_seed\nx,5\n")[0]
    assert row.columns == {"evaluation_seed": "5"}


def test_a_class_is_recognised_by_the_name_of_its_column(tmp_path: Path) -> None:
    lines = "".join(f'{{"prompt": "x", "class_label": {label}}}\n' for label in ("7", "null", "0"))
    assert [p.class_label for p in read(tmp_path, "a.jsonl", lines)] == [7, None, 0]
    row = read(tmp_path, "a.csv", "prompt,class_label,Class_Label\nx,30,5\n")[0]
    assert (row.class_label, row.columns) == (30, {"Class_Label": "5"})


@pytest.mark.parametrize("label", ["-1", "1.0", "red", ""])
def test_what_is_no_class_is_refused_with_its_place(label: str, tmp_path: Path) -> None:
    said = rf"a\.csv: row 1: class_label: expected a whole number from 0, got '{label}'"
    with pytest.raises(HarnessError, match=said):
        read(tmp_path, "a.csv", f"prompt,class_label\nx,0\ny,{label}\n")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "prompt,b\nx\n", "row 0 has 1 cells"),
        ("a.csv", "id,prompt\n1,x\n1,y\n", "rows 0 and 1 have the same id '1'"),
        ("a.csv", "name\nx\n", "no column called prompt"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.csv", b"prompt\n\xff\xfe\n", "not UTF-8"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', "row 1 has no 'prompt'"),
        ("a.csv", "prompt\na\x00b\n", "control characters"),
        ("a.txt", "x" * 100_001, "at most 100000 characters"),
        ("a.xyz", "x", "files of kind 'xyz'"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    with pytest.raises(HarnessError, match=expected):
        read(tmp_path, name, content)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("Prompts,Category\nx,y\n")
    with pytest.raises(HarnessError, match="not the file that its manifest names"):
        prompts.load(PromptSpec(set="drawbench", path="mine.csv"), tmp_path)


def test_an_unknown_set_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="did you mean 'drawbench'"):
        prompts.load(PromptSpec(set="drawbnech"), tmp_path)


def test_an_empty_selection_and_an_unknown_category_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,category\nx,animals\n")
    with pytest.raises(HarnessError, match="no category 'animal': did you mean 'animals'"):
        prompts.load(PromptSpec(set="p", path="p.csv", category="animal"), tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_larger_sample_contains_the_smaller(a: int, b: int) -> None:
    everything = [prompts.Prompt(str(i), f"prompt {i}") for i in range(40)]
    small, large = sorted((a, b))
    ids = [{p.id for p in prompts.select(everything, PromptSpec(set="s", sample=n))} for n in (small, large)]
    assert len(ids[0]) == small
    assert ids[0] <= ids[1]
