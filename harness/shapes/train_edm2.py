"""Makes the class-conditional EDM2 of the shapes world and its unconditional guide: ``train(folder)``.

The recipe is EDM2's (Karras et al., arXiv 2312.02696): the loss of Eqs. 14, 15 and 21, log-normal noise levels, forced
weight normalisation (the network's own), Adam, a learning rate that falls with the inverse square root of the steps,
and an average of the weights over a fixed share of the run. The data are ``harness.shapes.classes`` as latents of the
shipped ``shapes-sd`` autoencoder. Under the folder: ``data`` (can be deleted), ``checkpoints``, ``weights``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from harness import weights
from harness.diffusion.edm2_network import CLASS, WEIGHTS, EDM2Config, EDM2Network
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.shapes.classes import CLASSES, make_images, part_folders
from harness.shapes.data import run_jobs
from harness.shapes.loop import Draws, Progress, Settings, Stage, checkpoint_path, load_average, run_stage
from harness.shapes.train_unet import digest, encode_part

log = logging.getLogger("harness.shapes.train")
AUTOENCODER = "builtin:shapes-sd"
P_MEAN, P_STD = -0.4, 1.0  # of ln(sigma): EDM2's for latents
IMAGES = 40_000
BATCH = 64  # of all processes together
STEPS = {"shapes-edm2": 6_800, "shapes-edm2-guide": 3_650}  # as long as the networks that ship
WIDTH = {"shapes-edm2": 32, "shapes-edm2-guide": 16}


def make_network(name: str) -> EDM2Network:
    """A fresh network: two levels, 16x16 and 8x8, attention at 8x8 alone."""
    width = WIDTH[name]
    guide = name.endswith("guide")
    return EDM2Network(
        EDM2Config(
            resolution=16, channels=4, classes=0 if guide else len(CLASSES), width=width, multipliers=(1, 2), blocks=1,
            attention=(8,), head_width=width, uncertainty_width=32,
        )
    )  # fmt: skip


def edm2_loss(network: EDM2Network, x: Tensor, labels: Tensor | None, sigma: Tensor, noise: Tensor) -> Tensor:
    """EDM2's loss of each row, float32 ``[B]``: the weighted squared error over exp(u), plus u (Eq. 21).

    ``x`` clean latents ``[B, C, H, W]``, ``noise`` standard normal as it, ``sigma`` ``[B]``. The weight is that of
    Eq. 15; u is the network's own estimate of the logarithm of the weighted error.
    """
    data = network.config.sigma_data
    error = (network(x + sigma[:, None, None, None] * noise, sigma, labels) - x).square().mean((1, 2, 3))
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    u = network.uncertainty(sigma)
    loss: Tensor = weight * error / u.exp() + u
    return loss


def latents_name() -> str:
    """The file in which a part's latents lie: known by the autoencoder that made them."""
    return f"latents-{digest(weights.resolve(AUTOENCODER) / 'vae')}.npy"


def prepare(data: str, images: int, processes: int = 2) -> None:
    """Draws the training images and encodes them, what is missing of them."""
    parts = make_images(data, images, processes)
    vae = str(weights.resolve(AUTOENCODER) / "vae")
    run_jobs(encode_part, [(str(part), vae, latents_name()) for part in parts], processes)


class EDM2Stage(Stage):
    """The conditional network; without dropout of labels, since the guide is a network of its own."""

    name = "shapes-edm2"
    model: EDM2Network
    lr = 1e-2
    weight_decay = 0.0  # Adam
    warmup = 200
    decay_from = 2_000  # steps after which the learning rate falls
    exponent = 6.94  # of the average's power function: a relative width of 0.10 (Eq. 126)
    clip = None  # forced weight normalisation makes it needless

    def __init__(self, data: str, images: int, rank: int = 0, device: str = "cpu", batch: int = 32) -> None:
        self.batch, self.device = batch, device
        folders = part_folders(data, images)
        scaling = json.loads((weights.resolve(AUTOENCODER) / "vae" / "config.json").read_text())["scaling_factor"]
        raw = np.concatenate([np.load(p / latents_name()) for p in folders]).astype(np.float32) / scaling
        self.labels = torch.from_numpy(np.concatenate([np.load(p / "labels.npy") for p in folders]))
        self.mean = [round(float(m), 4) for m in raw.mean((0, 2, 3), dtype=np.float64)]
        self.std = [round(float(s), 4) for s in raw.std((0, 2, 3), dtype=np.float64)]
        self.model = make_network(self.name)
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        self.latents = torch.from_numpy((raw - mean) / std * np.float32(self.model.config.sigma_data))

    def samples(self) -> int:
        """Latents of one step on one rank."""
        return self.batch

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """EDM2's loss of a batch."""
        index = torch.randint(len(self.latents), (self.batch,), generator=draws.torch)
        sigma = (torch.randn(self.batch, generator=draws.torch) * P_STD + P_MEAN).exp()
        x = self.latents[index]
        noise = torch.randn(x.shape, generator=draws.torch)
        labels = functional.one_hot(self.labels[index], len(CLASSES)).float().to(self.device)
        x, sigma, noise = x.to(self.device), sigma.to(self.device), noise.to(self.device)
        return edm2_loss(self.model, x, labels, sigma, noise).mean(), {}

    def rate(self, step: int, steps: int) -> float:
        """A short rise, then constant, then falling with the inverse square root of the steps."""
        fall: float = max(1.0, step / self.decay_from) ** 0.5
        return self.lr * min(1.0, (step + 1) / self.warmup) / fall

    def keep(self, step: int) -> float:
        """The power function's share of the average that stays (Eq. 127)."""
        share: float = (1 - 1 / (step + 1)) ** (self.exponent + 1)
        return share

    def export(self, out: Path) -> dict[str, Any]:
        """Saves as ``out/NAME`` in half precision, with the statistics of the latents."""
        return export(self.model, out / self.name, self.mean, self.std)


class GuideStage(EDM2Stage):
    """The unconditional guide, half as wide."""

    name = "shapes-edm2-guide"


def export(network: EDM2Network, folder: Path, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Writes a network's folder; ``mean`` and ``std`` are of the autoencoder's raw latents, a value a channel.

    ``config.json`` comes last: without it there is no network there.
    """
    config = {"_class_name": CLASS, **asdict(network.config), "vae": AUTOENCODER}
    config |= {"latent_mean": list(mean), "latent_std": list(std)}
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items()}
    (folder / "config.json").unlink(missing_ok=True)  # of what is replaced
    data = save(tensors, metadata={"format": "pt"})
    write_atomic(folder / WEIGHTS, data)
    write_atomic(folder / "config.json", f"{json.dumps(config, indent=2)}\n".encode())
    return {"parameters": sum(p.numel() for p in network.parameters()), "bytes": len(data)}


STAGES: dict[str, type[EDM2Stage]] = {stage.name: stage for stage in (EDM2Stage, GuideStage)}


def train(
    out_dir: str | Path,
    stages: Sequence[str] | None = None,
    processes: int = 2,
    device: str = "cpu",
    steps: Mapping[str, int] | None = None,
    batch: int = BATCH,
    images: int = IMAGES,
    minutes: float = 3.0,
    deadline: float | None = None,
    stop_after: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains both networks (or the ``stages`` named) and writes their folders; returns figures. Resumes exactly.

    Arguments:
        steps: overrides of ``STEPS`` by stage. batch: latents a step, of all processes together.
        minutes: between checkpoints. deadline: epoch seconds at which to checkpoint and stop; stop_after: as many
            steps of this call.
        progress: called with a dict a log line; it must be picklable when processes > 1. Default: log lines.

    Raises:
        HarnessError: the batch cannot be divided among the processes.
    """
    if batch % processes:
        raise HarnessError(f"a batch of {batch} cannot be divided among {processes} processes: take another number")
    out = Path(out_dir)
    prepare(str(out / "data"), images, processes)
    figures_path = out / "weights" / "figures.json"
    figures: dict[str, Any] = json.loads(figures_path.read_text()) if figures_path.exists() else {}
    for name in stages or STAGES:
        settings = Settings(
            folder=str(out / "checkpoints"), steps=(steps or STEPS).get(name, STEPS[name]), processes=processes,
            device=device, minutes=minutes, deadline=deadline, stop_after=stop_after,
            options={"data": str(out / "data"), "images": images, "batch": batch // processes},
        )  # fmt: skip
        begin = time.time()
        run_stage(STAGES[name], settings, progress)
        figures[name] = finish(name, settings, out / "weights") | {"seconds_of_last_call": round(time.time() - begin)}
        log.info("%s finished: %s", name, figures[name])
        if deadline is not None and time.time() > deadline:
            break
    write_atomic(figures_path, (json.dumps(figures, indent=1, sort_keys=True) + "\n").encode())
    return figures


def finish(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """Exports the averaged weights of a stage's checkpoint to ``folder``; it may be called while training goes on."""
    stage = STAGES[name](**settings.options, device=settings.device)
    stage.model.to(settings.device)
    step = load_average(stage, settings)
    done = {"steps": step, "batch": settings.options["batch"] * settings.processes}
    return stage.export(folder) | done | {"checkpoint": checkpoint_path(settings, name).name}
