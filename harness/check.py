"""What this machine has and lacks for a benchmark, and what the benchmark costs, before anything is run."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness import benchmark as benchmarks
from harness import registry
from harness.diffusion.counting import AnyJudge, Counting
from harness.errors import HarnessError
from harness.plan import total
from harness.prompts import Prompt
from harness.resolve import ResolvedMethod, ResolvedModel, resolve
from harness.seeding import RowKey
from harness.weights import files_of

SD_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def check(name: str | None) -> dict[str, Any]:
    """The report: `machine`, and for a benchmark `models`, `prompts`, `metrics`, `methods`, `cost`, `lacking`.

    Raises:
        HarnessError: the benchmark cannot be run as it is written (the message says all that is wrong).
    """
    report: dict[str, Any] = {"machine": _machine(), "metrics": [], "lacking": []}
    if name is None:
        report["metrics"] = [_metric(entry, _missing(entry)) for entry in registry.names("metric")]
        return report
    path = benchmarks.find(name)
    resolved = resolve(benchmarks.load(path), path)
    cells = resolved.cells()
    nfe = {
        (model, method): evaluations(resolved.models[model], resolved.methods[method])
        for model in resolved.models for method in resolved.methods
    }
    report |= {
        "benchmark": resolved.benchmark.name,
        "models": [_model(label, model) for label, model in resolved.models.items()],
        "prompts": [
            {"label": label, "set": p.id, "prompts": len(p.prompts), "nsfw": p.nsfw}
            for label, p in resolved.prompts.items()
        ],
        "metrics": [_metric(label, metric.missing) for label, metric in resolved.metrics.items()],
        "methods": [{"model": m, "method": k, "nfe": n} for (m, k), n in nfe.items()],
        "cost": {
            "samples": total(cells),
            "files": sum(-(-len(c.prompt_set.prompts) // c.shard_size) * len(c.seeds) for c in cells),
            "nfe": sum(nfe[cell.model, cell.method] * len(cell) for cell in cells),
        },
    }
    report["lacking"] = [entry["missing"] for entry in report["metrics"] if entry["missing"]]
    return report


def evaluations(model: ResolvedModel, method: ResolvedMethod) -> int:
    """Denoiser evaluations of one sample, found by running the method's own code on a model that only counts."""
    config = model.folder / "scheduler" / "scheduler_config.json"
    schedule = json.loads(config.read_text()) if config.is_file() else SD_SCHEDULE
    counting = Counting(schedule, model.cls.requests, ("main", *model.networks))
    judged = replace(method.method, judge=AnyJudge() if method.judge else None)
    return int(judged.run(counting, [Prompt("0", "")], [RowKey("check", "0", 0)]).nfe[0])


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpus": os.cpu_count(), "gpus": gpus, "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)}


def _model(label: str, model: ResolvedModel) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in files_of(model.folder) if path.suffix == ".safetensors")
    return {
        "label": label, "weights": model.spec.weights, "megabytes": round(size / 1e6, 1), "trained": model.trained,
        "networks": list(model.networks),
    }


def _missing(name: str) -> str | None:
    """What a metric with its defaults lacks here."""
    try:
        missing: str | None = registry.build("metric", name, {}).missing()
    except HarnessError as error:  # a parameter that has no default
        return str(error)
    return missing


def _metric(label: str, missing: str | None) -> dict[str, Any]:
    return {"label": label, "missing": missing}


def text(report: dict[str, Any]) -> str:
    """The report for reading."""
    machine = report["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    lines = [f"machine   {machine['cpus']} CPUs, {gpus}, {machine['free_disk_gb']} GB of disk free here"]
    for model in report.get("models", []):
        trained = "" if model["trained"] else ", random weights"
        networks = f", networks {', '.join(model['networks'])}" if model["networks"] else ""
        lines.append(f"model     {model['label']}: {model['weights']}, {model['megabytes']} MB{networks}{trained}")
    for prompts in report.get("prompts", []):
        nsfw = ", NSFW: its images are blurred where they are shown" if prompts["nsfw"] else ""
        lines.append(f"prompts   {prompts['label']}: {prompts['prompts']} of set {prompts['set']}{nsfw}")
    for method in report.get("methods", []):
        lines.append(f"method    {method['method']} on {method['model']}: {method['nfe']} evaluations an image")
    for metric in report["metrics"]:
        state = f"MISSING: {metric['missing']}" if metric["missing"] else "ready"
        lines.append(f"metric    {metric['label']}: {state}")
    if "cost" in report:
        cost = report["cost"]
        lines.append(f"cost      {cost['samples']:,} images in {cost['files']:,} files, {cost['nfe']:,} evaluations")
    return "\n".join(lines)
