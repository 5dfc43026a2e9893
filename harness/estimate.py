"""What a benchmark costs, before it is run: evaluations, files, disk, and GPU-hours at a stated or assumed speed."""

import json
import math
import re
from dataclasses import replace
from typing import Any

from harness import registry
from harness.benchmark import ModelSpec
from harness.diffusion.base import Diffusion
from harness.diffusion.counting import AnyJudge, Counting
from harness.diffusion.edm import VarianceExploding
from harness.metrics.base import DistributionMetric
from harness.plan import shard_size
from harness.prompts import Prompt
from harness.resolve import Resolved, ResolvedMethod, ResolvedModel
from harness.seeding import RowKey

SD_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
# Assumed of a GPU where no throughput is given: TFLOP/s by dtype, kept up over a whole run.
TFLOPS = {"float16": 100.0, "bfloat16": 100.0, "float32": 25.0}
# TFLOP of one row's evaluation by a published UNet (counted as `Diffusion.flops_per_evaluation` does) at a side in
# pixels; they grow with the pixels, attention's share a little faster.
EVALUATION = {"stable_diffusion": (0.80, 512), "stable_diffusion_xl": (6.76, 1024), "sv3d": (34.6, 576)}
FRAMES = {"sv3d": 21}  # of a sample, where the weights are not here to say it; other families make stills
# Likewise of EDM2's networks, by the size in their names; they make images of one side each.
EDM2 = {"xs": 0.090, "s": 0.202, "m": 0.358, "l": 0.559, "xl": 0.804, "xxl": 1.094}
EDM2_NAME = re.compile(r"edm2-img(?:64|512)-(xs|s|m|l|xl|xxl)-")
IMAGE_BYTES = 1.4  # a pixel as lossless WebP: 1.24 and 1.45 measured on photographs of 1024 and 512 pixels
FEATURE_BYTES = 4 * 2048  # of an image for each extractor: Inception's, the widest


def evaluations(model: ResolvedModel | None, spec: ModelSpec, method: ResolvedMethod) -> dict[str, Any]:
    """What one sample takes, found by running the method's own code on a model that only counts.

    `nfe`: denoiser evaluations, and `by_network`; `judged`: images that the method's judge is shown. For a model that
    is not here the solver's grid is Stable Diffusion's, or its family's own, of the same length.
    """
    cls: type[Diffusion] = registry.load("model", spec.family)
    config = model.folder / "scheduler" / "scheduler_config.json" if model else None
    schedule = json.loads(config.read_text()) if config is not None and config.is_file() else SD_SCHEDULE
    grid = cls.grid if issubclass(cls, VarianceExploding) else None
    clips = getattr(method.method.guidance, "needs_frames", False)
    counting = Counting(schedule, cls.requests, ("main", *spec.networks), cls.unconditional, grid, clips)
    judge = AnyJudge()
    counted = replace(method.method, judge=judge if method.judge else None)
    made = counted.run(counting, [Prompt("0", "")], [RowKey("check", "0", 0)])
    return {"nfe": int(made.nfe[0]), "by_network": made.nfe_by_network[0], "judged": judge.judged}


def cost(
    found: Resolved, prompts: dict[str, int | None], methods: list[dict[str, Any]], throughput: float | None
) -> dict[str, Any]:
    """The whole benchmark's cost, given how many prompts each set has (None: not known) and `evaluations`.

    GPU-hours are the denoiser's alone: text encoders, decoders, judges and metrics come on top. All figures are None
    where the number of prompts is not known, `gpu_hours` also where no speed is.
    """
    models, seeds = found.benchmark.models, len(found.benchmark.seeds)
    known = [count for count in prompts.values() if count is not None]
    if len(known) < len(prompts):
        return dict.fromkeys(("samples", "files", "nfe", "judged", "gpu_hours", "images_gb", "features_gb"))
    samples = sum(known) * seeds  # of one model and one method
    everything = samples * len(methods)
    specs = [models[entry["model"]] for entry in methods]
    parts = seeds * sum(-(-count // shard_size(spec.batch)) for spec in specs for count in known)
    features = {m.metric.extractor for m in found.metrics.values() if isinstance(m.metric, DistributionMetric)}
    scores = [m for m in found.metrics.values() if not isinstance(m.metric, DistributionMetric)]
    here = {label: model.cls.frames_of(model.folder) for label, model in found.models.items()}
    pixels = sum(
        side(spec) ** 2 * here.get(entry["model"], FRAMES.get(spec.family, 1))
        for entry, spec in zip(methods, specs, strict=True)
    )
    speeds = {
        label + f" {network}" * (network != "main"): throughput or assumed(spec, network)
        for label, spec in models.items() for network in ("main", *spec.networks)
        if network == "main" or (not throughput and assumed(spec, network) != assumed(spec))
    }
    hours = None
    if None not in speeds.values():
        hours = samples / 3600 * sum(
            count / (throughput or assumed(spec, network) or math.nan)
            for entry, spec in zip(methods, specs, strict=True) for network, count in entry["by_network"].items()
        )
    return {
        "samples": everything,
        "files": parts * (1 + len(features) + len(scores)),
        "nfe": samples * sum(entry["nfe"] for entry in methods),
        "judged": samples * sum(entry["judged"] for entry in methods),
        "gpu_hours": None if hours is None else round(hours, 2),
        "evaluations_per_second": speeds,
        "assumed": throughput is None,
        "images_gb": round(samples * pixels * IMAGE_BYTES / 1e9, 2),
        "features_gb": round(everything * len(features) * FEATURE_BYTES / 1e9, 2),
    }


def side(spec: ModelSpec) -> int:
    """The side of a model's images in pixels, as far as the file says it."""
    return spec.size or EVALUATION.get(spec.family, (0, 512))[1]


def assumed(spec: ModelSpec, network: str = "main") -> float | None:
    """Evaluations a second of one GPU that are assumed; None where there is nothing to assume it from.

    Of EDM2 each network has its own cost; a further network of the other families costs what the model's own does.
    """
    source = spec.weights if network == "main" else spec.networks[network].source
    if spec.family == "edm2":
        named = EDM2_NAME.search(source)
        return round(TFLOPS[spec.dtype] / EDM2[named[1]], 1) if named else None
    if spec.family not in EVALUATION or spec.weights.startswith("builtin:"):
        return None
    teraflop, at = EVALUATION[spec.family]
    return round(TFLOPS[spec.dtype] / (teraflop * (side(spec) / at) ** 2), 1)
