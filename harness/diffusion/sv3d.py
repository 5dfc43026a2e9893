"""SV3D-U: one picture of an object in, the frames of a fixed orbit around it out.

Source: Voleti et al., "SV3D: Novel Multi-view Synthesis and 3D Generation from a Single Image using Latent Video
Diffusion", arXiv 2403.12008; what it is conditioned on and how it is sampled follow the authors' code
(Stability-AI/generative-models, `sv3d_u.yaml`), to which tests/vectors/sv3d holds ours. Network, autoencoder and image
encoder are the library's, in the folder layout of Stable Video Diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from harness import flops
from harness import weights as weight_files
from harness.diffusion import folders
from harness.diffusion.base import Conditioning, Sampler, Step
from harness.diffusion.conditioning_picture import is_transparent, open_picture
from harness.diffusion.edm import Grid, VarianceExploding
from harness.diffusion.stable_diffusion import DECODED_PIXELS, DTYPES
from harness.diffusion.sv3d_clip import clip_pixels
from harness.diffusion.sv3d_unet import as_trained
from harness.errors import HarnessError
from harness.identity import seed64
from harness.orbit_pictures import orbit_of
from harness.prompts import Prompt
from harness.quiet import quiet
from harness.registry import nearest

VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderKLTemporalDecoder": AutoencoderKLTemporalDecoder}
NETWORKS = ("unet", "vae", "image_encoder")
SIZE = 576  # pixels; configurations carry the 96 latent pixels of Stable Video Diffusion
FRAMES = 21
COND_AUG = 1e-5  # strength of the noise on the conditioning picture, and the one number that the network is told
BLOCKS = "block_out_channels"
COUNTS = {  # what the configurations count
    "unet": ("num_frames", "in_channels", "out_channels", "cross_attention_dim", "addition_time_embed_dim",
             "projection_class_embeddings_input_dim", BLOCKS),
    "vae": ("latent_channels", BLOCKS),
    "image_encoder": ("projection_dim", "image_size"),
}
TOGETHER = 14  # frames that a temporal decoder sees at once: they depend on each other


class SV3D(VarianceExploding):
    """Picture to orbit with a spatio-temporal UNet, an autoencoder and CLIP's image encoder.

    States and latents are `[B, F, C, H, W]`, F frames a clip; one evaluation of a clip counts as one. The process is
    variance-exploding, x = x0 + sigma * noise, and `timestep` is sigma. The native prediction is the network's output
    u, the velocity of the rescaled state x / sqrt(sigma^2 + 1):

        x0 = x / (sigma^2 + 1) - u * sigma / sqrt(sigma^2 + 1)
    """

    family = "sv3d"
    version = 1
    native = "v_prediction"
    reads_pictures = True
    grid = Grid(sigma_max=700.0, precision="float32")

    def __init__(
        self, unet: Any, vae: Any, image_encoder: Any, *, frames: int = FRAMES, size: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = unet.dtype
        self.unet, self.vae, self.image_encoder = (
            part.to(self.device).eval().requires_grad_(False) for part in (unet, vae, image_encoder)
        )
        self.size = size or SIZE
        side = self.size // folders.factor(vae.config)
        self.latent_shape = (frames, int(unet.config.out_channels), side, side)

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
        """Opens a local folder or a Hub id. `size` is the frames' side in pixels, 576 unless given.

        `dtype` is that of the UNet and the image encoder; the autoencoder runs in float32, as the authors' does.

        Raises:
            HarnessError: the weights are missing, corrupt or of another model, or cannot make this size.
        """
        if dtype not in DTYPES:
            raise HarnessError(f"unknown dtype {dtype!r}: {nearest(str(dtype), list(DTYPES))}")
        if networks:
            raise HarnessError(f"family {cls.family!r} takes no further networks")
        folder = weight_files.resolve(weights, revision)
        found = cls._folder_problems(folder, size)
        if found:
            raise HarnessError("\n".join(f"{folder}: {problem}" for problem in found))
        vae_class = VAES[folders.config(folder, "vae")["_class_name"]]
        with quiet():
            model = cls(
                as_trained(
                    folders.open_network(UNetSpatioTemporalConditionModel, folder / "unet", torch_dtype=DTYPES[dtype])
                ),
                folders.open_network(vae_class, folder / "vae", torch_dtype=torch.float32),
                folders.open_network(CLIPVisionModelWithProjection, folder / "image_encoder", dtype=DTYPES[dtype]),
                frames=cls.frames_of(folder), size=size, device=device,
            )
        model.trained = weight_files.is_trained(folder)
        return model

    @classmethod
    def problems(cls, folder: Path, size: int | None, sampler: Sampler) -> list[str]:
        """What a benchmark asks that these weights cannot do, found from the configuration files alone."""
        return cls._folder_problems(folder, size) + cls.sampler_problems(sampler)

    @classmethod
    def frames_of(cls, folder: Path) -> int:
        """As the UNet's configuration says; without a word of it 21, and not the library's 25 of another model."""
        try:
            frames = folders.config(folder, "unet").get("num_frames", FRAMES)
        except (OSError, ValueError):  # named by `problems`
            return FRAMES
        return int(frames) if _is_count(frames) else FRAMES

    @classmethod
    def prompt_problems(cls, folder: Path, prompts: Sequence[Prompt]) -> list[str]:
        """Prompts without a picture, or whose picture is not there; orbits of transparent pictures, of which the first
        is looked at."""
        first = next((prompt for prompt in prompts if prompt.image is not None and orbit_of(prompt)), None)
        found = [] if first is None or not is_transparent(Path(str(first.image))) else [
            f"the picture of prompt {first.id!r} is transparent in part: the object is moved to the middle of it, as "
            f"the authors do, but not in the pictures of its orbit that the clip is compared with. Lay the orbit's "
            f"pictures on white"
        ]
        without = [prompt.id for prompt in prompts if prompt.image is None]
        gone = [prompt for prompt in prompts if prompt.image is not None and not Path(prompt.image).is_file()]
        if without:
            found.append(
                f"{len(without)} of {len(prompts)} prompts name no picture (the first is {without[0]!r}), and family "
                f"{cls.family!r} makes clips out of one: take a set of orbits, or add a column 'image' with its path"
            )
        if gone:
            found.append(
                f"the pictures of {len(gone)} of {len(prompts)} prompts are not there; the first is that of "
                f"{gone[0].id!r}, {gone[0].image}"
            )
        return found

    @classmethod
    def _folder_problems(cls, folder: Path, size: int | None) -> list[str]:
        found, configs = folders.read(folder, NETWORKS)
        if set(configs) < set(NETWORKS):
            return found
        unet, vae, encoder = (
            {key: value for key, value in configs[part].items() if value is not None} for part in NETWORKS
        )
        if vae.get("_class_name") not in VAES:
            return [*found, f"vae/ is a {vae.get('_class_name')!r}: expected {' or '.join(VAES)}"]
        if "SpatioTemporal" not in str(unet.get("_class_name")):
            return [*found, f"unet/ is a {unet.get('_class_name')!r}: expected UNetSpatioTemporalConditionModel"]
        odd = [
            f"{part}/config.json: {key} must be {'whole numbers' if key == BLOCKS else 'a whole number'} above 0, not "
            f"{configs[part][key]!r}"
            for part, keys in COUNTS.items() for key in keys
            if configs[part].get(key) is not None and not _are_counts(configs[part][key], several=key == BLOCKS)
        ]
        if odd:
            return [*found, *odd]
        width, told = unet.get("addition_time_embed_dim", 256), unet.get("projection_class_embeddings_input_dim", 768)
        if told != width:
            other = {3: "Stable Video Diffusion", 5: "SV3D-P, which is told the camera's angles"}.get(told // width)
            found.append(
                f"unet/ is told {told // width} numbers about a clip (projection_class_embeddings_input_dim {told})"
                f"{f', as {other}' if other else ''}: expected SV3D-U, which is told one ({width})"
            )
        channels, latent = unet.get("in_channels", 8), vae.get("latent_channels", 4)
        if channels != 2 * latent:
            found.append(f"unet/ takes {channels} channels: expected {2 * latent}, a noisy latent and the picture's")
        context, given = unet.get("cross_attention_dim", 1024), encoder.get("projection_dim", 512)
        if context != given:
            found.append(f"unet/ attends to embeddings {context} wide, but image_encoder/ gives {given}")
        pixels = folders.factor(vae) * 2 ** (len(unet.get(BLOCKS, [0] * 4)) - 1)
        if size is not None and (size < pixels or size % pixels):
            below = max(size // pixels, 1) * pixels
            found.append(f"size: frames of {size} pixels cannot be made, the side must be a multiple of {pixels}; the "
                         f"nearest are {below} and {below + pixels} (the default is {SIZE})")
        return found

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Pictures to `embedding` `[B, 1, D]`, CLIP's of the picture, and `picture` `[B, C, H, W]`, its latent.

        Both are zeros in the null conditioning. The latent is the autoencoder's mode, not scaled, of the picture with
        noise of strength 1e-5 from the generator `cond_aug/<prompt id>`: the prompt's alone, whatever the seed. Each
        picture is encoded alone, so that its last bits depend on no other.

        Raises:
            HarnessError: a prompt without a picture, or whose picture cannot be read.
        """
        rows = [self._encode(open_picture(prompt, self.size), prompt.id) for prompt in prompts]
        tensors = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        null = {key: torch.zeros_like(value) for key, value in tensors.items()}
        return Conditioning(tensors, null, torch.arange(len(prompts)))

    @torch.no_grad()
    def _encode(self, picture: Tensor, prompt_id: str) -> dict[str, Tensor]:
        """One picture's row of the conditioning."""
        generator = torch.Generator("cpu").manual_seed(seed64(f"cond_aug/{prompt_id}"))
        noisy = picture + COND_AUG * torch.randn(picture.shape, generator=generator)
        latent = self.vae.encode(noisy[None].to(self.device)).latent_dist.mode()[0]
        pixels = clip_pixels(picture[None] * 0.5 + 0.5, self.image_encoder.config.image_size)
        embedding = self.image_encoder(pixels.to(self.device, self.dtype)).image_embeds
        return {"embedding": embedding, "picture": latent.to(self.dtype)}

    def predict(
        self, x: Tensor, timestep: Tensor | float, conditioning: Conditioning, network: str = "main",
        perturbed: tuple[str, ...] = (),
    ) -> Tensor:
        """One evaluation a clip: the network's output u at noise level sigma = `timestep`; `[B, F, C, H, W]` as `x`.

        Raises:
            HarnessError: a further network or perturbed layers, which this family does not have.
        """
        if network != "main" or perturbed:
            raise HarnessError(f"family {self.family!r} has one network and perturbs no layers")
        if self.counter is not None:
            self.counter.add(network, conditioning.rows)
        sigma = float(timestep)
        inputs = self._inputs(x * (1 / math.hypot(sigma, 1)), conditioning.tensors)
        prediction: Tensor = self.unet(timestep=0.25 * math.log(sigma), **inputs, return_dict=False)[0]
        return prediction.to(x.dtype)

    def _inputs(self, scaled: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the UNet takes beside the noise level; every frame is shown the picture."""
        pictures = tensors["picture"][:, None].expand(-1, scaled.shape[1], -1, -1, -1)
        return {
            "sample": torch.cat([scaled.to(self.dtype), pictures], dim=2),
            "encoder_hidden_states": tensors["embedding"],
            "added_time_ids": torch.full((len(scaled), 1), COND_AUG, device=scaled.device),
        }

    def to_x0(self, prediction: Tensor, x: Tensor, timestep: float) -> Tensor:
        """c_skip * x + c_out * u."""
        c_skip, c_out = scalings(timestep)
        return c_skip * x + c_out * prediction

    def to_epsilon(self, prediction: Tensor, x: Tensor, timestep: float) -> Tensor:
        """(x - x0) / sigma, without the difference of near numbers at a low noise level."""
        return timestep / (timestep**2 + 1) * x + prediction / math.hypot(timestep, 1)

    def to_native(self, prediction: Tensor, x: Tensor, timestep: float, space: str) -> Tensor:
        """A prediction in `space` ("native", "epsilon" or "x0") as the network would have said it."""
        if space in ("native", self.native):
            return prediction
        if space == "epsilon":
            return (prediction - timestep / (timestep**2 + 1) * x) * math.hypot(timestep, 1)
        c_skip, c_out = scalings(timestep)
        return (prediction - c_skip * x) / c_out

    def invert_step(self, x: Tensor, prediction: Tensor, arrival: float, step: Step) -> Tensor:
        """An Euler step undone with u held constant, Eq. 6 of arXiv 2407.14041; exact where u is.

        Coefficients are those at the step's start; u has been evaluated there at `x`, the known end of the step.
        """
        sigma = step.sigma
        c_skip, c_out = scalings(sigma)
        return (sigma * x + (arrival - sigma) * c_out * prediction) / ((arrival - sigma) * (1 - c_skip) + sigma)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to images, uint8 `[B, F, H, W, 3]` on the CPU, rounded down as the authors' script does."""
        images = self.decode_differentiable(latents).float().cpu().numpy()
        levels: np.ndarray = (images * 255).astype(np.uint8)
        return levels

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        """Clean latents to images, float `[B, F, H, W, 3]` in [0, 1], gradients kept.

        Every frame is the model's own. The authors' script puts the conditioning picture in the place of the last.
        """
        if self.counter is not None:
            self.counter.add_decoded(len(latents))
        images = torch.stack([self._decoded(clip) for clip in latents])
        return (images * 0.5 + 0.5).clamp(0, 1).permute(0, 1, 3, 4, 2)

    def _decoded(self, clip: Tensor) -> Tensor:
        """The frames `[F, 3, H, W]` of one clip's latents, a few at a time."""
        scaled = clip.to(self.vae.dtype) / self.vae.config.scaling_factor
        if isinstance(self.vae, AutoencoderKLTemporalDecoder):
            parts = [self.vae.decode(part, num_frames=len(part)).sample for part in scaled.split(TOGETHER)]
        else:
            parts = [self.vae.decode(part).sample for part in scaled.split(max(1, DECODED_PIXELS // self.size**2))]
        return torch.cat(parts)

    def flops_per_evaluation(self, network: str = "main") -> float:
        """Floating-point operations of one clip's evaluation (`harness.flops`)."""
        return self._kept("unet", False, lambda: self._unet_flops(gradient=False))

    def flops_per_gradient(self, network: str = "main") -> float:
        """Of one clip's way back through the network to its input."""
        return self._kept("unet", True, lambda: self._unet_flops(gradient=True))

    def flops_per_decode(self, gradient: bool = False) -> float:
        """Of decoding one clip, or of the way back from its frames to the latents."""
        return self._kept("vae", gradient, lambda: self._decoder_flops(gradient))

    def flops_per_text(self) -> float:
        """Of encoding one prompt: its picture, by both encoders."""
        blank = torch.zeros(3, self.size, self.size)
        return self._kept("picture", False, lambda: flops.of_forward(lambda: self._encode(blank, "")))

    def _unet_flops(self, gradient: bool) -> float:
        """On shapes alone, so that device and kernels have no part in it."""
        with torch.device("meta"):
            unet = without_weights(self.unet)
            inputs = self._inputs(torch.empty(1, *self.latent_shape), {
                "picture": torch.empty(1, *self.latent_shape[1:]),
                "embedding": torch.empty(1, 1, self.unet.config.cross_attention_dim),
            })
            inputs = {key: value.float() for key, value in inputs.items()}
            others = {key: value for key, value in inputs.items() if key != "sample"}

            def call(x: Tensor) -> Tensor:
                return unet(x, torch.zeros(1), **others).sample  # type: ignore[no-any-return]

            x = inputs["sample"]
            return flops.of_backward(call, x) if gradient else flops.of_forward(lambda: call(x))

    def _decoder_flops(self, gradient: bool) -> float:
        """Likewise."""
        with torch.device("meta"):
            vae = without_weights(self.vae)
            clip = torch.empty(self.latent_shape)
            more = {"num_frames": len(clip)} if isinstance(vae, AutoencoderKLTemporalDecoder) else {}

            def call(x: Tensor) -> Tensor:
                return vae.decode(x, **more).sample  # type: ignore[no-any-return]

            return flops.of_backward(call, clip) if gradient else flops.of_forward(lambda: call(clip))


def without_weights(network: Any) -> Any:
    """The same network with shapes alone."""
    with torch.device("meta"), quiet():  # and moved there: the library makes a few scalars elsewhere
        return type(network).from_config(network.config).to("meta").eval().requires_grad_(False)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_counts(value: object, several: bool) -> bool:
    """Whether a value of a configuration is a whole number above 0, or a list of some."""
    return isinstance(value, list) and bool(value) and all(map(_is_count, value)) if several else _is_count(value)


def scalings(sigma: float) -> tuple[float, float]:
    """c_skip and c_out of the denoiser D = c_skip * x + c_out * u."""
    return 1 / (sigma**2 + 1), -sigma / math.hypot(sigma, 1)
