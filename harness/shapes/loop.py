"""The training loop that all stages share: data-parallel processes, EMA, checkpoints, exact resume.

A step's data and noise come from a generator seeded by (stage, step, rank) alone, so a run that is broken off and
resumed makes the same weights, bit for bit, as one that is not (same processes, threads and machine).
On CPUs two single-thread processes are far faster than two threads (measured: threads of tiny layers mostly wait).
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

log = logging.getLogger("harness.shapes.train")


@dataclass
class Draws:
    """The randomness of one step on one rank: a numpy generator for choices and a torch generator for noise."""

    numpy: np.random.Generator
    torch: torch.Generator


def draws(stage: str, step: int, rank: int) -> Draws:
    """Generators seeded by (stage, step, rank)."""
    seed = int.from_bytes(hashlib.sha256(f"shapes/{stage}/{step}/{rank}".encode()).digest()[:8], "little") >> 1
    return Draws(np.random.default_rng(seed), torch.Generator("cpu").manual_seed(seed))


class Stage:
    """One part of the training. Subclasses build ``model`` in ``__init__`` and define ``loss`` and ``export``."""

    name = "stage"
    lr = 1e-3
    betas = (0.9, 0.99)
    weight_decay = 0.01
    warmup = 100
    decay = 0.4  # the last share of the steps, over which the learning rate falls linearly
    final = 0.02  # share of the learning rate that is left at the end
    ema = 0.998
    clip: float | None = 1.0  # largest norm of all gradients together
    model: nn.Module

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step's data on this rank, and figures to log."""
        raise NotImplementedError

    def samples(self) -> int:
        """Samples of one step on one rank."""
        raise NotImplementedError

    def export(self, out: Path) -> dict[str, Any]:
        """Write the trained part (the model holds its averaged weights); returns figures for the model card."""
        raise NotImplementedError

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step of a run of so many steps."""
        start = steps * (1 - self.decay)
        fall = 1.0 if step < start else max(0.0, (steps - step) / (steps - start))
        return self.lr * min(1.0, (step + 1) / self.warmup) * (self.final + (1 - self.final) * fall)

    def keep(self, step: int) -> float:
        """The share of the averaged weights that stays at a step."""
        return min(self.ema, (1 + step) / (10 + step))


@dataclass
class Settings:
    """How a stage runs."""

    folder: str  # checkpoints lie here
    steps: int
    processes: int = 2
    threads: int = 1
    device: str = "cpu"  # "cuda": a GPU for each process
    resume: bool = True
    minutes: float = 5.0  # between checkpoints
    every: int = 100  # steps between log lines
    stop_after: int | None = None  # break off after this many steps of this call (tests, time slices)
    deadline: float | None = None  # epoch seconds: finish the step, checkpoint, stop
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the stage


Progress = Callable[[dict[str, Any]], None]


def run_stage(make: Callable[..., Stage], settings: Settings, progress: Progress | None = None) -> None:
    """Train a stage to its checkpoint, in ``settings.processes`` processes (in this one if 1)."""
    if settings.processes == 1:
        _train(0, make, settings, None, progress)
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    spawn(_train, (make, settings, port, progress), nprocs=settings.processes)


def checkpoint_path(settings: Settings, name: str) -> Path:
    """Where a stage's checkpoint lies."""
    return Path(settings.folder) / f"{name}.checkpoint.pt"


def _train(rank: int, make: Callable[..., Stage], settings: Settings, port: int | None, progress: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    world = settings.processes
    if world > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"})
    accelerator = Accelerator(cpu=settings.device == "cpu")
    device = str(accelerator.device)
    torch.set_num_threads(settings.threads)  # accelerate has a number of its own
    torch.manual_seed(0)
    stage = make(rank=rank, device=device, **settings.options)
    model = stage.model.to(device).train()
    params = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay)
    path = checkpoint_path(settings, stage.name)
    step = 0
    if settings.resume and path.exists():
        # To the CPU: torch.load takes no "cpu:0", which a process's device may be, and what follows copies anyway.
        saved = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch._foreach_copy_(average, saved["ema"])
        step = saved["step"]

    def save() -> None:
        if rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "ema": average, "optimizer": optimizer.state_dict(), "step": step}
            beside = path.with_suffix(".tmp")
            torch.save(state, beside)
            os.replace(beside, path)

    begin, first, saved_at, stop = time.time(), step, time.time(), False
    while step < settings.steps and not stop:
        rate = stage.rate(step, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, figures = stage.loss(draws(stage.name, step, rank), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
        now = time.time()
        late = float(settings.deadline is not None and now > settings.deadline)
        if world > 1:
            # One message for all gradients; the losses are no plain calls of the model that DDP could wrap.
            flat = torch.cat([g.reshape(-1) for g in grads] + [grads[0].new_tensor([late])])
            flat = accelerator.reduce(flat, reduction="mean")
            late = float(flat[-1])
            offset = 0
            for p in params:
                p.grad = flat[offset : offset + p.numel()].view_as(p)
                offset += p.numel()
        if stage.clip is not None:
            nn.utils.clip_grad_norm_(params, stage.clip)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - stage.keep(step))
        step += 1
        stop = late > 0 or (settings.stop_after is not None and step - first >= settings.stop_after)
        if rank == 0 and (step % settings.every == 0 or step == settings.steps or stop):
            speed = (step - first) * stage.samples() * world / (time.time() - begin)
            eta = (settings.steps - step) * (time.time() - begin) / (step - first)
            event = {"stage": stage.name, "step": step, "steps": settings.steps, "loss": float(loss.detach())}
            event |= {"samples_per_s": speed, "eta_s": eta} | figures
            if progress is not None:
                progress(event)
            else:
                extra = " ".join(f"{k} {v:.4g}" for k, v in figures.items())
                log.info(
                    "%s %d/%d loss %.4f %s | %.0f samples/s, %.0f s left",
                    stage.name, step, settings.steps, event["loss"], extra, speed, eta,
                )  # fmt: skip
        if time.time() - saved_at > settings.minutes * 60 or stop or step == settings.steps:
            save()
            saved_at = time.time()
    accelerator.end_training()


def load_average(stage: Stage, settings: Settings) -> int:
    """Put the averaged weights of a stage's checkpoint into its model; returns the step."""
    saved = torch.load(checkpoint_path(settings, stage.name), weights_only=True, map_location=settings.device)
    stage.model.load_state_dict(saved["model"])
    params: list[Tensor] = [p for p in stage.model.parameters() if p.requires_grad]
    with torch.no_grad():
        torch._foreach_copy_(params, saved["ema"])
    stage.model.eval()
    return int(saved["step"])
