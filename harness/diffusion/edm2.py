"""EDM2: class-conditional or unconditional images by magnitude-preserving networks, in latents or pixels.

Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696. Whole
samplings equal those of the authors' code and of the guidance interval's (tests/diffusion/test_edm2_vectors.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from harness import flops
from harness import weights as weight_files
from harness.diffusion import edm2_folder, folders
from harness.diffusion.base import Conditioning, Sampler
from harness.diffusion.edm import Grid, VarianceExploding
from harness.diffusion.edm2_images import Autoencoded, Images, Pixels
from harness.diffusion.edm2_network import EDM2Network
from harness.errors import HarnessError, Lacking
from harness.prompts import Prompt
from harness.registry import nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class EDM2(VarianceExploding):
    """A network D(x; sigma) for labels or without, further ones beside it, and a way to images.

    A further network called "guide" gives the unconditional predictions. The class of a prompt is its `class_label`,
    from 0; for one without, a class is drawn after the noise.
    """

    family = "edm2"
    version = 1
    native = "sample"
    requests: ClassVar[frozenset[str]] = frozenset({"cond", "uncond", "network"})
    unconditional = "guide"
    grid = Grid(rho=7.0, sigma_min=0.002, sigma_max=80.0, precision="float64")

    def __init__(self, network: EDM2Network, images: Images, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.dtype = network.dtype
        self.config = network.config
        self.latent_shape = (self.config.channels, self.config.resolution, self.config.resolution)
        self.images = images
        self._networks = {"main": network}

    @classmethod
    def load(
        cls,
        weights: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        size: int | None = None,
        networks: dict[str, dict[str, Any]] | None = None,
    ) -> Self:
        """Opens a folder of `harness.diffusion.edm2_folder`, by its path, Hub id or `builtin:NAME`.

        `networks` are further ones by name, `{"weights": FOLDER}` with a `revision` or without, of the same latents
        and with the same classes or none. Networks compute in `dtype` inside; what they give is float32.

        Raises:
            HarnessError: the weights are missing, damaged or of another kind, or make no images of this size.
        """
        if dtype not in DTYPES:
            raise HarnessError(f"unknown dtype {dtype!r}: {nearest(str(dtype), list(DTYPES))}")
        folder = weight_files.resolve(weights, revision)
        found = cls._folder_problems(folder, size)
        if found:
            raise HarnessError("\n".join(found))
        settings, place = edm2_folder.read(folder), torch.device(device)
        images: Images = Pixels()
        if settings.vae is not None:
            autoencoder = edm2_folder.autoencoder(settings.vae)
            images = Autoencoded(autoencoder, settings.latent_mean, settings.latent_std, place)
        model = cls(edm2_folder.open_network(folder, DTYPES[dtype], place), images, device=device)
        for name, block in (networks or {}).items():
            if not {"weights"} <= block.keys() <= {"weights", "revision"}:
                raise HarnessError(f"networks.{name}: expected 'weights', and 'revision' if need be, got {block}")
            other = weight_files.resolve(block["weights"], block.get("revision"))
            found = edm2_folder.network_problems(folder, other)
            if found:
                raise HarnessError("\n".join(f"networks.{name}: {problem}" for problem in found))
            model.add_network(name, edm2_folder.open_network(other, DTYPES[dtype], place))
        model.trained = weight_files.is_trained(folder)
        return model

    def add_network(self, name: str, network: EDM2Network) -> None:
        """A further network; `main` is the model's own."""
        if name in self._networks:
            raise HarnessError(f"the name {name!r} is taken; this model has {', '.join(self._networks)}")
        self._networks[name] = network
        self.networks = tuple(self._networks)

    @classmethod
    def further_weights(cls, folder: Path) -> dict[str, str]:
        """The autoencoder."""
        vae = edm2_folder.read(folder).vae
        return {} if vae is None else {vae: edm2_folder.VAE}

    @classmethod
    def problems(cls, folder: Path, size: int | None, sampler: Sampler) -> list[str]:
        """What a benchmark asks that these weights cannot do, found from the small files alone."""
        return cls._folder_problems(folder, size) + cls.sampler_problems(sampler)

    @classmethod
    def prompt_problems(cls, folder: Path, prompts: Sequence[Prompt]) -> list[str]:
        """The first class that the network does not know; the first text that would be answered by a drawn class."""
        try:
            classes = edm2_folder.read(folder).network.classes
        except HarnessError:
            return []  # said by `problems`
        found = [text for prompt in prompts if (text := unknown_class(prompt, classes))][:1]
        told = next((prompt for prompt in prompts if prompt.text and prompt.class_label is None), None)
        if told is not None:
            found.append(
                f"family {cls.family!r} reads no texts, and prompt {told.id!r}, {told.text[:60]!r}, gives no class: "
                f"add a column 'class_label'; a set whose classes are drawn, such as imagenet-seeds, has no texts"
            )
        return found

    @classmethod
    def network_problems(cls, folder: Path, kind: str, network: Path) -> list[str]:
        """Why a further network cannot stand beside the model's own."""
        if kind != "weights":
            return [f"family {cls.family!r} takes further networks as 'weights' alone, no {kind}"]
        return edm2_folder.network_problems(folder, network)

    @classmethod
    def _folder_problems(cls, folder: Path, size: int | None) -> list[str]:
        found = edm2_folder.problems(folder)
        if found:
            return found
        settings = edm2_folder.read(folder)
        made = settings.network.resolution
        if settings.vae is not None:
            try:
                vae = edm2_folder.autoencoder(settings.vae, fetch=False)
            except Lacking:
                return []  # said or fetched where weights are found
            except HarnessError as error:
                return [f"{folder}: {error}"]
            config = folders.config(vae.parent, vae.name)
            made *= folders.factor(config)
            channels = config.get("latent_channels", 4)
            if channels != settings.network.channels:
                return [f"{folder}: the network makes {settings.network.channels} channels, the autoencoder "
                        f"{settings.vae!r} takes {channels}"]
        if size not in (None, made):
            return [f"{folder}: size: this network makes images of {made} pixels and no others, got {size}"]
        return []

    def draw(self, prompt: Prompt, generator: torch.Generator) -> Prompt:
        """A class for a prompt without one. It is drawn in any case, as in the published samplings."""
        if not self.config.classes:
            return prompt
        label = int(torch.randint(self.config.classes, (), generator=generator))
        return prompt if prompt.class_label is not None else replace(prompt, class_label=label)

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """`label`, one-hot float32 `[B, classes]`; null, and of a prompt without a class, is a row of zeros.

        Raises:
            HarnessError: a class that the network does not know.
        """
        classes = self.config.classes
        labels = torch.zeros(len(prompts), classes)
        for row, prompt in enumerate(prompts):
            wrong = unknown_class(prompt, classes)
            if wrong:
                raise HarnessError(wrong)
            if classes and prompt.class_label is not None:
                labels[row, prompt.class_label] = 1
        labels = labels.to(self.device)
        return Conditioning({"label": labels}, {"label": torch.zeros_like(labels)}, torch.arange(len(prompts)))

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        """The denoised `x` at the noise level `timestep`, computed in float32 at most, in x's dtype.

        Raises:
            HarnessError: a network that this model does not have, or layers to perturb.
        """
        if network not in self._networks:
            raise HarnessError(f"no network {network!r}: this model has {', '.join(self._networks)}")
        if perturbed:
            raise HarnessError(f"family {self.family!r} has no layers to perturb")
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        sigma = torch.as_tensor(timestep, dtype=torch.float32, device=x.device)
        denoised: Tensor = self._networks[network](x, sigma, conditioning.tensors["label"])
        return denoised.to(x.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to images, uint8 `[B, 1, H, W, 3]` on the CPU."""
        if self.counter is not None:
            self.counter.add_decoded(len(latents))
        images: np.ndarray = self.images.bytes(latents).permute(0, 2, 3, 1).unsqueeze(1).cpu().numpy()
        return images

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """Clean latents to images, float32 `[B, 1, H, W, 3]` in [0, 1], gradients kept."""
        if self.counter is not None:
            self.counter.add_decoded(len(latents))
        return self.images.unit(latents).permute(0, 2, 3, 1).unsqueeze(1)

    def flops_per_evaluation(self, network: str = "main") -> float:
        """Floating-point operations of one row's evaluation, counted on shapes alone (`harness.flops`)."""
        return self._kept(network, False, lambda: self._network_flops(network))

    def flops_per_decode(self, gradient: bool = False) -> float:
        """Of decoding one row, or of the way back from the image to the latents."""
        return self._kept("/decoder", gradient, lambda: self.images.flops(self.latent_shape, gradient))

    def _network_flops(self, network: str) -> float:
        empty = edm2_folder.without_weights(self._networks[network].config)
        with torch.device("meta"):
            x, sigma, labels = torch.empty(1, *self.latent_shape), torch.empty(1), torch.empty(1, empty.config.classes)
            return flops.of_forward(lambda: empty(x, sigma, labels))


def unknown_class(prompt: Prompt, classes: int) -> str | None:
    """What is wrong with a prompt's class for a network that knows so many; one of none takes no notice of it."""
    label = prompt.class_label
    if not classes or label is None or 0 <= label < classes:
        return None
    return f"prompt {prompt.id!r}: class_label {label} is none of this network's classes, 0 to {classes - 1}"
