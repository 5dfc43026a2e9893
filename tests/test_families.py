"""Every family through `harness run`: its checkpoint's own layout, all existing stages, two prompts, one process."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from harness import benchmark
from harness.resolve import resolve
from harness.store import Store
from tests.command import BRIGHTNESS, harness
from tests.tiny import tiny_lora, tiny_stable_diffusion, tiny_stable_diffusion_xl

STEPS = 2
SETTINGS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "sd1": ("stable_diffusion", tiny_stable_diffusion, "ddim"),
    "sd2": ("stable_diffusion", lambda folder: tiny_stable_diffusion(folder, "v_prediction"), "ddim"),
    "xl": ("stable_diffusion_xl", tiny_stable_diffusion_xl, "dpmsolver++"),
    "xl-turbo": ("stable_diffusion_xl", lambda folder: tiny_stable_diffusion_xl(folder, turbo=True), "euler"),
}
CFG = {"cfg": {"scale": 3}}
METHODS: dict[str, dict[str, Any]] = {
    "no-guidance": {"guidance": "none"},
    "cfg": {"guidance": CFG},
    "nlg": {"noise": {"nlg": {"steps": 3}}},
    "stable": {"noise": {"inversion_stability": {"candidates": 2}}, "guidance": CFG},
    "optimised": {"noise": {"noise_optimisation": {"steps": 2}}, "guidance": CFG},
    "diffused": {
        "noise": {"noise_diffusion": {"rounds": 1, "candidates": 3}}, "guidance": CFG, "judge": "clipscore-shapes",
    },
    "refined": {"noise": {"noise_refine": {"network": "other"}}},
    "best": {"noise": {"best_of_n": {"candidates": 2}}, "guidance": CFG, "judge": "mine_too:Brightness"},
    "searched": {
        "noise": {"zero_order_search": {"rounds": 1, "neighbours": 2}}, "guidance": CFG, "judge": "clipscore-shapes",
    },
    "pag": {"guidance": {"pag": {"scale": 3, "cfg_scale": 3}}},
    "auto": {"guidance": {"autoguidance": {"scale": 2, "network": "weak"}}},
    "auto-lora": {"guidance": {"autoguidance": {"scale": 2, "network": "other"}}},
}
NFE = {  # docs/methods.md, with T = 2
    "no-guidance": {"main": 2}, "cfg": {"main": 4}, "nlg": {"main": 2 * 3 + 2}, "stable": {"main": 2 * 2 * (2 + 1)},
    "optimised": {"main": 2 * 2 * (2 + 1)}, "diffused": {"main": 2 * 4}, "refined": {"main": 2, "other": 1},
    "best": {"main": 2 * 4}, "searched": {"main": 3 * 4},
    "pag": {"main": 6}, "auto": {"main": 2, "weak": 2}, "auto-lora": {"main": 2, "other": 2},
}


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's `mine_too` is its own."""
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_too", raising=False)


def write(folder: Path, model: dict[str, Any], methods: dict[str, Any], solver: str = "ddim") -> str:
    (folder / "words.txt").write_text("a red ring\ntwo blue stars\n")
    (folder / "mine_too.py").write_text(BRIGHTNESS)
    path = folder / "family.yaml"
    content = {
        "name": "family", "models": {"model": model}, "prompts": {"words": {"set": "words", "path": "words.txt"}},
        "sampler": {"name": solver, "steps": STEPS, "spacing": "trailing"}, "methods": methods,
        "metrics": ["mine_too:Brightness"],
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.mark.parametrize(
    ("name", "dtype"), [("sd1", "float32"), ("sd2", "bfloat16"), ("xl", "float32"), ("xl-turbo", "bfloat16")]
)
def test_a_family_runs_every_method(
    name: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, make, solver = SETTINGS[name]
    weights = make(tmp_path / "weights")
    networks = {"weak": {"weights": str(weights)}, "other": {"lora": str(tiny_lora(tmp_path / "lora", weights))}}
    model = {"family": family, "weights": str(weights), "dtype": dtype, "batch": 2, "networks": networks}
    path = write(tmp_path, model, METHODS, solver)

    code, said, errors = harness(capsys, "check", path, "--json")
    assert code == 0, errors
    costs = {entry["method"]: entry["nfe"] for entry in json.loads(said)["methods"]}
    assert costs == {method: sum(counts.values()) for method, counts in NFE.items()}

    code, _, errors = harness(capsys, "run", path, "--workers", "0", "--results", str(tmp_path / "runs"))
    assert code == 0, errors
    store = Store(tmp_path / "runs" / "family")
    images: dict[str, np.ndarray] = {}
    for part in store.parts("images"):
        rows, made = store.read_images(part)
        assert [row["error"] for row in rows] == [None, None]
        assert [json.loads(row["nfe_by_network"]) for row in rows] == [NFE[part.method]] * 2
        assert all(row["flops"] > 0 and row["dtype"] == dtype for row in rows)
        assert all(image is not None and image.shape == (1, 64, 64, 3) and image.std() > 5 for image in made)
        images[part.method] = np.stack([image for image in made if image is not None])
    assert images.keys() == METHODS.keys()
    for method in ("cfg", "nlg", "auto-lora", "refined"):
        assert (images[method] != images["no-guidance"]).mean() > 0.1, method
    # A network guided by itself: w + 2 * (c - w) with w = c.
    np.testing.assert_array_equal(images["auto"], images["no-guidance"])


@pytest.mark.parametrize(
    ("name", "dtype"), [("sd1", "bfloat16"), ("sd2", "float32"), ("xl", "bfloat16"), ("xl-turbo", "float32")]
)
def test_a_family_generates_in_the_other_dtype_too(
    name: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, make, solver = SETTINGS[name]
    model = {"family": family, "weights": str(make(tmp_path / "weights")), "dtype": dtype, "batch": 2}
    path = write(tmp_path, model, {"cfg": METHODS["cfg"]}, solver)
    code, _, errors = harness(capsys, "run", path, "--workers", "0", "--results", str(tmp_path / "runs"))
    assert code == 0, errors
    rows = Store(tmp_path / "runs" / "family").read("images", columns=["dtype", "nfe", "error"])
    assert rows[["dtype", "nfe"]].to_numpy().tolist() == [[dtype, 4]] * 2
    assert rows["error"].isna().all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"family": "stable_diffusion"}, "use 'family: stable_diffusion_xl'"),
        ({"networks": {"weak": {"weights": "./nowhere"}}}, "models.model.networks.weak: weights './nowhere'"),
        ({"networks": {"weak": {"lora": "."}}}, "models.model.networks.weak: "),
    ],
)
def test_what_a_model_block_cannot_mean_is_said(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tiny_stable_diffusion_xl(tmp_path / "weights")
    model = {"family": "stable_diffusion_xl", "weights": str(weights)} | change
    path = write(tmp_path, model, {"plain": {}})
    code, _, said = harness(capsys, "run", path, "--workers", "0", "--results", str(tmp_path / "runs"))
    assert code == 2
    assert expected in said.replace("\n", " ")


def test_layers_that_a_model_does_not_have_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"family": "stable_diffusion", "weights": str(tiny_stable_diffusion(tmp_path / "weights"))}
    methods = {"pag": {"guidance": {"pag": {"scale": 3, "layers": ["mid", "down_blocks.0"]}}}}
    code, _, said = harness(capsys, "check", write(tmp_path, model, methods))
    assert code == 2
    assert "methods.pag: with models.model: no self-attention under layer 'down_blocks.0'" in said


def test_a_models_samples_are_those_of_its_networks_files(tmp_path: Path) -> None:
    weights = tiny_stable_diffusion(tmp_path / "weights")
    lora = tiny_lora(tmp_path / "lora", weights)
    model = {"family": "stable_diffusion", "weights": str(weights)}

    def identity(**networks: Any) -> dict[str, Any]:
        path = Path(write(tmp_path, model | {"networks": networks}, {"plain": {}}))
        return resolve(benchmark.load(path), path).models["model"].identity

    plain, first = identity(), identity(refiner={"lora": str(lora)})
    assert plain["networks"] == {}
    shutil.copytree(lora, tmp_path / "elsewhere")
    assert identity(refiner={"lora": str(tmp_path / "elsewhere")}) == first
    tiny_lora(tmp_path / "lora", weights, seed=9)
    assert identity(refiner={"lora": str(lora)}) != first != plain


@pytest.mark.parametrize("name", ["stable_diffusion_xl", "pag", "autoguidance"])
def test_list_names_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = "models" if name == "stable_diffusion_xl" else "methods"
    code, said, _ = harness(capsys, "list", kind, "--json")
    assert code == 0
    entry = next(entry for entry in json.loads(said) if entry["name"] == name)
    assert entry["about"]
    if name == "autoguidance":
        assert list(entry["parameters"]) == ["scale", "network", "sigma", "steps", "fraction"]
