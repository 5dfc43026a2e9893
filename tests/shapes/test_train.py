"""Training: what resumes is what was never broken off, and the finished parts are in the libraries' own formats."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.shapes import loop
from harness.shapes.data import decode_facts, encode_facts, encode_scene, load_world, truth_table
from harness.shapes.grammar import describe, prompt_captions, sample_scene
from harness.shapes.loop import Draws, Settings, Stage, checkpoint_path, run_stage
from harness.shapes.tokenizer import WORDS, make_tokenizer, tokenize
from harness.shapes.train import finish, stage_class, train
from harness.shapes.train_text import swaps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny training: every stage, a step or two, 200 scenes."""
    out = tmp_path_factory.mktemp("train")
    torch.set_num_threads(1)
    few = dict.fromkeys(("autoencoder", "text", "unet", "vision"), 2)
    events: list[dict[str, Any]] = []
    train(out, processes=1, steps=few, batch=few | {"text": 16, "vision": 4}, scenes=200, progress=events.append)
    assert [e["stage"] for e in events] == ["autoencoder", "text", "unet", "vision"]
    assert all(np.isfinite(e["loss"]) and e["samples_per_s"] > 0 for e in events)
    return out


def digest(path: Path) -> str:
    """SHA-256 over every tensor of a checkpoint."""
    sha = hashlib.sha256()

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key])
        elif isinstance(value, list):
            for item in value:
                walk(item)
        else:
            sha.update(repr(value).encode())

    walk(torch.load(path, weights_only=True))
    return sha.hexdigest()


@pytest.mark.parametrize("stage", ["autoencoder", "text", "unet", "vision"])
def test_a_break_changes_nothing(stage: str, folder: Path, tmp_path: Path) -> None:
    """50 steps with a break after 23 and 50 without give the same weights, optimizer and average, bit for bit."""
    steps, half = (50, 23) if stage in ("autoencoder", "text") else (14, 6)
    options: dict[str, Any] = {"data": str(folder / "data"), "scenes": 200, "batch": 16 if stage == "text" else 2}
    if stage in ("unet", "vision"):
        options["parts"] = str(folder / "parts")
    quiet: Any = lambda event: None  # noqa: E731
    whole = Settings(str(tmp_path / "whole"), steps, processes=1, options=options)
    broken = Settings(str(tmp_path / "broken"), steps, processes=1, options=options)
    run_stage(stage_class(stage), whole, quiet)
    broken.stop_after = half
    run_stage(stage_class(stage), broken, quiet)
    assert torch.load(checkpoint_path(broken, stage), weights_only=True)["step"] == half
    broken.stop_after = None
    run_stage(stage_class(stage), broken, quiet)
    assert digest(checkpoint_path(whole, stage)) == digest(checkpoint_path(broken, stage))


class Toy(Stage):
    """A stage without data."""

    name = "toy"

    def __init__(self, rank: int, device: str) -> None:
        self.model = torch.nn.Linear(2, 1)

    def loss(self, draws: Draws, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        return self.model(torch.randn(4, 2, generator=draws.torch)).square().mean(), {}

    def samples(self) -> int:
        return 4


def test_a_process_of_several_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of one of several processes on CPUs has an index, cpu:0."""
    accelerator = SimpleNamespace(device=torch.device("cpu:0"), end_training=lambda: None)
    monkeypatch.setattr(loop, "Accelerator", lambda cpu: accelerator)
    quiet: Any = lambda event: None  # noqa: E731
    whole, broken = (Settings(str(tmp_path / name), 2, processes=1) for name in ("whole", "broken"))
    run_stage(Toy, whole, quiet)
    broken.stop_after = 1
    run_stage(Toy, broken, quiet)
    run_stage(Toy, broken, quiet)
    assert digest(checkpoint_path(whole, "toy")) == digest(checkpoint_path(broken, "toy"))


def test_finished_parts_load(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPProcessor

    weights = folder / "weights"
    pipe = StableDiffusionPipeline.from_pretrained(weights / "shapes-sd")
    assert pipe.unet.config.cross_attention_dim == 128
    clip = CLIPModel.from_pretrained(weights / "shapes-clip")
    CLIPProcessor.from_pretrained(weights / "shapes-clip")
    ids = torch.tensor(tokenize(["a photo of a red star left of a ring"]))
    with torch.no_grad():
        states = pipe.text_encoder.eval()(ids)[0], clip.text_model.eval()(input_ids=ids).last_hidden_state
    assert torch.equal(states[0], states[1])  # one text tower for both
    assert (weights / "figures.json").exists()


def test_training_continues_from_weights(folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    options = {"data": str(folder / "data"), "scenes": 200, "batch": 2, "parts": str(folder / "parts")}
    start = str(folder / "weights" / "shapes-sd" / "unet")
    settings = Settings(str(tmp_path), 1, processes=1, options=options | {"init": start})
    run_stage(stage_class("unet"), settings, lambda event: None)
    found = finish("unet", settings, tmp_path / "parts")
    assert found["steps"] == 1
    old, new = (UNet2DConditionModel.from_pretrained(p).state_dict() for p in (start, tmp_path / "parts" / "unet"))
    gap = max(float((old[k].float() - new[k].float()).abs().max()) for k in old)
    assert 0 < gap < 1e-3  # one step of the warm-up away


def test_bad_requests_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown training stage 'unett'; known: autoencoder, text, unet, vision"):
        train(tmp_path, stages=["unett"])
    with pytest.raises(ValueError, match="multiple of 5000"):
        load_world(tmp_path, 5001)
    with pytest.raises(ValueError, match="one process"):
        train(tmp_path, device="cuda", processes=2)
    with pytest.raises(FileNotFoundError, match="train the earlier stages first"):
        train(tmp_path, stages=["unet"], scenes=20, processes=1)


def test_tokenizer() -> None:
    tokenizer = make_tokenizer()
    assert len(tokenizer) == 638
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    for held in (True, False):
        rows = tokenize([c.text for _, c in prompt_captions(held)])
        assert {len(r) for r in rows} == {24}
        assert all(r[20] == tokenizer.eos_token_id for r in rows)  # room for the end and three paddings
    assert tokenizer("any zebra: 7 ü").input_ids[0] == tokenizer.bos_token_id


def test_facts_and_truth_table() -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(60)]
    captions = [describe(s, rng) for s in scenes]
    facts = np.stack([encode_facts(c) for c in captions])
    for caption, fact in zip(captions, facts, strict=True):
        again = decode_facts(fact)
        assert (again.groups, again.background) == (caption.groups, caption.background)
        for miss in swaps(fact):
            assert sorted(miss[0:15:5]) == sorted(fact[0:15:5])  # the same shapes
    table = truth_table(np.stack([encode_scene(s) for s in scenes]), facts)
    assert table.diagonal().all()
    assert table.mean() < 0.2


@pytest.mark.long
def test_two_processes_resume_too(folder: Path, tmp_path: Path) -> None:
    """Data-parallel on two CPU processes, broken and unbroken: the same weights."""
    options: dict[str, Any] = {"data": str(folder / "data"), "scenes": 200, "batch": 2}
    whole = Settings(str(tmp_path / "whole"), 6, processes=2, options=options)
    broken = Settings(str(tmp_path / "broken"), 6, processes=2, options=options)
    run_stage(stage_class("autoencoder"), whole)
    broken.stop_after = 4
    run_stage(stage_class("autoencoder"), broken)
    broken.stop_after = None
    run_stage(stage_class("autoencoder"), broken)
    assert digest(checkpoint_path(whole, "autoencoder")) == digest(checkpoint_path(broken, "autoencoder"))
