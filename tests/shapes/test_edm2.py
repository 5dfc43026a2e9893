"""The class-conditional shapes: the classes, EDM2's loss, training that resumes, the networks that ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness import benchmark, check, run, weights
from harness.diffusion.edm2_network import EDM2Config, EDM2Network
from harness.display import Display
from harness.errors import HarnessError
from harness.metrics.reference import find_reference, read_reference
from harness.shapes import train_edm2
from harness.shapes.classes import CLASSES, class_images, class_text, class_truth
from harness.shapes.detector import detect, judge
from harness.shapes.loop import Settings, checkpoint_path
from harness.shapes.train_edm2 import EDM2Stage, edm2_loss, make_network, train
from tests.command import harness
from tests.shapes.test_train import digest

BOTH = ("shapes-edm2", "shapes-edm2-guide")


def test_the_renders_of_a_class_show_it() -> None:
    """Two of each class; the detector errs on at most one (it promises 98 %), and on every one under another name."""
    found = [(label, detect(image)) for label, image in class_images(72, 5)]
    assert [label for label, _ in found] == [*range(36)] * 2
    assert sum(judge(class_truth(label), things)[0] for label, things in found) >= 71
    for change in (1, 6):  # the next shape, the next colour
        assert not any(judge(class_truth((label + change) % 36), things)[0] for label, things in found)
    assert (class_text(0), class_text(35), len(set(CLASSES))) == ("red circles", "orange rings", 36)


@torch.no_grad()
def test_loss_is_the_formula() -> None:
    """Eqs. 14, 15 and 21 by hand, in float64, on the network's own output; 1e-5 is float32's rounding."""
    torch.manual_seed(0)
    network = EDM2Network(EDM2Config(8, 4, 3, 8, (1,), blocks=1, attention=(), head_width=8, uncertainty_width=8))
    torch.nn.init.constant_(network.out_gain, 0.7)
    network.eval()
    x, noise, labels = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8), torch.eye(3)[[0, 1, 2, 0, 1]]
    sigma = torch.tensor([0.01, 0.3, 0.67, 2.0, 40.0])
    found = edm2_loss(network, x, labels, sigma, noise)
    for i, s in enumerate(sigma.tolist()):
        noisy = x[i : i + 1] + s * noise[i : i + 1]
        denoised = network(noisy, sigma[i : i + 1], labels[i : i + 1])
        mse = float((denoised - x[i : i + 1]).double().pow(2).mean())
        u = float(network.uncertainty(sigma[i : i + 1]))
        assert float(found[i]) == pytest.approx((s**2 + 0.25) / (0.5 * s) ** 2 * mse / np.exp(u) + u, rel=1e-5)


def test_the_average_is_the_power_function() -> None:
    """The shares that each step keeps, multiplied out, are weights t^6.94 (Eq. 127), whose relative width is 0.10."""
    steps = 2000
    stage = EDM2Stage.__new__(EDM2Stage)
    share = np.zeros(steps)
    for t in range(steps):
        share *= stage.keep(t)
        share[t] = 1 - stage.keep(t)
    t = (np.arange(steps) + 0.5) / steps
    mean = (share * t).sum()
    assert np.sqrt((share * (t - mean) ** 2).sum()) == pytest.approx(0.10, abs=1e-3)
    assert (stage.rate(1_999, 9), stage.rate(8_000, 9)) == (1e-2, pytest.approx(5e-3))


def test_a_break_changes_nothing(tmp_path: Path) -> None:
    """Four steps with a break after two and four without: the same weights, optimizer and average, bit for bit."""
    quiet: Any = lambda event: None  # noqa: E731
    torch.set_num_threads(1)
    same: dict[str, Any] = {"processes": 1, "batch": 4, "images": 72, "progress": quiet}
    figures = train(tmp_path / "whole", steps=dict.fromkeys(BOTH, 4), **same)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data").symlink_to(tmp_path / "whole" / "data")
    train(tmp_path / "broken", steps=dict.fromkeys(BOTH, 4), stop_after=2, **same)
    train(tmp_path / "broken", steps=dict.fromkeys(BOTH, 4), **same)
    for name in BOTH:
        whole, broken = (checkpoint_path(Settings(str(tmp_path / part / "checkpoints"), 4), name)
                         for part in ("whole", "broken"))
        assert digest(whole) == digest(broken)
        assert figures[name]["steps"] == 4
        folder = tmp_path / "whole" / "weights" / name
        config = json.loads((folder / "config.json").read_text())
        assert config["classes"] == (0 if "guide" in name else 36)
        tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
        assert tensors.keys() == make_network(name).state_dict().keys()
        assert {value.dtype for value in tensors.values()} == {torch.float16}


def test_a_batch_must_be_divided_among_the_processes(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="a batch of 64 cannot be divided among 3 processes"):
        train(tmp_path / "run", processes=3)
    assert not (tmp_path / "run").exists()


def test_a_stopped_export_over_a_network_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never the old settings beside new weights."""
    network = make_network("shapes-edm2-guide")
    train_edm2.export(network, tmp_path, [0.0] * 4, [1.0] * 4)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}

    def full(path: Path, data: bytes) -> None:
        raise HarnessError(f"{path}: the disk is full")

    monkeypatch.setattr(train_edm2, "write_atomic", full)
    with pytest.raises(HarnessError, match="full"):
        train_edm2.export(network, tmp_path, [0.0] * 4, [2.0] * 4)
    assert not (tmp_path / "config.json").exists()


def test_measuring_what_ships_asks_nothing_of_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness import cli
    from harness.shapes import evaluate

    monkeypatch.setattr(cli, "_devices", lambda device, processes: None)
    for name in ("evaluate", "evaluate_clip"):
        monkeypatch.setattr(evaluate, name, lambda **_: {})
    code, said, _ = harness(capsys, "train", "shapes", "--evaluate", "--device", "cuda", "--processes", "2")
    assert (code, json.loads(said)) == (0, {"held_out": {}, "seen": {}, "shapes_clip": {}})
    for given in (["shapes"], ["shapes-edm2"]):
        code, _, errors = harness(capsys, "train", *given, "--device", "cuda", "--processes", "2")
        assert code == 2
        assert "in one process, not in 2" in errors


def test_the_reference_that_ships_is_of_fresh_renders() -> None:
    """Moments of 18,000 renders: those of 180 others lie nearer than those of half of the classes."""
    from harness.frechet import frechet_distance_of
    from harness.metrics import clip

    reference = read_reference(find_reference("builtin:shapes-classes", "shapes-clip", "fd-shapes-clip"))
    assert (reference.count, reference.mean.shape, reference.features) == (18_000, (128,), None)
    features = clip.opened(clip.locate("builtin:shapes-clip"), "cpu").images(
        np.stack([image for _, image in class_images(180, 6)])
    ).numpy()
    near = frechet_distance_of(features, reference.mean, reference.covariance)
    far = frechet_distance_of(features[np.arange(180) % 36 < 18], reference.mean, reference.covariance)
    assert near < 0.5 * far


def test_the_networks_that_ship_draw_their_classes() -> None:
    """12 images of 16 Heun steps; about 0.85 are right, and by chance fewer than 1 in 36."""
    from harness.diffusion.edm2 import EDM2
    from harness.method import load_method
    from harness.prompts import Prompt

    size = sum(f.stat().st_size for name in BOTH for f in weights.resolve(f"builtin:{name}").glob("*"))
    assert size <= 2 * 2**20
    model = EDM2.load("builtin:shapes-edm2", networks={"guide": {"weights": "builtin:shapes-edm2-guide"}})
    method = load_method(guidance={"cfg": {"scale": 2, "steps": [9, 15]}}, sampler={"name": "heun", "steps": 16})
    labels = [3 * i for i in range(12)]
    prompts = [Prompt(class_text(label), class_text(label), class_label=label) for label in labels]
    images = method(model, prompts, 0).images[:, 0]
    right = [judge(class_truth(label), detect(image))[0] for label, image in zip(labels, images, strict=True)]
    assert sum(right) >= 8


def test_the_demo_runs_from_its_file_to_its_table(tmp_path: Path) -> None:
    """Two images of three of its rows. An image costs 31 evaluations, and two more a guided step (one in the last)."""
    cost = check.check("shapes-edm2")["cost"]
    assert (cost["samples"], cost["nfe"]) == (2520, 360 * (31 + 3 * 62 + 37 + 44 + 42))
    demo = yaml.safe_load(benchmark.find("shapes-edm2").read_text())
    kept = ("no-guidance", "cfg-2-8-10", "cfg-3-10-15")
    demo["methods"] = {name: spec for name, spec in demo["methods"].items() if name in kept}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(demo, sort_keys=False))
    with Display(quiet=True) as display:
        outcome = run.run(str(tmp_path / "demo.yaml"), results=tmp_path, display=display, limit=2, workers=0)
    assert outcome.failures == []
    assert {record["method"]: record["nfe"] for record in outcome.records} == dict(zip(kept, (31, 37, 42), strict=True))
    assert {record["metric"] for record in outcome.records} == {"geneval-shapes", "fd-shapes-clip"}
    assert all(record["n"] == 2 for record in outcome.records if record["group"] is None)
