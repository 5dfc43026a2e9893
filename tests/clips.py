"""A model of clips that costs nothing: it knows the orbit that its prompt's picture begins, and adds noise."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from harness.diffusion.base import Conditioning, Diffusion, Sampler, Schedule
from harness.prompts import Prompt
from tests.fakes import FakeSchedule

FRAMES = 4


class Turntable(Diffusion):
    """Frame i is the picture of azimuth 360 (i + 1) / 4, found by its number in the folder, and some noise."""

    family = "turntable"
    native = "epsilon"
    samplers = ("euler",)
    reads_pictures = True
    trained = False

    @classmethod
    def frames_of(cls, folder: Path) -> int:
        return FRAMES

    @classmethod
    def load(cls, weights: str, *, size: int | None = None, device: str = "cpu", **_: Any) -> "Turntable":  # type: ignore[override]
        model = cls()
        model.device, model.dtype = torch.device(device), torch.float32
        model.latent_shape = (FRAMES, 3, size or 32, size or 32)
        return model

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        clips = torch.stack([self._clip(prompt) for prompt in prompts])
        return Conditioning({"clip": clips}, {"clip": torch.ones_like(clips)}, torch.arange(len(prompts)))

    def _clip(self, prompt: Prompt) -> Tensor:
        if "cursed" in prompt.text:
            raise ValueError("this object is cursed")
        assert prompt.image is not None
        assert Path(prompt.image).is_absolute()
        numbers = {int(re.findall(r"\d+", p.stem)[0]): p for p in Path(prompt.image).resolve().parent.iterdir()}
        around = [numbers[round((i + 1) / FRAMES * len(numbers)) % len(numbers)] for i in range(FRAMES)]
        pictures = [np.asarray(Image.open(p).convert("RGB").resize(self.latent_shape[:1:-1])) for p in around]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        return conditioning.tensors["clip"] * 2

    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        return 0.6, 0.8

    def schedule(self, sampler: Sampler) -> Schedule:
        return FakeSchedule(sampler.steps)

    def decode(self, latents: Tensor) -> np.ndarray:
        pixels: np.ndarray = (self.decode_differentiable(latents) * 255).round().to(torch.uint8).numpy()
        return pixels

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        return (latents / 2 + 0.5).clamp(0, 1).permute(0, 1, 3, 4, 2)

    def flops_per_evaluation(self, network: str = "main") -> float:
        return 1000.0


class Photograph(Turntable):
    """The last of these frames alone, a still."""

    family = "photograph"

    @classmethod
    def frames_of(cls, folder: Path) -> int:
        return 1

    @classmethod
    def load(cls, weights: str, **given: Any) -> "Photograph":  # type: ignore[override]
        model = super().load(weights, **given)
        model.latent_shape = (1, *model.latent_shape[1:])
        assert isinstance(model, cls)
        return model

    def _clip(self, prompt: Prompt) -> Tensor:
        return super()._clip(prompt)[-1:]


def turntable_weights(folder: Path) -> Path:
    """What a benchmark needs of a model's folder."""
    folder.mkdir(parents=True)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    return folder
