"""The benchmarks of the guidance interval and of EDM2's presets: what their intervals choose, what they cost, and each
from its YAML to its table with tiny random networks."""

import csv
import io
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from harness import benchmark as benchmarks
from harness import estimate, fetch_edm2, registry, resolve, run
from harness.analysis import published, tables
from harness.benchmark import Benchmark
from harness.diffusion.base import Diffusion, Step
from harness.diffusion.edm import karras_grid
from harness.diffusion.edm2_network import EDM2Config, EDM2Network
from harness.display import Display
from harness.errors import HarnessError
from harness.guidance.cfg import CFG
from harness.make_reference import make_reference
from harness.method import load_method
from harness.metrics.reference import named_file, read_reference
from harness.resolve import Resolved, ResolvedMethod, ResolvedMetric, ResolvedModel
from tests.metrics import tiny_home

FOLDER = benchmarks.resources("benchmarks")
DOCS = Path(__file__).parent.parent / "docs"
EDM2 = ("guidance-interval-table1", "guidance-interval-steps", "edm2-presets", "autoguidance-presets")
EDM_GRID = karras_grid(32, 0.002, 80, 7)
SDXL_GRID = karras_grid(32, 0.03, 14.6146, 3)


def guided(grid: list[float], **interval: Any) -> tuple[int, int] | None:
    """The first and last guided step, which have no gap between them."""
    cfg = CFG(scale=2, **interval)
    found = [i for i, sigma in enumerate(grid) if cfg.active(Step(i, len(grid), sigma, sigma))]
    assert found == list(range(found[0], found[-1] + 1))
    return found[0], found[-1]


# ---- intervals ----


def test_the_steps_of_table_1_are_those_of_the_printed_bounds() -> None:
    chosen = {
        label: tuple(spec.guidance["cfg"]["steps"])
        for label, spec in benchmarks.load(FOLDER / "guidance-interval-table1.yaml").methods.items()
        if "steps" in spec.guidance["cfg"]
    }
    assert chosen == {  # the two of XXL stand in the README of the authors' code
        "interval-2.0": (17, 22), "interval-2.9": (13, 19), "interval-3.2": (13, 19), "interval-2.1": (15, 21),
    }
    printed = {"interval-2.0": (0.19, 1.61), "interval-2.9": (0.6, 5), "interval-3.2": (0.6, 5)}
    printed["interval-2.1"] = (0.28, 2.9)
    for label, (first, last) in chosen.items():  # from the level where the first starts to that where the last ends
        ends = EDM_GRID[last + 1], EDM_GRID[first]
        assert [round(end, 2) for end in ends] == list(printed[label])
        as_printed = guided(EDM_GRID, sigma=printed[label])
        assert as_printed == ((16, 22) if label == "interval-2.1" else (first, last))


def test_the_interval_of_the_step_ablation() -> None:
    methods = benchmarks.load(FOLDER / "guidance-interval-steps.yaml").methods
    sigma = methods["interval-32-steps"].guidance["cfg"]["sigma"]
    found = {steps: guided(karras_grid(steps, 0.002, 80, 7), sigma=sigma) for steps in (16, 32, 64)}
    assert found == {16: (8, 10), 32: (15, 21), 64: (31, 44)}


# Of the printed bound: the level of the grid that it stands for, by index; None for no bound.
UPPER = {"hi-inf": None, "hi-8.389": 6, "interval-16": 10, "hi-4.242": 12, "hi-1.753": 18}
LOWER = {"lo-0": None, "interval-16": 26, "lo-0.998": 21, "lo-2.425": 16, "lo-3.724": 13}
PRINTED = {6: 8.39, 10: 5.42, 12: 4.24, 18: 1.75, 26: 0.28, 21: 1.00, 16: 2.42, 13: 3.72}


def test_all_ten_bounds_of_figure_8_choose_the_level_that_they_stand_for() -> None:
    methods = benchmarks.load(FOLDER / "guidance-interval-sdxl.yaml").methods
    assert {index: round(SDXL_GRID[index], 2) for index in PRINTED} == PRINTED
    for label, index in UPPER.items():
        assert guided(SDXL_GRID, **interval(methods[label])) == (0 if index is None else index, 25)
    for label, index in LOWER.items():
        assert guided(SDXL_GRID, **interval(methods[label])) == (10, 31 if index is None else index - 1)
    # As printed half of them would choose a step too many or too few.
    wrong = [v for i, v in PRINTED.items() if (v < SDXL_GRID[i])]
    assert sorted(wrong) == [0.28, 1.75, 2.42, 3.72, 4.24]


def interval(spec: benchmarks.MethodSpec) -> dict[str, Any]:
    return {"sigma": spec.guidance["cfg"]["sigma"]}


def counted(name: str) -> list[dict[str, Any]]:
    """`check`'s entry of each method on each of its models, none of which is here."""
    found = benchmarks.load(FOLDER / f"{name}.yaml")
    entries = []
    for label, spec in found.methods.items():
        sampler = {**found.sampler, **spec.sampler}
        method = ResolvedMethod(spec, load_method(guidance=spec.guidance, sampler=sampler), sampler, None, {})
        entries += [
            {"model": model, "method": label, **estimate.evaluations(None, found.models[model], method)}
            for model in found.models if method.runs_on(model)
        ]
    return entries


def test_the_evaluations_are_the_published_ones() -> None:
    theirs = published.rows("guidance-interval-nfe").set_index(["model", "method"])["value"].to_dict()
    entries = [*counted("guidance-interval-sdxl"), *counted("guidance-interval-table1")]
    found = {(entry["model"], entry["method"]): entry for entry in entries}
    assert {key: found[key]["nfe"] for key in theirs} == theirs
    assert found["edm2-s", "interval-2.1"]["by_network"] == {"main": 63, "guide": 14}
    assert len(found) == len(entries) == 8 + 11  # each method on its own models alone


@pytest.mark.parametrize("name", EDM2)
def test_the_page_says_what_the_benchmarks_cost(name: str) -> None:
    found, entries = benchmarks.load(FOLDER / f"{name}.yaml"), counted(name)
    metrics: dict[str, Any] = {
        metric: ResolvedMetric(metric, {}, registry.build("metric", metric, {}), {}, None)
        for metric, _ in map(benchmarks.named, found.metrics)
    }
    cost = estimate.cost(Resolved(found, {}, {}, {}, metrics, ()), dict.fromkeys(found.prompts, 50_000), entries, None)
    line = next(text for text in (DOCS / "benchmarks.md").read_text().splitlines() if text.startswith(f"| `{name}`"))
    cells = [cell.strip() for cell in line.split("|")]
    images, nfe, hours, disk = cells[cells.index(f"{cost['samples']:,}") :][:4]
    assert (images, nfe) == (f"{cost['samples']:,}", f"{cost['nfe']:,}")
    assert float(hours.replace(",", "")) == pytest.approx(cost["gpu_hours"], abs=0.06)
    assert float(disk.removesuffix(" GB").replace(",", "")) == pytest.approx(
        cost["images_gb"] + cost["features_gb"], abs=0.6
    )


def test_each_network_of_edm2_has_a_cost_of_its_own() -> None:
    spec = benchmarks.load(FOLDER / "guidance-interval-table1.yaml").models["edm2-xxl"]
    assert (estimate.assumed(spec), estimate.assumed(spec, "guide")) == (91.4, 1111.1)  # 100 / 1.094 and 100 / 0.090
    assert estimate.assumed(spec.model_copy(update={"weights": "mine"})) is None


@pytest.mark.parametrize("name", ["edm2-presets", "autoguidance-presets"])
def test_the_presets_are_the_published_ones(name: str) -> None:
    found = benchmarks.load(FOLDER / f"{name}.yaml")
    for label, spec in found.models.items():
        networks = [spec.weights, *(network.source for network in spec.networks.values())]
        assert tuple(networks) == fetch_edm2.preset(label.replace("edm2-", "edm2-img512-", 1))
    theirs = {  # weights stand in the labels of the methods
        (row["model"], row["method"]) for table in found.published for row in published.rows(table).to_dict("records")
        if "img64" not in row["model"]
    }
    assert {(model, label) for label, spec in found.methods.items() for model in spec.models or ()} == theirs
    for label, spec in found.methods.items():
        (_, parameters), = spec.guidance.items() if isinstance(spec.guidance, dict) else [("none", {"scale": 0})]
        assert label == "no-guidance" or float(label.rpartition("-")[2]) == parameters["scale"]


# ---- what such a file may not say ----


def survey(**change: Any) -> Resolved:
    content = {
        "name": "t", "methods": {"plain": {}, "cfg": {"models": ["b"], "guidance": {"cfg": {"scale": 2}}}},
        "models": {label: {"family": "stable_diffusion", "weights": f"no-{label}"} for label in "ab"},
        "prompts": {"one": {"set": "shapes", "category": "counting"}, "two": {"set": "shapes", "category": "colors"}},
    }
    return resolve.survey(benchmarks.parse(content | change, "t.yaml"), Path("t.yaml"))


def test_a_method_runs_on_its_own_models_alone() -> None:
    found = survey()
    assert [(label, found.methods[label].runs_on(model)) for label in ("plain", "cfg") for model in "ab"] == [
        ("plain", True), ("plain", True), ("cfg", False), ("cfg", True),
    ]
    with pytest.raises(HarnessError, match=r"methods\.plain\.models: no model 'c'"):
        survey(methods={"plain": {"models": ["c"]}})
    with pytest.raises(HarnessError, match=r"models\.b: no method runs on it"):
        survey(methods={"plain": {"models": ["a"]}})
    model = ResolvedModel(found.benchmark.models["a"], Path(), Diffusion, {}, {}, True)  # none is here
    cells = replace(found, models={"a": model, "b": model}).cells()
    assert [(cell.model, cell.method) for cell in cells if cell.prompts == "one"] == [
        ("a", "plain"), ("b", "plain"), ("b", "cfg"),
    ]


def test_what_others_are_compared_with_runs_where_they_do() -> None:
    cfg = {"guidance": {"cfg": {"scale": 2}}}
    said = r"method 'm' does not run on b, where methods run that are compared with it: add it to methods\.m\.models"
    for place, change in (
        (r"metrics\.ssim: against: ", {"metrics": [{"ssim": {"against": "m"}}]}),
        (r"tables\.0\.baseline: ", {"tables": [{"baseline": "m"}]}),
        (r"tables\.0\.baseline\.plain: ", {"tables": [{"baseline": {"plain": "m", "cfg": "m"}}]}),
    ):
        for models in (["a"], ["a", "b"]):
            methods = {"plain": {}, "cfg": cfg | {"models": ["a"]}, "m": {"models": models}}
            if models == ["a", "b"]:
                survey(methods=methods, **change)
                continue
            with pytest.raises(HarnessError, match=place + said) as caught:
                survey(methods=methods, **change)
            assert "baseline.cfg" not in str(caught.value)


def test_one_label_of_repeats_means_one_thing() -> None:
    one, two = {"all": {"best": ["one", "two"]}}, {"all": {"mean": ["one", "two"]}}
    survey(tables=[{"repeats": one}, {"repeats": {"all": {"best": ["two", "one"]}}}])
    with pytest.raises(HarnessError, match=r"tables\.1\.repeats\.all: is something else in tables\.0"):
        survey(tables=[{"repeats": one}, {"repeats": two}])


@pytest.mark.parametrize(
    ("repeats", "said"),
    [
        ({"all": {"best": ["one", "tow"]}}, "tables.0.repeats.all: no label 'tow' of prompts: did you mean 'two'"),
        ({"one": {"best": ["one", "two"]}}, "tables.0.repeats.one: is a label of prompts"),
        ({"all": {"mean": ["one", "same"]}}, "repeats.all: 'one' and 'same' have prompt 'counting-000' in common"),
    ],
)
def test_repeats_are_separate_selections(repeats: dict[str, Any], said: str) -> None:
    prompts = {
        "one": {"set": "shapes", "category": "counting"}, "two": {"set": "shapes", "category": "colors"},
        "same": {"set": "shapes", "category": "counting", "first": 3},
    }
    with pytest.raises(HarnessError, match=re.escape(said)):
        survey(prompts=prompts, tables=[{"repeats": repeats}])
    survey(prompts=prompts, tables=[{"repeats": {"all": {"mean": ["one", "two"]}}}])


# ---- from YAML to table ----


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine with metrics, the reference pickle and every EDM2 network of these benchmarks, all of them tiny."""
    here = tmp_path_factory.mktemp("machine")
    home = tiny_home.write(here / "weights")
    specs = [spec for name in EDM2 for spec in benchmarks.load(FOLDER / f"{name}.yaml").models.values()]
    sources = [source for spec in specs for source in (spec.weights, *(n.source for n in spec.networks.values()))]
    for seed, source in enumerate(dict.fromkeys(sources)):  # each of its own: equal models would be one
        write_network(here / source, 0 if "uncond" in source else 10, seed)
    (here / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for k in range(4):
        pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(here / "images" / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("HARNESS_WEIGHTS", str(home))
        content: dict[str, Any] = {"num_images": 4}
        for entry, metric, extractor in (("fid", "fid", "inception"), ("fd_dinov2", "fd-dinov2-edm2", "dinov2-edm2")):
            make_reference("tiny", here / "images", metric)
            made = read_reference(named_file("tiny", extractor))
            content[entry] = {"mu": made.mean, "sigma": made.covariance}
        (home / "edm2-img512-reference").mkdir()
        (home / "edm2-img512-reference" / "img512.pkl").write_bytes(pickle.dumps(content))
        yield here


def write_network(folder: Path, classes: int, seed: int) -> None:
    config = {"resolution": 8, "channels": 3, "classes": classes, "width": 8, "multipliers": [1], "blocks": 1,
              "attention": [], "uncertainty_width": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = EDM2Network(EDM2Config(**config))
    folder.mkdir()
    told = config | {"_class_name": "EDM2Network", "vae": None, "trained": False}
    (folder / "config.json").write_text(json.dumps(told))
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")


def small(path: Path) -> Benchmark:
    """Two seeds of each range, an eighth of the steps, float32, images of 8 pixels."""
    found = benchmarks.load(path)
    models = {
        label: spec.model_copy(update={"size": 8, "batch": 2, "dtype": "float32"})
        for label, spec in found.models.items()
    }
    methods = {}
    for label, spec in found.methods.items():
        steps = max(3, {**found.sampler, **spec.sampler}["steps"] // 8)  # of 2 none lies in an interval
        guidance = spec.guidance
        if isinstance(guidance, dict) and "steps" in guidance.get("cfg", {}):
            guidance = {"cfg": guidance["cfg"] | {"steps": [2, 2]}}
        methods[label] = spec.model_copy(update={"sampler": spec.sampler | {"steps": steps}, "guidance": guidance})
    return found.model_copy(update={"models": models, "methods": methods})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * ("preset" in name or name == EDM2[0])) for name in EDM2]
)
def test_a_benchmark_runs_from_its_file_to_its_table(name: str, machine: Path) -> None:
    benchmark = small(FOLDER / f"{name}.yaml")
    path = machine / f"{name}.yaml"
    path.write_text(yaml.safe_dump(benchmark.model_dump(mode="json", exclude_unset=True), sort_keys=False))
    with Display(quiet=True) as display:
        outcome = run.run(str(path), results=machine / "results", display=display, limit=2, workers=0)
    assert outcome.failures == []
    cells = {
        (model, method, prompts) for prompts in benchmark.prompts
        for method, spec in benchmark.methods.items() for model in spec.models or benchmark.models
    }
    assert {(r["model"], r["method"], r["prompts"]) for r in outcome.records} == cells
    assert {(r["n"], r["failed"]) for r in outcome.records} == {(2, 0)}
    assert set(outcome.rows["prompt_id"]) == {"0", "1", "50000", "50001", "100000", "100001"}

    best, mean = (tables.render(outcome, spec, "csv") for spec in outcome.specs)
    rows = list(csv.DictReader(io.StringIO(best)))
    theirs = [row for table in benchmark.published for row in published.rows(table).to_dict("records")]
    places = {(model, method) for model, method, _ in cells} | {(row["model"], row["method"]) for row in theirs}
    assert sorted((row["model"], row["method"]) for row in rows) == sorted(places)
    values = {(r["model"], r["method"], r["metric"], r["prompts"]): r["value"] for r in outcome.records}
    for row in rows:
        three = [values.get((row["model"], row["method"], "fid", prompts)) for prompts in benchmark.prompts]
        assert row["fid"] == ("" if None in three else repr(min(three)))
    printed = {(r["model"], r["method"], r["metric"]): r["value"] for r in theirs}
    shown = {(r["model"], r["method"], "fid"): float(r["fid:published"]) for r in rows if r["fid:published"]}
    assert shown == {key: value for key, value in printed.items() if key[2] == "fid"}
    assert {row["model"] for row in csv.DictReader(io.StringIO(mean))} == {model for model, _, _ in cells}
