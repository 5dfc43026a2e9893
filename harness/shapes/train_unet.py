"""Stage 3, the denoiser: ``UNet2DConditionModel`` on 4x16x16 latents, epsilon prediction, SD's schedule."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from harness.shapes.data import load_world, part_folders, run_jobs
from harness.shapes.loop import Draws, Stage
from harness.shapes.tokenizer import tokenize
from harness.shapes.train_autoencoder import to_pixels


def make_unet(channels: tuple[int, ...] = (48, 64, 80)) -> UNet2DConditionModel:
    """A fresh UNet: convolutions alone at 16x16, attention to itself and to the words at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """SD's schedule, with trailing spacing: leading spacing starts below t = 999 and drifts the background."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0,
    )


def digest(folder: Path) -> str:
    """Names what the safetensors of a folder hold."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


@torch.no_grad()
def encode_part(job: tuple[str, str, str]) -> None:
    """Encodes a part's ``images.npy`` (its folder, the autoencoder's, the file's name), times the scaling factor."""
    part, vae_folder, name = job
    if (Path(part) / name).exists():
        return
    torch.set_num_threads(1)
    vae = AutoencoderTiny.from_pretrained(vae_folder).float().eval()
    images = np.load(Path(part) / "images.npy", mmap_mode="r")
    z = [vae.encode(to_pixels(images[i : i + 100])).latents for i in range(0, len(images), 100)]
    latents = (torch.cat(z) * vae.config.scaling_factor).half().numpy()
    beside = Path(part) / f"{name}.tmp.npy"
    np.save(beside, latents)
    beside.replace(Path(part) / name)


@torch.no_grad()
def prepare(data: str, scenes: int, parts: str, processes: int = 2) -> None:
    """Encode every scene's latent and every caption's states once; ``parts`` holds the trained ``vae`` and ``text``."""
    world = load_world(data, scenes, processes)
    vae, text = Path(parts) / "vae", Path(parts) / "text"
    name = f"latents-{digest(vae)}.npy"
    jobs = [(str(p), str(vae), name) for p in part_folders(data, scenes)]
    run_jobs(encode_part, [job for job in jobs if not (Path(job[0]) / name).exists()], processes)
    states = Path(data) / f"states-{scenes}-{digest(text)}.npy"
    if not states.exists():
        model = CLIPTextModelWithProjection.from_pretrained(text).eval()
        ids = torch.tensor(tokenize(["", *world.texts]))
        rows = torch.cat([model(input_ids=part).last_hidden_state.half() for part in ids.split(512)])
        beside = states.with_suffix(".tmp.npy")
        np.save(beside, rows.numpy())
        beside.replace(states)


class UNetStage(Stage):
    """Min-SNR weights (gamma 5), a tenth of the captions dropped, noisy timesteps preferred (t = 1000 u^power)."""

    name = "unet"
    model: Any
    lr = 1.2e-3
    ema = 0.9985
    warmup = 200

    def __init__(
        self,
        data: str,
        scenes: int,
        parts: str,
        rank: int = 0,
        device: str = "cpu",
        batch: int = 24,
        dropout: float = 0.12,
        power: float = 0.8,
        init: str | None = None,
        kinds: dict[str, float] | None = None,
        taste: list[float] | None = None,
    ) -> None:
        self.world, self.batch, self.device = load_world(data, scenes, 1), batch, device
        self.dropout, self.power, self.parts = dropout, power, Path(parts)
        vae, text = self.parts / "vae", self.parts / "text"
        self.latents = np.concatenate([np.load(p / f"latents-{digest(vae)}.npy") for p in part_folders(data, scenes)])
        self.states = np.load(Path(data) / f"states-{scenes}-{digest(text)}.npy", mmap_mode="r")
        self.alphas = make_scheduler().alphas_cumprod
        self.model = UNet2DConditionModel.from_pretrained(init).float() if init else make_unet()
        self.taste = np.array(taste) if taste else None  # how often which task's captions, mixed last
        self.cumulative = np.cumsum(self._weights(kinds)) if kinds else None

    def _weights(self, kinds: dict[str, float]) -> np.ndarray:
        """Probability of each scene, for other shares of the kinds of scenes than they were drawn with."""
        shapes = self.world.scenes[:, :-1].reshape(-1, 4, 5)[..., 0]
        number = (shapes < 6).sum(1)
        distinct = np.array([len(set(row[row < 6])) for row in shapes])
        kind = np.where(number == 1, 0, np.where(distinct == 1, 2, np.where(number == 2, 1, 3)))
        share = np.array([kinds[k] for k in ("single", "two", "count", "mixed")])
        p = share[kind] / np.bincount(kind, minlength=4)[kind]
        return np.asarray(p / p.sum())

    def samples(self) -> int:
        """Latents of one step on one rank."""
        return self.batch

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weighted error of the predicted noise."""
        n, g = self.batch, draws.numpy
        if self.cumulative is None:
            index = g.integers(len(self.world), size=n)
        else:
            index = np.searchsorted(self.cumulative, g.random(n)).clip(max=len(self.world) - 1)
        options = self.world.caption_of[index]
        if self.taste is None:
            caption = options[np.arange(n), g.integers(options.shape[1], size=n)] + 1
        else:
            share = self.taste[self.world.tags[options]].cumsum(1)
            caption = options[np.arange(n), (share < g.random((n, 1)) * share[:, -1:]).sum(1)] + 1
        caption[g.random(n) < self.dropout] = 0  # row 0: the empty caption
        u = (g.permutation(n) + g.random(n)) / n
        t = torch.from_numpy((1000 * u**self.power).astype(np.int64).clip(0, 999))
        x0 = torch.from_numpy(self.latents[index]).float()
        noise = torch.randn(x0.shape, generator=draws.torch)
        a = self.alphas[t][:, None, None, None]
        x = a.sqrt() * x0 + (1 - a).sqrt() * noise
        states = torch.from_numpy(self.states[caption]).float()
        out = self.model(x.to(self.device), t.to(self.device), states.to(self.device)).sample
        error = (out - noise.to(out)).square().mean((1, 2, 3))
        snr = (a / (1 - a)).flatten().to(out)
        loss = (error * snr.clamp(max=5) / snr).mean()
        return loss, {"mse": float(error.detach().mean())}

    def export(self, out: Path) -> dict[str, Any]:
        """Save as ``out/unet`` in half precision."""
        self.model.half().save_pretrained(out / "unet")
        self.model.float()
        return {"parameters": sum(p.numel() for p in self.model.parameters())}
