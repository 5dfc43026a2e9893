"""The benchmark file: what is accepted, and what a person is told about what is not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import benchmark
from harness.errors import HarnessError

GOOD: dict[str, Any] = {
    "name": "example",
    "models": {"sd": {"family": "stable_diffusion", "weights": "builtin:shapes-sd"}},
    "prompts": {"shapes": {"set": "shapes"}},
    "methods": {"cfg-5": {"guidance": {"cfg": {"scale": 5}}}},
    "metrics": ["geneval-shapes"],
}


def message(change: dict[str, Any]) -> str:
    with pytest.raises(HarnessError) as caught:
        benchmark.parse(GOOD | change, "file.yaml")
    return str(caught.value)


def networks(given: dict[str, Any]) -> dict[str, Any]:
    return {"models": {"sd": {"family": "x", "weights": "y", "networks": given}}}


def test_a_good_file_is_accepted() -> None:
    parsed = benchmark.parse(GOOD, "file.yaml")
    assert parsed.methods["cfg-5"].guidance == {"cfg": {"scale": 5}}
    assert parsed.models["sd"].batch == 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"metircs": []}, ["metircs", "did you mean 'metrics'"]),
        ({"models": {"sd": {"family": "x", "weights": "y", "bacth": 3}}}, ["models.sd.bacth", "'batch'"]),
        ({"models": {"sd": {"family": "x", "weights": "y", "batch": 0}}}, ["models.sd.batch", "greater than"]),
        ({"models": {"sd": {"family": "x", "weights": "y", "dtype": "int8"}}}, ["models.sd.dtype", "float32", "int8"]),
        (networks({"weak": {}}), ["models.sd.networks.weak: give 'weights'"]),
        (networks({"weak": {"lora": "a", "weights": "b"}}), ["models.sd.networks.weak", "one of the two"]),
        (networks({"weak": {"lroa": "a"}}), ["models.sd.networks.weak.lroa: unknown key", "did you mean 'lora'"]),
        (networks({"main": {"lora": "a"}}), ["models.sd.networks", "'main' cannot name a network"]),
        (networks({"a.b": {"lora": "a"}}), ["models.sd.networks", "'a.b' cannot name a network"]),
        ({"models": {"a/../b": {"family": "x", "weights": "y"}}}, ["a/../b", "cannot name a folder"]),
        ({"name": "../up"}, ["name", "cannot name a folder"]),
        ({"prompts": {}}, ["prompts", "at least 1"]),
        ({"prompts": {"p": {"set": "s", "first": 0}}}, ["prompts.p.first"]),
        ({"prompts": {"p": {"set": "s", "first": 3, "sample": 3}}}, ["prompts.p", "not both"]),
        ({"seeds": [0, 1, 0]}, ["seeds", "seed 0 is listed twice"]),
        ({"seeds": ["one"]}, ["seeds.0", "one"]),
        ({"seeds": [-1]}, ["seeds.0", "greater than or equal to 0, got -1"]),
        ({"seeds": [0, 2**63]}, ["seeds.1", f"less than or equal to {2**63 - 1}, got {2**63}"]),
        ({"seeding": "random"}, ["seeding", "identity", "random"]),
        ({"metrics": ["a", "a"]}, ["metric 'a' is listed twice"]),
        ({"methods": {"m": {"gidance": "cfg"}}}, ["methods.m.gidance", "'guidance'"]),
        ({"methods": {"cfg-{v}": {"grid": {"w": [1]}, "guidance": "none"}}}, ["methods.cfg-{v}", "'v'"]),
        ({"methods": {"cfg": {"grid": {"w": [1, 2]}, "guidance": "none"}}}, ["two methods are called 'cfg'"]),
        ({"tables": [{"rows": ["metod"]}]}, ["tables.0.rows.0", "method"]),
    ],
)
def test_the_message_names_the_key_and_what_was_expected(change: dict[str, Any], expected: list[str]) -> None:
    text = message(change)
    assert text.startswith("file.yaml: ")
    for part in expected:
        assert part in text


def test_a_missing_key_is_named() -> None:
    with pytest.raises(HarnessError, match=r"file\.yaml: models: this key is required"):
        benchmark.parse({key: value for key, value in GOOD.items() if key != "models"}, "file.yaml")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "seeds: [0]\nseeds: [1]\n")
    with pytest.raises(HarnessError, match="'seeds' stands here twice"):
        benchmark.load(path)


@pytest.mark.parametrize("text", ["a: [1", "just words", "", "- 1\n- 2\n"])
def test_what_is_no_benchmark_at_all_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(HarnessError, match=r"bad\.yaml"):
        benchmark.load(path)


def test_a_sweep_becomes_one_method_a_value() -> None:
    sweep = {"cfg-{w}": {"grid": {"w": [1, 2.5]}, "guidance": {"cfg": {"scale": "{w}"}}}}
    methods = benchmark.parse(GOOD | {"methods": sweep}, "file.yaml").methods
    assert {label: method.guidance for label, method in methods.items()} == {
        "cfg-1": {"cfg": {"scale": 1}}, "cfg-2.5": {"cfg": {"scale": 2.5}},
    }


def test_an_unknown_benchmark_gets_the_nearest_names() -> None:
    with pytest.raises(HarnessError, match="did you mean 'shapes'"):
        benchmark.find("shpaes")


def test_limit_keeps_the_selection_it_narrows() -> None:
    parsed = benchmark.parse(
        GOOD | {"prompts": {"a": {"set": "s"}, "b": {"set": "s", "sample": 50}, "c": {"set": "s", "first": 2}}}, "f"
    ).limited(4)
    assert (parsed.prompts["a"].first, parsed.prompts["b"].sample, parsed.prompts["c"].first) == (4, 4, 2)


def test_a_benchmark_further_down_keeps_its_folder_where_its_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("one.yaml", "studies/one.yaml", "studies/two.yaml"):
        (tmp_path / "benchmarks" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "benchmarks" / place).touch()
    for name, place in {"one": "one", "studies/one": "studies/one", "two": "studies/two"}.items():
        assert benchmark.find(name) == Path(f"benchmarks/{place}.yaml")
    assert benchmark.find("studies/shapes-noise") != benchmark.find("shapes-noise")
