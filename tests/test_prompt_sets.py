"""The known prompt sets: each manifest, each set from its real file and from a small one of the same format, and the
parsers against arbitrary texts and bytes."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import manifest as manifests
from harness import prompt_formats, prompts
from harness.benchmark import PromptSpec
from harness.errors import HarnessError, Lacking
from harness.manifest import Manifest
from harness.prompt_files import LONGEST_ID, Prompt, read_file
from harness.seeding import row_key
from harness.shapes import orbit

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SETS = sorted(manifests.known())
# Where the real file of a set lies below DATA.
REAL = {
    "coco-30k": "coco/coco_30k.csv", "coco-5k": "coco/coco_30k.csv", "dpg-bench": "dpg_bench/dpg_prompts.jsonl",
    "drawbench": "drawbench/drawbench.csv", "geneval": "geneval/evaluation_metadata.jsonl",
    "hpdv2": "hpdv2/hpsv2_benchmark_all3200.json", "hpdv2-golden-noise": "hpdv2_golden_noise/HPD_prompt.csv",
    "imagenet": "imagenet/imagenet_classes.txt", "imagereward": "imagereward/benchmark-prompts.json",
    "noise-diffusion-simple": "noise_diffusion/simple_cases.json",
    "noise-diffusion-complex": "noise_diffusion/complex_cases.json", "partiprompts": "partiprompts/PartiPrompts.tsv",
    "pick-a-pic": "pickapic/golden_noise_pickscore.csv", "pick-a-pic-v2": "pickapic/papv2.json",
    "t2i-compbench": "t2i_compbench",
}
# Prompts, categories, the last id, and how many texts differ, as the sheet of data sets and its authors count them.
SHEET = {
    "coco-30k": (30000, 0, "000000399516", 29495), "coco-5k": (5000, 0, "000000328433", None),
    "dpg-bench": (1065, 0, "whoops9", None), "drawbench": (200, 11, "199", 200), "geneval": (553, 6, "552", None),
    "hpdv2": (3200, 4, "photo/799", 3172), "hpdv2-golden-noise": (400, 0, "399", None),
    "imagenet": (1000, 0, "999", 999), "imagereward": (100, 0, "000562-0011", None),
    "noise-diffusion-simple": (276, 3, "objects/65", 276), "noise-diffusion-complex": (100, 0, "99", None),
    "partiprompts": (1632, 12, "1631", 1632), "pick-a-pic": (500, 0, "499", 500),
    "pick-a-pic-v2": (487, 0, "486", 487), "t2i-compbench": (2400, 8, "3d_spatial/299", None),
    "imagenet-seeds": (150_000, 3, "149999", 1),
    "shapes": (240, 6, "color-attr-039", 240), "shapes-seen": (240, 6, "color-attr-039", 240),
    "shapes-classes": (36, 6, "orange-rings", 36),
}


def real(name: str) -> Path:
    path = DATA / REAL[name]
    if not path.exists():
        pytest.skip(f"the real file of {name} is not at ../shared/data/{REAL[name]} beside this checkout")
    return path


def load(name: str, path: Path | None = None, **selection: Any) -> list[Prompt]:
    spec = PromptSpec(set=name, path=None if path is None else str(path), **selection)
    return list(prompts.load(spec, Path()).prompts)


@cache
def whole(name: str) -> list[Prompt]:
    """The set from its real file, read once."""
    return load(name, real(name) if name in REAL else None)


# ---- manifests ----


@pytest.mark.parametrize("name", SETS)
def test_a_manifest_says_what_it_must(name: str) -> None:
    found = manifests.load(name)
    assert found.name == name
    assert found.title
    assert found.source
    assert found.licence
    assert (found.rows is None) == (name == "omniobject3d")
    assert found.nsfw == name.startswith("pick-a-pic")
    for file in found.files:
        assert (file.size is None) == (file.sha256 is None)
        assert file.url is None or re.fullmatch(
            r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/[\w./-]+|http.*\.zip", file.url
        )
    official_bytes_known = name not in ("coco-val2014", "coco-2017-val", "omniobject3d")
    assert (found.prompts_sha256 is not None) == official_bytes_known
    assert all(file.sha256 is not None for file in found.files) == (official_bytes_known and not found.made_by)
    assert (found.made_by is not None) == (name == "shapes-orbits")


def test_every_set_of_the_list_is_known() -> None:
    assert set(SETS) == {*SHEET, "coco-val2014", "coco-2017-val", "omniobject3d", "shapes-orbits"}


def test_the_manifests_agree_with_where_the_files_were_copied_from() -> None:
    path = DATA / "SOURCES.md"
    if not path.is_file():
        pytest.skip("SOURCES.md is not beside this checkout")
    stated = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 8 and re.fullmatch("[0-9a-f]{64}", cells[4]):
            url = None if "DERIVED" in cells[8] else f"https://raw.githubusercontent.com/{cells[1]}/{cells[3]}/{cells[2]}"
            stated[cells[4]] = (url, int(cells[5]))
    for name in REAL:
        for file in manifests.load(name).files:
            assert (file.url, file.size) == stated[file.sha256 or ""], (name, file.path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rows": 199}, "sum is 200, rows is 199"),
        ({"format": "xml"}, "format 'xml'"),
        ({"columns": {"words": "Prompts"}}, "columns: expected"),
        ({"licence": " "}, "at least 1 character"),
        ({"files": []}, "at least 1 item"),
        ({"files": [{"path": "../a.csv"}]}, "expected a path below"),
        ({"files": [{"path": "a.csv"}, {"path": "b.csv"}]}, "a category of its own"),
        ({"files": [{"path": "a.csv", "sha256": "abc"}]}, "should match pattern"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_a_wrong_manifest_is_refused(change: dict[str, Any], expected: str) -> None:
    content = yaml.safe_load(manifests.known()["drawbench"].read_text("utf-8")) | change
    with pytest.raises(ValueError, match=expected):
        Manifest.model_validate(content)


# ---- the real files ----


@pytest.mark.parametrize("name", sorted(SHEET))
def test_a_set_loads_with_the_counts_of_the_sheet(name: str) -> None:
    loaded = whole(name)
    rows, categories, last, distinct = SHEET[name]
    assert len(loaded) == len({prompt.id for prompt in loaded}) == rows
    assert len({prompt.category for prompt in loaded} - {None}) == categories
    assert loaded[-1].id == last
    if distinct is not None:
        assert len({prompt.text for prompt in loaded}) == distinct
    empty = [prompt.id for prompt in loaded if not prompt.text.strip()]
    assert empty == (["87"] if name == "pick-a-pic" else []) or name == "imagenet-seeds"


def by_other_means() -> dict[str, Callable[[Path], list[str]]]:
    """Texts by pandas, or by plain string operations, for the formats whose parsers are ours."""
    return {
        "coco-30k": lambda path: list(pd.read_csv(path, keep_default_na=False)["prompt"]),
        "drawbench": lambda path: list(pd.read_csv(path)["Prompts"]),
        "pick-a-pic": lambda path: list(pd.read_csv(path, keep_default_na=False)["caption"]),
        "partiprompts": lambda path: list(pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE)["Prompt"]),
        "hpdv2-golden-noise": lambda path: re.findall(r"^\d+,(.*)$", path.read_text("utf-8"), re.MULTILINE),
        "geneval": lambda path: list(pd.read_json(path, lines=True)["prompt"]),
        "pick-a-pic-v2": lambda path: list(pd.read_json(path)["prompt"]),
        "imagenet": lambda path: path.read_text("utf-8").splitlines(),
    }


@pytest.mark.parametrize("name", sorted(by_other_means()))
def test_the_texts_are_those_that_another_parser_reads(name: str) -> None:
    assert [prompt.text for prompt in whole(name)] == by_other_means()[name](real(name))


def test_what_is_odd_about_the_real_files() -> None:
    gary = [p for p in whole("drawbench") if p.category == "Gary Marcus et al."]
    assert len(gary) == 10  # the file has a trailing blank
    pick = whole("pick-a-pic")
    pick_v2 = whole("pick-a-pic-v2")
    assert len({p.text for p in pick} & {p.text for p in pick_v2}) == 23
    golden, hpd = whole("hpdv2-golden-noise"), whole("hpdv2")
    assert len({p.text for p in golden} & {p.text for p in hpd}) == 4  # one more than a CSV reader finds
    assert {"Klimt, Nixeu," in p.text for p in golden[1:2]} == {True}  # a comma that is not quoted
    assert sum(len({p.text for p in hpd if p.category == style}) for style in ("anime", "photo")) == 781 + 800
    labels = whole("imagenet")
    assert [(p.class_label, p.text.split(",")[0]) for p in (labels[0], labels[207], labels[388], labels[999])] == [
        (0, "tench"), (207, "golden retriever"), (388, "giant panda"), (999, "toilet tissue")
    ]
    truth = whole("geneval")[0].truth
    assert truth == {
        "tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"
    }
    assert whole("noise-diffusion-simple")[0].columns == {"indices": [2, 5]}
    assert whole("coco-30k")[0].columns["evaluation_seed"] == "41337"


def test_the_first_hundred_of_pick_a_pic_are_its_first_rows() -> None:
    chosen = load("pick-a-pic", real("pick-a-pic"), first=100)
    assert [prompt.id for prompt in chosen] == [str(number) for number in range(100)]
    assert chosen[1].text == "a spanish water dog breed as arthur morgan from red dead redemption"


def test_categories_and_samples_of_a_real_set() -> None:
    assert len(load("drawbench", real("drawbench"), category=["Text", "Counting"])) == 21 + 19
    assert [p.id for p in load("hpdv2", real("hpdv2"), category="paintings", first=2)] == ["paintings/0", "paintings/1"]
    drawn = [p.id for p in load("hpdv2", real("hpdv2"), sample=50)]
    assert drawn == [p.id for p in load("hpdv2", real("hpdv2"), sample=50)]
    assert len({p.split("/")[0] for p in drawn}) == 4
    with pytest.raises(HarnessError, match="no category 'painting': did you mean 'paintings'"):
        load("hpdv2", real("hpdv2"), category="painting")


def test_the_two_lists_called_pick_a_pic_are_told_apart() -> None:
    with pytest.raises(HarnessError, match=r"this is pick-a-pic-v2's file; write .*set: pick-a-pic-v2"):
        load("pick-a-pic", real("pick-a-pic-v2"))
    with pytest.raises(HarnessError, match="this is pick-a-pic's file"):
        load("pick-a-pic-v2", real("pick-a-pic"))
    with pytest.raises(HarnessError, match="this is coco-30k's file"):
        load("coco-val2014", real("coco-30k"))  # whose own SHA-256 is not known


def test_the_four_styles_and_the_joined_list_are_one_set() -> None:
    joined = whole("hpdv2")
    styles = load("hpdv2", real("hpdv2").parent, first=3200)
    assert [(p.id, p.text, p.category) for p in joined] == [(p.id, p.text, p.category) for p in styles]


def test_four_styles_in_other_bytes_are_accepted_by_their_prompts(tmp_path: Path) -> None:
    for style in ("anime", "concept-art", "paintings", "photo"):
        content = json.loads((real("hpdv2").parent / f"{style}.json").read_text("utf-8"))
        (tmp_path / f"{style}.json").write_text(json.dumps(content, indent=4))
    assert len(load("hpdv2", tmp_path)) == 3200
    content[5] += "!"
    (tmp_path / "photo.json").write_text(json.dumps(content))
    with pytest.raises(HarnessError, match="as many prompts as expected, but other ids or texts"):
        load("hpdv2", tmp_path)
    (tmp_path / "photo.json").write_text(json.dumps(content[:-1]))
    with pytest.raises(HarnessError, match="3,199 prompts, expected 3,200"):
        load("hpdv2", tmp_path)


def test_dpg_bench_from_its_official_folder(tmp_path: Path) -> None:
    one_file = whole("dpg-bench")
    folder = tmp_path / "prompts"
    folder.mkdir()
    for prompt in one_file:
        (folder / f"{prompt.id}.txt").write_text(prompt.text + "\n", encoding="utf-8")
    (folder / "README.md").write_text("not a prompt")
    assert load("dpg-bench", folder) == load("dpg-bench", tmp_path) == one_file
    (folder / "0.txt").unlink()
    with pytest.raises(HarnessError, match="1,064 prompts, expected 1,065"):
        load("dpg-bench", folder)


def test_a_truncated_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    data = real("partiprompts").read_bytes()
    (tmp_path / "PartiPrompts.tsv").write_bytes(data[:50_000])
    with pytest.raises(HarnessError, match="not the file that its manifest names") as caught:
        load("partiprompts", tmp_path)
    assert "50,000" in str(caught.value)
    assert "123,107" in str(caught.value)
    (tmp_path / "PartiPrompts.tsv").write_bytes(data.replace(b"bond", b"band", 1))
    expected = manifests.load("partiprompts").files[0].sha256
    with pytest.raises(HarnessError, match=f"(?s)not the file that its manifest names.*{expected}"):
        load("partiprompts", tmp_path / "PartiPrompts.tsv")


# ---- small files of the same formats ----

CAPTIONS = {
    "info": {}, "licenses": [],
    "images": [
        {"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "height": 1, "width": 1},
        {"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "height": 1, "width": 1},
    ],
    "annotations": [
        {"id": 30, "image_id": 7, "caption": "later"}, {"id": 12, "image_id": 42, "caption": "A dog.\n"},
        {"id": 9, "image_id": 7, "caption": "first"}, {"id": 13, "image_id": 42, "caption": "Another dog."},
    ],
}
# What a small file (or several) of each set holds, what differs in its manifest, and the (id, text, category) read.
SMALL: dict[str, tuple[dict[str, str | bytes], dict[str, Any], list[tuple[str, str, str | None]]]] = {
    "drawbench": (
        {"drawbench.csv": '"Prompts","Category"\n"A ""red"" car.","Colors"\n"x, y","Gary Marcus et al. "'},
        {"rows": 2, "categories": {"Colors": 1, "Gary Marcus et al.": 1}},
        [("0", 'A "red" car.', "Colors"), ("1", "x, y", "Gary Marcus et al.")],
    ),
    "pick-a-pic": (
        {"golden_noise_pickscore.csv": "\ufeff序号,caption,caption_zh,备注\r\n0,a cat,猫,\r\n1,,,色情\r\n"},
        {"rows": 2},
        [("0", "a cat", None), ("1", "", None)],
    ),
    "pick-a-pic-v2": (
        {"papv2.json": json.dumps([{"prompt": "a cat", "gen_image_path": "", "metadata": {}}])}, {"rows": 1},
        [("0", "a cat", None)],
    ),
    "hpdv2": (
        {"hpsv2_benchmark_all3200.json": json.dumps([{"prompt": text} for text in "abcd"])},
        {"rows": 4, "categories": {"anime": 1, "concept-art": 2, "paintings": 0, "photo": 1}},
        [("anime/0", "a", "anime"), ("concept-art/0", "b", "concept-art"), ("concept-art/1", "c", "concept-art"),
         ("photo/0", "d", "photo")],
    ),
    "hpdv2-golden-noise": (
        {"HPD_prompt.csv": '序号,caption,caption_zh,备注\n0,by Klimt, Nixeu\n7,"Dumbledore" - a portrait\n'},
        {"rows": 2},
        [("0", "by Klimt, Nixeu", None), ("7", '"Dumbledore" - a portrait', None)],
    ),
    "geneval": (
        {"evaluation_metadata.jsonl": '{"tag": "colors", "include": [{"class": "cow", "count": 2}], "prompt": "a"}\n'},
        {"rows": 1, "categories": {"colors": 1}}, [("0", "a", "colors")],
    ),
    "partiprompts": (
        {"PartiPrompts.tsv": 'Prompt\tCategory\tChallenge\tNote\na "sign\tArts\tBasic\t\nb \tArts\tBasic\tx\n'},
        {"rows": 2, "categories": {"Arts": 2}}, [("0", 'a "sign', "Arts"), ("1", "b ", "Arts")],
    ),
    "t2i-compbench": (
        {f"{name}_val.txt": f"a {name} cat\r\na dog\r\n" if number % 2 else f"a {name} cat\na dog" for number, name in
         enumerate(manifests.load("t2i-compbench").categories)},
        {"rows": 16, "categories": dict.fromkeys(manifests.load("t2i-compbench").categories, 2)},
        [row for name in manifests.load("t2i-compbench").categories for row in
         ((f"{name}/0", f"a {name} cat", name), (f"{name}/1", "a dog", name))],
    ),
    "dpg-bench": (
        {"dpg_prompts.jsonl": '{"id": "COCOval2014", "prompt": "a"}\n{"id": "whoops9", "prompt": "b"}\n'}, {"rows": 2},
        [("COCOval2014", "a", None), ("whoops9", "b", None)],
    ),
    "imagereward": (
        {"benchmark-prompts.json": json.dumps([{"id": "005695-0057", "prompt": "a vehicle"}])}, {"rows": 1},
        [("005695-0057", "a vehicle", None)],
    ),
    "noise-diffusion-simple": (
        {"simple_cases.json": json.dumps({"animals": [{"prompt": "a", "indices": [2, 5]}],
                                          "objects": [{"prompt": "b", "indices": [3, 7]}]})},
        {"rows": 2, "categories": {"animals": 1, "objects": 1}},
        [("animals/0", "a", "animals"), ("objects/0", "b", "objects")],
    ),
    "noise-diffusion-complex": (
        {"complex_cases.json": json.dumps([{"prompt": "a", "indices": [2, 5]}])}, {"rows": 1}, [("0", "a", None)],
    ),
    "imagenet": (
        {"imagenet_classes.txt": "tench, Tinca tinca\ncrane\ncrane"}, {"rows": 3},
        [("0", "tench, Tinca tinca", None), ("1", "crane", None), ("2", "crane", None)],
    ),
    "coco-30k": (
        {"coco_30k.csv": 'image_id,source,prompt,evaluation_seed\r\n000000000009,coco-30k,"a\r\nb",5\r\n'}, {"rows": 1},
        [("000000000009", "a\r\nb", None)],
    ),
    "coco-5k": (
        {"coco_30k.csv": "image_id,source,prompt\r\n" + "".join(f"{n:012d},coco-30k,p{n}\r\n" for n in range(5))},
        {"rows": 3, "first": 3}, [(f"{n:012d}", f"p{n}", None) for n in range(3)],
    ),
    **{
        name: (
            {file: json.dumps(CAPTIONS)}, {"rows": 2},
            [("000000000042", "A dog.\n", None), ("000000000007", "first", None)],
        )
        for name, file in (("coco-val2014", "captions_val2014.json"), ("coco-2017-val", "captions_val2017.json"))
    },
    "imagenet-seeds": (
        {"imagenet-seeds.seeds": "7-8\n100-100\n"}, {"rows": 3, "categories": {"7-8": 2, "100-100": 1}},
        [("7", "", "7-8"), ("8", "", "7-8"), ("100", "", "100-100")],
    ),
    "omniobject3d": (
        {f"blender_renders/toy_car/{key}/render/images/r_{frame}.png": b"x"
         for key in ("toy_car_001", "2") for frame in range(11)},
        {}, [("toy_car-2", "toy car", "toy_car"), ("toy_car_001", "toy car", "toy_car")],
    ),
}


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a set's small files and the manifest that belongs to them; returns their folder."""

    def made(name: str) -> Path:
        files, change, _ = SMALL[name]
        (tmp_path / "manifests").mkdir()
        write(tmp_path / "files", files)
        content = yaml.safe_load(manifests.known()[name].read_text("utf-8")) | change | {"prompts_sha256": None}
        for file in content["files"]:
            path = tmp_path / "files" / file["path"]
            if path.is_file():
                data = path.read_bytes()
                file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (tmp_path / "manifests" / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        monkeypatch.setattr(manifests, "resources", lambda kind: tmp_path / "manifests")
        return tmp_path / "files"

    return made


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_small_file_of_the_same_format(name: str, small: Callable[[str], Path]) -> None:
    folder = small(name)
    loaded = load(name, folder)
    assert [(prompt.id, prompt.text, prompt.category) for prompt in loaded] == SMALL[name][2]


def test_a_class_is_the_number_of_its_line(small: Callable[[str], Path]) -> None:
    assert [prompt.class_label for prompt in load("imagenet", small("imagenet"))] == [0, 1, 2]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_choice_of_seeds_in_any_order_has_the_same_prompts(tmp_path: Path, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, 60), min_size=2, max_size=8)))
    ranges = data.draw(st.permutations([(a, b - 1) for a, b in itertools.pairwise(ends)]))
    path = tmp_path / "any.seeds"
    path.write_text("".join(f"{a}-{b}\n" for a, b in ranges))
    everything = load("any", path)
    assert [prompt.id for prompt in everything] == [str(k) for a, b in ranges for k in range(a, b + 1)]
    for prompt in everything:
        a, b = map(int, str(prompt.category).split("-"))
        assert a <= int(prompt.id) <= b
        assert prompt == Prompt(prompt.id, "", f"{a}-{b}", columns={"seed": int(prompt.id)})
        assert row_key("column:seed", "any", prompt.id, 0, prompt.columns).literal == int(prompt.id)
    n = data.draw(st.integers(1, len(everything)))
    assert load("any", path, first=n) == everything[:n]
    drawn = load("any", path, sample=n)
    assert len(drawn) == n
    assert drawn == [prompt for prompt in everything if prompt in drawn]
    one = f"{ranges[0][0]}-{ranges[0][1]}"
    assert load("any", path, category=one) == [prompt for prompt in everything if prompt.category == one]
    path.write_text("".join(f"{a}-{b}\n" for a, b in reversed(ranges)))
    assert {p.id: p for p in load("any", path)} == {p.id: p for p in everything}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-9\n10-20\n20-30\n", "rows 20 and 21 have the same id '20' (column seed)"),
        ("0-9\n9-3\n", "line 2: expected a range of numbers like 0-49999, got '9-3'"),
        ("a-b\n", "got 'a-b'"), ("-3-5\n", "got '-3-5'"), ("0-9\n\n3-4\n", "line 2: expected"),
        ("0-1\n5-99999999999\n", "line 2: more than 2,000,000 prompts"), ("", "holds no prompts"),
    ],
)
def test_wrong_ranges_of_seeds_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "my.seeds"
    path.write_text(text)
    with pytest.raises(HarnessError, match=re.escape(said)):
        load("my", path)


def test_columns_mean_nothing_for_seeds(tmp_path: Path) -> None:
    (tmp_path / "my.seeds").write_text("0-1\n")
    with pytest.raises(HarnessError, match="'columns' has no meaning for ranges of seeds"):
        load("my", tmp_path / "my.seeds", columns={"text": "seed"})


def test_every_set_has_a_small_file() -> None:
    assert set(SMALL) | {"shapes", "shapes-seen", "shapes-orbits", "shapes-classes"} == set(SETS)


def test_the_orbits_of_solids_are_made_by_the_command_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_PROMPTS", str(tmp_path / "two words"))
    with pytest.raises(Lacking) as lacking:
        load("shapes-orbits")
    told = re.search(r"`python -m harness\.shapes\.orbit ([^`]*)` makes it", str(lacking.value))
    assert told is not None
    monkeypatch.setattr(orbit, "render", lambda *_: np.zeros((8, 8, 3), np.uint8))
    orbit.main(shlex.split(told.group(1)))
    loaded = load("shapes-orbits")
    assert len(loaded) == 30  # and their ids and texts are those of the manifest
    assert all(prompt.truth and len(prompt.truth["frames"]) == 21 for prompt in loaded)
    assert load("shapes-orbits", sample=4) != load("shapes-orbits", first=4)


def test_an_orbit_is_conditioned_on_its_first_frame(small: Callable[[str], Path]) -> None:
    folder = small("omniobject3d")
    loaded = prompts.load(PromptSpec(set="omniobject3d", path=str(folder / "blender_renders")), Path())
    first = loaded.prompts[0]
    images = loaded.folder / "toy_car" / "2" / "render" / "images"
    assert first.image == str(images / "r_0.png")
    assert first.truth == {"frames": [str(images / f"r_{k}.png") for k in range(11)]}  # r_2 before r_10
    assert images.is_absolute()
    assert (images / "r_0.png").is_file()
    assert first.columns == {"object": "2", "frames": 11}


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (("r_0", "r_1", "r_3"), "r_3 stands where number 2"), (("r_2", "r_3"), "r_2 stands where number 1"),
        (("r_0", "r_1", "r_01"), "r_1 stands where number 2"), (("0001", "0002"), None), (("r_0", "r_1"), None),
        (("front", "back"), None), (("a_0_64", "a_4_64"), None),
    ],
)
def test_the_numbered_frames_of_an_orbit_have_no_gap(tmp_path: Path, names: tuple[str, ...], wrong: str | None) -> None:
    write(tmp_path, {f"car/car_1/render/images/{name}.png": b"x" for name in names})
    if wrong is None:
        assert len(read_file(tmp_path, "orbits", {})) == 1
        return
    with pytest.raises(HarnessError, match=rf"car_1/render/images: {wrong} was expected.* without a gap"):
        read_file(tmp_path, "orbits", {})


@pytest.mark.parametrize(
    ("names", "odd", "usual"),
    [
        (("r_0", "r_1", "r_0_depth0001"), "r_0_depth0001", "r_0"), (("r_0", "r_0_depth0001"), "r_0_depth0001", "r_0"),
        (("r_0", "r_1", "mask"), "mask", "r_0"), (("a_0_64", "a_4_64", "depth_1"), "depth_1", "a_0_64"),
    ],
)
def test_what_is_no_frame_of_an_orbit_is_named(tmp_path: Path, names: tuple[str, ...], odd: str, usual: str) -> None:
    write(tmp_path, {f"car/car_1/render/images/{name}.png": b"x" for name in names})
    with pytest.raises(HarnessError, match=f"car_1/render/images: {odd} is not numbered as {usual} is: .* elsewhere"):
        read_file(tmp_path, "orbits", {})


def test_other_layouts_of_orbits_are_refused_with_the_one_expected(tmp_path: Path) -> None:
    expected = "expected <category>/<object>/render/images/<frames"
    for wrong, what in (
        ("anise/anise_001/images/r_0.png", "no rendered frames"), ("anise/r_0.png", "holds no objects"),
        ("r_0.png", "holds no objects"),
    ):
        write(tmp_path / wrong.replace("/", "-"), {wrong: b"x"})
        with pytest.raises(HarnessError, match=f"{what}.*{re.escape(expected)}"):
            read_file(tmp_path / wrong.replace("/", "-"), "orbits", {})
    with pytest.raises(HarnessError, match="expected a folder of rendered objects"):
        read_file(tmp_path / "missing", "orbits", {})


def test_all_captions_of_coco_image_by_image(tmp_path: Path) -> None:
    write(tmp_path, {"captions.json": json.dumps(CAPTIONS)})
    every = read_file(tmp_path / "captions.json", "coco-all", {})
    assert [(p.id, p.text, p.columns["image_id"]) for p in every] == [
        ("12", "A dog.\n", "000000000042"), ("13", "Another dog.", "000000000042"),
        ("9", "first", "000000000007"), ("30", "later", "000000000007"),
    ]
    # A user's own file of the kind is known by what it holds.
    assert [p.text for p in load("mine", tmp_path / "captions.json")] == ["A dog.\n", "first"]


@pytest.mark.parametrize(
    ("part", "number", "change", "expected"),
    [
        ("annotations", 1, {"image_id": 5}, "annotations, row 1: no image has the id 5"),
        ("annotations", 2, {"id": "9"}, "annotations, row 2: id: expected COCO's captions"),
        ("annotations", 3, {"caption": None}, ""),
        ("annotations", 2, {"caption": None}, "row 1: prompt: expected a text"),
        ("images", 0, {"id": 8}, "annotations, row 1: no image has the id 42"),
        ("images", 0, {"id": True}, "images, row 0: id: expected"),
    ],
)
def test_a_wrong_entry_of_cocos_captions(
    tmp_path: Path, part: str, number: int, change: dict[str, Any], expected: str
) -> None:
    content = json.loads(json.dumps(CAPTIONS))
    content[part][number] |= change
    write(tmp_path, {"captions.json": json.dumps(content)})
    if not expected:  # the caption that is not taken
        assert len(read_file(tmp_path / "captions.json", "coco", {})) == 2
        return
    with pytest.raises(HarnessError, match=expected):
        read_file(tmp_path / "captions.json", "coco", {})


def test_an_image_without_a_caption_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"captions.json": json.dumps(CAPTIONS | {"annotations": CAPTIONS["annotations"][:1]})})  # type: ignore
    with pytest.raises(HarnessError, match="images, row 0: image 42 has no caption"):
        read_file(tmp_path / "captions.json", "coco", {})


# ---- bad files ----


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


BAD: list[tuple[str, str | bytes, str]] = [
    ("ids.csv", "id,prompt\n1,x\n1,y\n", r"rows 0 and 1 have the same id '1' \(column id\)"),
    ("mixed.csv", "prompt\nné\n".encode() + "né\n".encode("latin-1"), "not UTF-8: line 3, byte 12 is 0xe9"),
    ("utf16.csv", "prompt\nx\n".encode("utf-16"), "not UTF-8: line 1, byte 0 is 0xff"),
    ("long.csv", "id,prompt\n1,x\n2," + "x" * 10_000_000, "row 1: prompt: expected a text of at most 100000"),
    ("empty.csv", 'id,prompt\n1,x\n2,"  "\n', "row 1: prompt: expected a prompt, not an empty text"),
    ("empty.txt", "one\n\nthree\n", "row 1: prompt: expected a prompt, not an empty text"),
    ("control.csv", "id,Prompt\n1,x\n2,a\x07b\n", "row 1: Prompt: .* without control characters"),
    ("nul.csv", "id,prompt\n1,a\0b\n", "row 0: prompt: .* without control characters"),
    ("nul2.csv", "id,prompt,note\n1,a,b\0c\n", "row 0: note: holds a NUL"),
    ("path.csv", "id,prompt\n../../etc/passwd,x\n", "row 0: id: expected a name and not a path"),
    ("path.jsonl", '{"id": "..", "prompt": "x"}', "row 0: id: expected a name and not a path"),
    ("path2.jsonl", '{"id": "C:\\\\x", "prompt": "x"}', "row 0: id: expected a name and not a path"),
    ("nul.jsonl", '{"id": "a\\u0000", "prompt": "x"}', "row 0: id: expected a whole number or a text"),
    ("longid.csv", f"id,prompt\n{'x' * (LONGEST_ID + 1)},x\n", "row 0: id: .* 1 to 200 characters"),
    ("noid.csv", "id,prompt\n,x\n", "row 0: id: .* 1 to 200 characters"),
    ("floatid.jsonl", '{"id": 1.5, "prompt": "x"}', "row 0: id: expected a whole number"),
    ("boolid.jsonl", '{"id": true, "prompt": "x"}', "row 0: id: expected a whole number"),
    ("ragged.csv", 'id,prompt\n1,x\n2,y,z\n', r"row 1 has 3 cells, the header has 2 \(line 3\)"),
    ("ragged.tsv", "id\tprompt\n1\n", r"row 0 has 1 cells, the header has 2 \(line 2\)"),
    ("quote.csv", 'prompt\n"x\ny\n', "malformed csv: line 3: unexpected end of data"),
    ("header.csv", "prompt,prompt\nx,y\n", "two columns are called 'prompt'"),
    ("surrogate.json", '["\\ud800"]', "row 0: prompt: expected a text"),
    ("twice.jsonl", '{"prompt": "x"}\n{"prompt": "x", "prompt": "y"}', "line 2 is not JSON: the key 'prompt' stands"),
    ("twice.json", '[{"prompt": "x", "prompt": "y"}]', "the key 'prompt' stands twice"),
    ("nan.json", '[{"prompt": NaN}]', "NaN is no JSON value"),
    ("deep.json", "[" * 100_000, "nested too deeply"),
    ("number.json", '["x", 3]', "row 1: expected a text or an object, got '?3"),
    ("array.json", '[{"prompt": ["x"]}]', r"row 0: prompt: expected a text .* got \"\['x'\]\""),
    ("scalar.json", "3", "expected a list of texts or objects"),
    ("cut.json", '[{"prompt": "x"}, {"pro', "is not JSON"),
    ("grouped.json", '{"animals": ["a", ""]}', "row animals/1: prompt: expected a prompt, not an empty text"),
    ("path.json", '{"a/b": ["x"], "../a": ["y"]}', "row ../a/0: id: expected a category that is no path"),
    ("none.json", "[]", "holds no prompts"),
    ("label.jsonl", '{"prompt": "x", "category": ["y"]}', "row 0: category: expected a text"),
    ("image.jsonl", '{"prompt": "x", "image": "../y.png"}', "row 0: image: expected a path below the folder"),
    ("truth.jsonl", '{"prompt": "x", "truth": 1}', "row 0: truth: expected an object"),
    ("none.parquet", parquet(id=["a", "b"], prompt=["x", None]), "row 1: prompt: expected a text .* got 'None'"),
    ("nan.parquet", parquet(id=[1.0, float("nan")], prompt=["x", "y"]), "row 0: id: expected a whole number"),
    ("nanid.parquet", parquet(id=[None, 1], prompt=["x", "y"]), "row 0: id: expected a whole number"),
    ("array.parquet", parquet(prompt=[["x"], ["y"]]), "row 0: prompt: expected a text"),
    ("cut.parquet", parquet(prompt=["x"])[:-5], "is no readable Parquet file"),
    ("text.parquet", "prompt\nx\n", "is no readable Parquet file"),
    ("empty.parquet", parquet(prompt=pa.array([], pa.string())), "holds no prompts"),
]


@pytest.mark.parametrize(("name", "content", "expected"), BAD, ids=[name for name, _, _ in BAD])
def test_a_bad_file_is_refused_with_file_row_and_column(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    write(tmp_path, {name: content})
    with pytest.raises(HarnessError, match=expected) as caught:
        load("mine", tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert len(str(caught.value)) < 600


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    os.mkfifo(tmp_path / "b.csv")
    (tmp_path / "big.csv").touch()
    os.truncate(tmp_path / "big.csv", 10**9)  # a hole: takes no space
    for name, expected in (("a.csv", "is a folder"), ("b.csv", "not a plain file"), ("c.csv", "no such file"),
                           ("big.csv", "1,000,000,000 bytes of text; at most 134,217,728 are read")):
        with pytest.raises(HarnessError, match=expected):
            read_file(tmp_path / name, "csv", {})
    with pytest.raises(HarnessError, match="not a plain file"):
        load("drawbench", tmp_path / "b.csv")


def test_a_parquet_file_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.parquet": parquet(prompt=["x" * 1000] * 4, image=[b"y" * 10_000] * 4)})
    monkeypatch.setattr(prompt_formats, "LARGEST", 5000)
    assert len(read_file(tmp_path / "a.parquet", "parquet", {})) == 4  # images do not count
    monkeypatch.setattr(prompt_formats, "MOST", 3)
    with pytest.raises(HarnessError, match="has 4 rows; at most 3 are read"):
        read_file(tmp_path / "a.parquet", "parquet", {})
    monkeypatch.setattr(prompt_formats, "MOST", 4)
    monkeypatch.setattr(prompt_formats, "LARGEST", 100)
    with pytest.raises(HarnessError, match="bytes of text; at most 100 are read"):
        read_file(tmp_path / "a.parquet", "parquet", {})


def test_images_in_a_parquet_file_are_left_alone(tmp_path: Path) -> None:
    image = {"bytes": b"x" * 10, "path": "a"}
    write(tmp_path, {"a.parquet": parquet(prompt=["x"], image=[image], raw=[b"y"], seed=[3])})
    assert read_file(tmp_path / "a.parquet", "parquet", {}) == [Prompt("0", "x", columns={"seed": 3})]


def test_a_missing_set_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_PROMPTS", str(tmp_path))
    with pytest.raises(HarnessError, match=r"not on this machine \(papv2\.json .*'path: FILE'"):
        load("pick-a-pic-v2")
    with pytest.raises(HarnessError, match=r"color_val.txt, shape_val.txt.*'path: FOLDER'"):
        load("t2i-compbench", tmp_path)


# ---- any text, any bytes ----

ANY = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff")
TEXTS = st.lists(st.text(ANY | st.sampled_from("\t\r\n\",'"), min_size=1).filter(str.strip), min_size=1, max_size=6)
LINES = st.lists(st.text(ANY | st.sampled_from("\",'"), min_size=1).filter(str.strip), min_size=1, max_size=6)
ENDS, MARKS = st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff"])
QUICK = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def texts_of(path: Path, content: str | bytes, form: str) -> list[str]:
    write(path.parent, {path.name: content})
    read = read_file(path, form, {})
    assert [prompt.id for prompt in read] == [str(number) for number in range(len(read))]
    return [prompt.text for prompt in read]


@QUICK
@given(TEXTS, ENDS, MARKS)
def test_csv_round_trip(scratch: Path, texts: list[str], end: str, mark: str) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["note", "Prompt"], *(["", text] for text in texts)])
    assert texts_of(scratch / "a.csv", mark + sink.getvalue(), "csv") == texts


@QUICK
@given(LINES, ENDS, MARKS, st.booleans())
def test_tsv_and_txt_round_trip(scratch: Path, texts: list[str], end: str, mark: str, last_end: bool) -> None:
    tail = end * last_end
    assert texts_of(scratch / "a.txt", mark + end.join(texts) + tail, "txt") == texts
    table = end.join(["prompt\tnote", *(f"{text}\t" for text in texts)]) + tail
    assert texts_of(scratch / "a.tsv", mark + table, "tsv") == texts
    listed = end.join(["id,text", *(f"{number},{text}" for number, text in enumerate(texts))]) + tail
    assert texts_of(scratch / "a.csv", mark + listed, "id-text") == texts


@QUICK
@given(TEXTS, ENDS, MARKS, st.booleans())
def test_json_round_trip(scratch: Path, texts: list[str], end: str, mark: str, escaped: bool) -> None:
    objects = [{"text": text, "k": {"a": [1]}} for text in texts]
    for content in (texts, objects):
        assert texts_of(scratch / "a.json", mark + json.dumps(content, ensure_ascii=escaped), "json") == texts
    lines = end.join(json.dumps(entry, ensure_ascii=escaped) for entry in objects) + end
    assert texts_of(scratch / "a.jsonl", mark + lines, "jsonl") == texts
    write(scratch, {"b.json": json.dumps({"x": texts, "y": texts}, ensure_ascii=escaped)})
    grouped = [(prompt.id, prompt.text, prompt.category) for prompt in read_file(scratch / "b.json", "json", {})]
    assert grouped == [(f"{key}/{number}", text, key) for key in "xy" for number, text in enumerate(texts)]


@QUICK
@given(TEXTS)
def test_parquet_round_trip(scratch: Path, texts: list[str]) -> None:
    assert texts_of(scratch / "a.parquet", parquet(seed=range(len(texts)), caption=texts), "parquet") == texts


FILE_FORMS = sorted(set(prompt_formats.READERS) - set(prompt_formats.FOLDERS))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "prompt", "images", "annotations", "image_id", "caption", "tag", "include", "truth"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)


def only_harness_errors(path: Path, data: bytes, form: str) -> None:
    path.write_bytes(data)
    with contextlib.suppress(HarnessError):
        for prompt in read_file(path, form, {}):
            assert prompt.text.strip() or form == "seeds"
            assert "\0" not in prompt.id
            prompt.text.encode()


@pytest.mark.parametrize("form", FILE_FORMS)
@QUICK
@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda t: ("prompt,id\n" + t).encode("utf-8", "ignore")))
def test_arbitrary_bytes_raise_nothing_else(scratch: Path, form: str, data: bytes) -> None:
    only_harness_errors(scratch / "any", data, form)


@QUICK
@given(JSON_VALUES, st.sampled_from(["json", "jsonl", "coco", "coco-all"]))
def test_arbitrary_json_raises_nothing_else(scratch: Path, value: Any, form: str) -> None:
    only_harness_errors(scratch / "any.json", json.dumps(value).encode(), form)


WHOLE_PARQUET = parquet(id=["a", "b", "c"], prompt=["x" * 50, "y", "é"], more=[[1.5], [], [2.0, None]])


@QUICK
@example(352, b"9")  # these end the process where pyarrow is asked for the size of a column
@example(720, b"e")
@given(st.integers(0, len(WHOLE_PARQUET) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_parquet_file_raises_nothing_else(scratch: Path, at: int, what: bytes) -> None:
    only_harness_errors(scratch / "a.parquet", WHOLE_PARQUET[:at] + what + WHOLE_PARQUET[at + len(what) :], "parquet")
