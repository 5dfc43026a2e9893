"""What the rest of the house may ask of a diffusion model, whatever its family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.levels import from_ratio, move
from harness.prompts import Prompt


@dataclass(frozen=True)
class Sampler:
    """A solver and its grid. `name` and `spacing` are checked by the family that samples with it.

    The others are those of the EDM sampler (`harness.diffusion.edm`); None is the family's own value, and with a
    Stable Diffusion family the solver of `schedules.py`, which has none of them.

    Attributes:
        rho: how strongly the noise levels crowd at the clean end; above 0.
        sigma_min: the lowest noise level sigma/alpha before 0.
        sigma_max: the highest.
        precision: of the solver's state.
    """

    name: str = "ddim"
    steps: int = 20
    spacing: str = "trailing"
    rho: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    precision: Literal["float32", "float64"] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("rho", "sigma_min", "sigma_max"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a number above 0, got {value}")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def identity(self) -> dict[str, Any]:
        """What a method's digest needs of it: what is left to the family has no part in it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Step:
    """A place on the solver's grid.

    `index` counts solver steps from 0 (noisiest); both evaluations of a Heun step carry the index and the
    noise level of the step they belong to. `sigma` is the noise-to-signal ratio sqrt((1 - abar) / abar).
    """

    index: int
    total: int
    sigma: float
    timestep: float


@dataclass(frozen=True)
class Conditioning:
    """What the networks need to know of the prompts, a row each.

    `tensors` and `null` hold the same keys with the same trailing shapes, `[B, ...]`. `rows` says which sample
    of the micro-batch a row belongs to, so that evaluations are counted for the sample that asked for them
    however rows were repeated or regrouped.
    """

    tensors: dict[str, Tensor]
    null: dict[str, Tensor]
    rows: Tensor  # int64 [B], on the CPU

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Conditioning:
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
        return Conditioning(
            {key: value[index] for key, value in self.tensors.items()},
            {key: value[index] for key, value in self.null.items()},
            self.rows[index],
        )

    @property
    def unconditional(self) -> Conditioning:
        """The same rows with the null prompt in the prompt's place."""
        return replace(self, tensors=self.null)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, one after the other."""
        first = parts[0]
        return Conditioning(
            {key: torch.cat([part.tensors[key] for part in parts]) for key in first.tensors},
            {key: torch.cat([part.null[key] for part in parts]) for key in first.null},
            torch.cat([part.rows for part in parts]),
        )


class Schedule(ABC):
    """A solver at work on one batch: it knows the grid and how to take a step. Used once, then thrown away."""

    evaluations: list[Step]  # one entry a denoiser call, in order (Heun: two a step but for the last)
    arrivals: list[float]  # the noise level (as Step.sigma) at which each solver step ends; 0 is clean

    @abstractmethod
    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise to the solver's first state."""

    @abstractmethod
    def network_input(self, state: Tensor, i: int) -> Tensor:
        """What the network sees at evaluation `i`: the variance-preserving x_t for the SD families."""

    @abstractmethod
    def advance(self, prediction: Tensor, state: Tensor, i: int, renoise: Tensor | None = None) -> Tensor:
        """The state after evaluation `i`, given the guided prediction in the network's native space.

        `renoise`, in the same space, takes the prediction's place in the direction back to noise (CFG++).
        """


class Counter:
    """Denoiser evaluations per sample, by network; gradient passes, decoded and judged images apart."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.by_network: dict[str, np.ndarray] = {}
        self.gradients = np.zeros(samples, dtype=np.int64)  # all gradient passes
        self.gradients_by_network: dict[str, np.ndarray] = {}  # those that go back through a denoiser
        self.decoded = np.zeros(samples, dtype=np.int64)
        self.judged = np.zeros(samples, dtype=np.int64)

    def add(self, network: str, rows: Tensor) -> None:
        """Counts one evaluation for every entry of `rows` (indices of samples)."""
        self.by_network[network] = self.by_network.get(network, 0) + self._counted(rows)

    def add_gradient(self, rows: Tensor, network: str | None = None) -> None:
        """Counts one gradient pass for every entry of `rows`.

        `network` names the denoiser that it goes back through; None where it stays in decoder and judge.
        """
        self.gradients = self.gradients + self._counted(rows)
        if network is not None:
            before = self.gradients_by_network.get(network, 0)
            self.gradients_by_network[network] = before + self._counted(rows)

    def add_decoded(self, images: int) -> None:
        """Counts an image for each row of the micro-batch in order, again and again, `images` in all."""
        self.decoded = self.decoded + self._counted(torch.arange(images) % self.samples)

    def add_judged(self, images: int) -> None:
        """Likewise the images that a judge has looked at."""
        self.judged = self.judged + self._counted(torch.arange(images) % self.samples)

    def _counted(self, rows: Tensor) -> np.ndarray:
        counted: np.ndarray = torch.bincount(rows, minlength=self.samples).numpy()
        return counted

    @property
    def nfe(self) -> np.ndarray:
        """All evaluations of each sample, int64 `[samples]`."""
        return sum(self.by_network.values(), np.zeros(self.samples, dtype=np.int64))


class Diffusion(ABC):
    """A diffusion model of one family, with its weights, on one device.

    Every denoiser evaluation goes through `predict`, which adds it to `counter` when one is set; so do `decode` and
    `decode_differentiable` with their images.
    """

    family: ClassVar[str]
    native: str  # "epsilon", "v_prediction" or "sample" (x0): what the network predicts
    networks: tuple[str, ...] = ("main",)
    requests: ClassVar[frozenset[str]] = frozenset({"cond", "uncond"})  # kinds of prediction it can give
    network_kinds: ClassVar[tuple[str, ...]] = ("weights",)  # in which a block names further networks, where it may
    unconditional: ClassVar[str] = "main"  # the network that gives "uncond" predictions
    timesteps: ClassVar[bool] = True  # there are timesteps of training; else a timestep is a noise level
    reads_pictures: ClassVar[bool] = False  # a sample depends on the picture that its prompt names
    samplers: ClassVar[tuple[str, ...]]
    trained: bool = True  # False marks random weights
    latent_shape: tuple[int, ...]  # of one row, (C, H, W), or (F, C, H, W) of a clip
    device: torch.device
    dtype: torch.dtype
    counter: Counter | None = None

    @classmethod
    @abstractmethod
    def load(
        cls,
        weights: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        size: int | None = None,
        networks: dict[str, dict[str, Any]] | None = None,
    ) -> Diffusion:
        """Opens a local folder, a Hub id or `builtin:NAME`. `size` is the image's side in pixels.

        `networks` are further ones by name: {"weights": where} or {"lora": where}, with a `revision` or without.
        """

    @classmethod
    def further_weights(cls, folder: Path) -> dict[str, str]:
        """Other weights that the model of `folder` opens, as `load` takes them (an autoencoder by its Hub id), each
        with the sub-folder that is opened: without such a one it is the whole (`harness.weights.part_of`).

        Raises:
            HarnessError: the folder's configuration cannot be read.
        """
        return {}

    @classmethod
    def problems(cls, folder: Path, size: int | None, sampler: Sampler) -> list[str]:
        """What a benchmark asks that these weights cannot do, found from the configuration files alone."""
        return []

    @classmethod
    def step_levels(cls, folder: Path | None, sampler: Sampler) -> list[float]:
        """The noise level (as `Step.sigma`) at which each solver step starts, found from the configuration files alone.

        `folder` is None where the weights are not here. Empty where it cannot be known.

        Raises:
            HarnessError: there is no such grid, as `problems` says.
        """
        return []

    @classmethod
    def prompt_problems(cls, folder: Path, prompts: Sequence[Prompt]) -> list[str]:
        """What these prompts ask that the model of `folder` cannot do."""
        return []

    @classmethod
    def frames_of(cls, folder: Path) -> int:
        """How many frames a sample of these weights has, found from the configuration files alone; 1: a still."""
        return 1

    @classmethod
    def network_problems(cls, folder: Path, kind: str, network: Path) -> list[str]:
        """Why the folder `network`, as `kind` ("weights" or "lora"), gives the model of `folder` no further network."""
        return [f"family {cls.family!r} takes no further networks"]

    @classmethod
    def layer_problems(cls, folder: Path, layers: tuple[str, ...]) -> list[str]:
        """Which of these layers cannot be perturbed, of a family that gives "perturbed" predictions."""
        return []

    def draw(self, prompt: Prompt, generator: torch.Generator) -> Prompt:
        """The prompt with what the family draws for it, after the noise and from the noise's own generator."""
        return prompt

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Prompts to conditioning, with its null; `rows` = 0 ... B-1."""

    @abstractmethod
    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        """One denoiser evaluation a row, in the network's native parameterisation; `[B, C, H, W]` as `x`."""

    @abstractmethod
    def alpha_sigma(self, timestep: float) -> tuple[float, float]:
        """sqrt(abar) and sqrt(1 - abar) at a timestep, in double precision; 1 and sigma of an exploding process."""

    def at_ratio(self, ratio: float) -> tuple[float, float]:
        """alpha and sigma at the noise level sigma/alpha = `ratio` (as `Step.sigma`; 0 is clean)."""
        return from_ratio(ratio)

    def invert_step(self, x: Tensor, prediction: Tensor, arrival: float, step: Step) -> Tensor:
        """A solver step undone: from where it arrived, the noise level `arrival`, back to where it started.

        `prediction` is native, made at the step's start with the network looking at `x`; its epsilon is taken to
        be constant over the step. `[B, C, H, W]` as `x`.
        """
        epsilon = self.to_epsilon(prediction, x, step.timestep)
        return move(x, epsilon, self.at_ratio(arrival), self.alpha_sigma(step.timestep))

    def to_epsilon(self, prediction: Tensor, x: Tensor, timestep: float) -> Tensor:
        """A native prediction as the noise it implies, exactly."""
        alpha, sigma = self.alpha_sigma(timestep)
        if self.native == "epsilon":
            return prediction
        if self.native == "v_prediction":
            return alpha * prediction + sigma * x
        return (x - alpha * prediction) / sigma

    def to_x0(self, prediction: Tensor, x: Tensor, timestep: float) -> Tensor:
        """A native prediction as the clean latent it implies, exactly."""
        alpha, sigma = self.alpha_sigma(timestep)
        if self.native == "epsilon":
            return (x - sigma * prediction) / alpha
        if self.native == "v_prediction":
            return alpha * x - sigma * prediction
        return prediction

    def to_native(self, prediction: Tensor, x: Tensor, timestep: float, space: str) -> Tensor:
        """A prediction in `space` ("native", "epsilon" or "x0") as the network would have said it."""
        if space in ("native", self.native):
            return prediction
        alpha, sigma = self.alpha_sigma(timestep)
        epsilon = prediction if space == "epsilon" else (x - alpha * prediction) / sigma
        if self.native == "epsilon":
            return epsilon
        if self.native == "v_prediction":
            return (epsilon - sigma * x) / alpha
        return (x - sigma * epsilon) / alpha

    @abstractmethod
    def schedule(self, sampler: Sampler) -> Schedule:
        """A fresh solver for one batch."""

    @abstractmethod
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to images, uint8 `[B, F, H, W, 3]` on the CPU."""

    @abstractmethod
    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """Clean latents to images, float `[B, F, H, W, 3]` in [0, 1], gradients kept."""

    @abstractmethod
    def flops_per_evaluation(self, network: str = "main") -> float:
        """Floating-point operations of one row's evaluation, 1 multiply-add = 2 (measured once, then kept)."""

    def flops_per_gradient(self, network: str = "main") -> float:
        """Likewise of one row's way back through the network to its input."""
        return 2 * self.flops_per_evaluation(network)

    def flops_per_decode(self, gradient: bool = False) -> float:
        """Likewise of decoding one row, or with `gradient` of the way back from the image to the latents."""
        return 0.0

    def flops_per_text(self) -> float:
        """Likewise of encoding one prompt."""
        return 0.0

    @cached_property
    def _flops(self) -> dict[tuple[str, bool], float]:
        return {}

    def _kept(self, part: str, gradient: bool, count: Callable[[], float]) -> float:
        """What has been counted once. `part` is a network's name, or begins with "/", as no network's name does."""
        if (part, gradient) not in self._flops:
            self._flops[part, gradient] = count()
        return self._flops[part, gradient]
