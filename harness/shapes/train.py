"""Makes the shapes models from nothing: ``train(folder)``, four stages, each with checkpoints and exact resume.

1. ``autoencoder``   2. ``text``   3. ``unet`` (by far the longest)   4. ``vision``
Stages 1 and 2 need only the drawn scenes; 3 needs both; 4 needs 2. Under the folder: ``data`` (scenes, latents, text
states; can be deleted), ``checkpoints``, ``parts`` (finished pieces) and at last ``weights/shapes-clip`` and
``weights/shapes-sd`` in the libraries' own formats, with ``weights/figures.json``.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.metrics.distribution_shapes import make_reference
from harness.shapes.loop import Progress, Settings, Stage, checkpoint_path, load_average, run_stage

log = logging.getLogger("harness.shapes.train")
STEPS = {"autoencoder": 3700, "text": 1700, "unet": 20_000, "vision": 5_000}
BATCH = {"autoencoder": 40, "text": 128, "unet": 48, "vision": 96}  # of all processes together
SCENES = 60_000


def stage_class(name: str) -> type[Stage]:
    """The class of a stage by its name."""
    if name == "autoencoder":
        from harness.shapes.train_autoencoder import AutoencoderStage

        return AutoencoderStage
    if name == "text":
        from harness.shapes.train_text import TextStage

        return TextStage
    if name == "unet":
        from harness.shapes.train_unet import UNetStage

        return UNetStage
    if name == "vision":
        from harness.shapes.train_vision import VisionStage

        return VisionStage
    raise ValueError(f"unknown training stage {name!r}; known: {', '.join(STEPS)}")


def train(
    out_dir: str | Path,
    stages: Sequence[str] | None = None,
    processes: int = 2,
    threads: int = 1,
    device: str = "cpu",
    steps: Mapping[str, int] | None = None,
    resume: bool = True,
    scenes: int = SCENES,
    batch: Mapping[str, int] | None = None,
    minutes: float = 5.0,
    deadline: float | None = None,
    continue_from: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the stages (all four by default, in order) and assemble what is finished; returns the stages' figures.

    Arguments:
        out_dir: everything is written under it; calling again resumes.
        processes, threads: CPU data-parallel processes and threads of each; on a GPU use one process.
        steps, batch: overrides by stage; batch counts all processes together.
        resume: False throws the stages' checkpoints away first.
        scenes: drawn training scenes, a multiple of 5,000 (12 KB each on disk).
        minutes: between checkpoints. deadline: epoch seconds at which to checkpoint and stop.
        continue_from: a weights folder (the shipped one, say) to start from instead of random weights; parts that
            are not trained here are taken from it.
        progress: called on rank 0 with {stage, step, steps, loss, samples_per_s, eta_s, ...}; it must be picklable
            when processes > 1. Default: log lines.
    """
    names = list(stages or STEPS)
    for name in [*names, *(steps or {}), *(batch or {})]:
        if name not in STEPS:
            raise ValueError(f"unknown training stage {name!r}; known: {', '.join(STEPS)}")
    if device != "cpu" and processes != 1:
        raise ValueError(f"on {device} train with one process, not {processes}")
    out = Path(out_dir)
    parts, data = out / "parts", out / "data"
    from harness.shapes.data import load_world

    load_world(data, scenes, processes)
    if continue_from is not None:
        _take_parts(Path(continue_from), parts)
    figures_path = out / "weights" / "figures.json"
    figures: dict[str, Any] = json.loads(figures_path.read_text()) if figures_path.exists() else {}
    for name in names:
        options: dict[str, Any] = {"data": str(data), "scenes": scenes}
        options["batch"] = (batch or BATCH).get(name, BATCH[name]) // processes
        if name in ("unet", "vision"):
            for need in ("vae", "text") if name == "unet" else ("text",):
                if not (parts / need).exists():
                    raise FileNotFoundError(f"stage {name!r} needs {parts / need}: train the earlier stages first")
            options["parts"] = str(parts)
        if continue_from is not None:
            where = {"autoencoder": "shapes-sd/vae", "unet": "shapes-sd/unet"}.get(name, "shapes-clip")
            options["init"] = str(Path(continue_from) / where)
        if name == "unet":
            from harness.shapes.train_unet import prepare

            prepare(str(data), scenes, str(parts), processes)
        settings = Settings(
            folder=str(out / "checkpoints"),
            steps=(steps or STEPS).get(name, STEPS[name]),
            processes=processes,
            threads=threads,
            device=device,
            resume=resume,
            minutes=minutes,
            deadline=deadline,
            options=options,
        )
        if not resume:
            checkpoint_path(settings, name).unlink(missing_ok=True)
        begin = time.time()
        run_stage(stage_class(name), settings, progress)
        found = finish(name, settings, parts)
        figures[name] = found | {"seconds_of_last_call": round(time.time() - begin)}
        log.info("%s finished: %s", name, found)
        if deadline is not None and time.time() > deadline:
            break
    assemble(parts, out / "weights")
    figures_path.parent.mkdir(parents=True, exist_ok=True)
    figures_path.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    return figures


def _take_parts(weights: Path, parts: Path) -> None:
    """The parts of a weights folder, where they do not lie there yet."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    half: dict[str, Any] = {"torch_dtype": torch.float16}
    if not (parts / "vae").exists():
        AutoencoderTiny.from_pretrained(weights / "shapes-sd" / "vae", **half).save_pretrained(parts / "vae")
    if not (parts / "unet").exists():
        UNet2DConditionModel.from_pretrained(weights / "shapes-sd" / "unet", **half).save_pretrained(parts / "unet")
    if not (parts / "text").exists():
        text = CLIPTextModelWithProjection.from_pretrained(weights / "shapes-clip", dtype=torch.float16)
        text.save_pretrained(parts / "text")
    if not (parts / "shapes-clip").exists():
        shutil.copytree(weights / "shapes-clip", parts / "shapes-clip")


def finish(name: str, settings: Settings, parts: Path) -> dict[str, Any]:
    """Export a stage's averaged weights from its checkpoint to ``parts``."""
    make: Any = stage_class(name)
    stage: Stage = make(**settings.options, device=settings.device)
    stage.model.to(settings.device)
    step = load_average(stage, settings)
    return stage.export(parts) | {"steps": step, "batch": settings.options["batch"] * settings.processes}


def assemble(parts: Path, weights: Path) -> None:
    """Put finished parts together as ``shapes-clip`` and ``shapes-sd`` under ``weights``; what is missing waits."""
    if (parts / "shapes-clip").exists():
        shutil.copytree(parts / "shapes-clip", weights / "shapes-clip", dirs_exist_ok=True)
        make_reference(str(weights / "shapes-clip"))
    if all((parts / p).exists() for p in ("vae", "text", "unet")):
        assemble_pipeline(parts, weights / "shapes-sd")
    for config in (*weights.rglob("config.json"), *weights.rglob("model_index.json")):
        # The libraries note the folder that a model was loaded from: nobody else's business.
        config.write_text(json.dumps(_without(json.loads(config.read_text()), "_name_or_path"), indent=2) + "\n")


def _without(value: Any, key: str) -> Any:
    """Nested dicts without a key."""
    return {k: _without(v, key) for k, v in value.items() if k != key} if isinstance(value, dict) else value


def assemble_pipeline(parts: Path, folder: Path) -> None:
    """Save a StableDiffusionPipeline folder in half precision."""
    from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    from harness.shapes.tokenizer import make_tokenizer, save_tokenizer
    from harness.shapes.train_unet import make_scheduler

    pipe = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(parts / "vae", torch_dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text").half(),
        tokenizer=make_tokenizer(),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet", torch_dtype=torch.float16),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    save_tokenizer(folder / "tokenizer")
