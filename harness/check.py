"""What this machine has and lacks for a benchmark, and what the benchmark costs, before anything is run."""

import os
from pathlib import Path
from typing import Any

import torch

from harness import benchmark as benchmarks
from harness import estimate, manifest, registry
from harness.benchmark import ModelSpec, PromptSpec
from harness.errors import HarnessError
from harness.files import free
from harness.resolve import Resolved, survey
from harness.weights import files_of


def check(name: str | None, throughput: float | None = None, results: Path = Path()) -> dict[str, Any]:
    """The report: `machine`, and for a benchmark `models`, `prompts`, `metrics`, `methods`, `cost`, `disk`, `lacking`.

    Nothing is fetched. `throughput` is the denoiser evaluations a second of one GPU; without it one is assumed
    (`harness.estimate`). `results` is where run folders are to lie; `disk` says what room their disk lacks, None where
    it has enough.

    Raises:
        HarnessError: the benchmark cannot be run as it is written (the message says all that is wrong).
    """
    report: dict[str, Any] = {"machine": _machine(results), "metrics": [], "lacking": []}
    if name is None:
        report["metrics"] = [_metric(entry, _missing(entry)) for entry in registry.names("metric")]
        return report
    path = benchmarks.find(name)
    found = survey(benchmarks.load(path), path)
    models, prompts = found.benchmark.models, found.benchmark.prompts
    report |= {
        "benchmark": found.benchmark.name,
        "models": [_model(found, label, spec) for label, spec in models.items()],
        "prompts": [_prompts(found, label, spec) for label, spec in prompts.items()],
        "metrics": [_metric(label, metric.missing) for label, metric in found.metrics.items()],
        "methods": [
            {"model": label, "method": key} | estimate.evaluations(found.models.get(label), spec, method)
            for label, spec in models.items() for key, method in found.methods.items() if method.runs_on(label)
        ],
    }
    counts = {entry["label"]: entry["prompts"] for entry in report["prompts"]}
    report["cost"] = estimate.cost(found, counts, report["methods"], throughput)
    report["disk"] = _disk(report["cost"], results / found.benchmark.name)
    lacking = [*found.lacking.values(), *(entry["missing"] for entry in report["metrics"]), report["disk"]]
    report["lacking"] = list(dict.fromkeys(text for text in lacking if text))
    return report


def _disk(cost: dict[str, Any], run: Path) -> str | None:
    """What is still to be written into a run's folder, where its disk has less room; None where it has enough."""
    if cost["samples"] is None:
        return None
    there, room = free(run)
    made = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    needed = cost["images_gb"] + cost["features_gb"] - made / 1e9
    if needed <= room / 1e9:
        return None
    return (f"about {needed:,.1f} GB are still to be written, and the disk of {there.resolve()} has "
            f"{room / 1e9:,.1f} GB free: free some space, or give another folder with --results")


def _machine(results: Path) -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    there, room = free(results)
    return {"cpus": os.cpu_count(), "gpus": gpus, "free_disk_gb": round(room / 1e9, 1), "disk": str(there.resolve())}


def _model(found: Resolved, label: str, spec: ModelSpec) -> dict[str, Any]:
    place, model = f"models.{label}", found.models.get(label)
    entry: dict[str, Any] = {"label": label, "weights": spec.weights, "missing": found.lacking.get(place)}
    entry["networks"] = [
        {"label": name, "source": network.source, "missing": found.lacking.get(f"{place}.networks.{name}")}
        for name, network in spec.networks.items()
    ]
    entry["opens"] = [
        {"source": key.removeprefix(f"{place}.opens."), "missing": missing}
        for key, missing in found.lacking.items() if key.startswith(f"{place}.opens.")
    ]
    if model is None:
        return entry | {"megabytes": None, "trained": None, "frames": None}
    size = sum(path.stat().st_size for path in files_of(model.folder) if path.suffix == ".safetensors")
    frames = model.cls.frames_of(model.folder)
    return entry | {"megabytes": round(size / 1e6, 1), "trained": model.trained, "frames": frames}


def _prompts(found: Resolved, label: str, spec: PromptSpec) -> dict[str, Any]:
    """Of a set that is not here, as many prompts as its manifest says; None where none says it."""
    here = found.prompts.get(label)
    count = len(here.prompts) if here else _promised(spec)
    known = spec.set in manifest.known() and manifest.load(spec.set).nsfw
    return {
        "label": label, "set": spec.set, "prompts": count, "nsfw": here.nsfw if here else spec.nsfw or known,
        "missing": found.lacking.get(f"prompts.{label}"),
    }


def _promised(spec: PromptSpec) -> int | None:
    """How many prompts a selection of a known set has; of a set of unknown size as many as it asks for."""
    if spec.set not in manifest.known():
        return None
    known = manifest.load(spec.set)
    rows = known.rows
    if spec.category is not None:
        wanted = {spec.category} if isinstance(spec.category, str) else set(spec.category)
        rows = sum(known.categories[name] for name in wanted) if wanted <= known.categories.keys() else None
    chosen = spec.first or spec.sample
    return chosen if rows is None else min(rows, chosen or rows)


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
    room = f"{machine['free_disk_gb']:,} GB free on the disk of {machine['disk']}"
    lines = [f"machine   {machine['cpus']} CPUs, {gpus}, {room}"]
    for model in report.get("models", []):
        size = "" if model["megabytes"] is None else f", {model['megabytes']:,} MB"
        clips = f", clips of {model['frames']} frames" if (model["frames"] or 1) > 1 else ""
        random = ", random weights" if model["trained"] is False else ""
        lines.append(f"model     {model['label']}: {model['weights']}{size}{clips}{random}{_lacks(model)}")
        lines += [
            f"network   {network['label']} of {model['label']}: {network['source']}{_lacks(network)}"
            for network in model["networks"]
        ]
        lines += [
            f"weights   {other['source']}, which {model['label']} opens:{_lacks(other)}" for other in model["opens"]
        ]
    for prompts in report.get("prompts", []):
        count = "unknown" if prompts["prompts"] is None else f"{prompts['prompts']:,}"
        nsfw = ", NSFW: its images are blurred where they are shown" if prompts["nsfw"] else ""
        lines.append(f"prompts   {prompts['label']}: {count} of set {prompts['set']}{nsfw}{_lacks(prompts)}")
    for method in report.get("methods", []):
        judged = f", {method['judged']:,} images shown to its judge" if method["judged"] else ""
        lines.append(
            f"method    {method['method']} on {method['model']}: {method['nfe']:,} evaluations an image{judged}"
        )
    for metric in report["metrics"]:
        lines.append(f"metric    {metric['label']}:{_lacks(metric) or ' ready'}")
    return "\n".join([*lines, *(_cost(report["cost"], report["disk"]) if "cost" in report else [])])


def _lacks(entry: dict[str, Any]) -> str:
    return f" MISSING: {entry['missing']}" if entry["missing"] else ""


def _cost(cost: dict[str, Any], disk: str | None) -> list[str]:
    if cost["samples"] is None:
        return ["cost      unknown, as the number of prompts is"]
    judged = f", {cost['judged']:,} images judged" if cost["judged"] else ""
    lines = [
        f"cost      {cost['samples']:,} images in {cost['files']:,} files, {cost['nfe']:,} evaluations{judged}",
        f"disk      about {cost['images_gb']:,} GB of images, {cost['features_gb']:,} GB of features"
        f"{_lacks({'missing': disk})}",
    ]
    speeds = ", ".join(f"{label} {speed:,}" for label, speed in cost["evaluations_per_second"].items() if speed)
    if cost["gpu_hours"] is None:
        return [*lines, "time      unknown: say `--throughput EVALUATIONS_PER_SECOND`"]
    source = " (assumed; --throughput takes yours)" if cost["assumed"] else ""
    return [
        *lines,
        f"time      about {cost['gpu_hours']:,} GPU-hours in the denoiser at so many evaluations/s: {speeds}{source}",
    ]
