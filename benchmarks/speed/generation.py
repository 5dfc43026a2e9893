"""Images per second in steady state: a worker against a plain loop over the library's pipeline, and two workers
against one.

    uv run python benchmarks/speed/generation.py

Targets: the single-thread worker at least as fast as the loop (same model, steps, scale, batch, dtype, same
lossless codec); two workers on two cores at least 1.7 times one. Start-up is left out of every figure. The figures
are medians of interleaved pairs, so that a machine whose speed drifts does both sides the same harm.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from harness.engine import RayEngine
from harness.images import encode
from harness.job import Job, MethodJob, ModelJob, Slot
from harness.prompts import Prompt
from harness.seeding import normals, row_key
from harness.units import GenerateUnit, Part, Report, Row
from harness.weights import resolve
from harness.worker import Worker

BATCH, STEPS, SCALE = 24, 20, 3.0
TEXTS = ("a red circle", "a blue square above a green star", "three yellow rings", "a purple cross and a circle")


def unit(number: int) -> GenerateUnit:
    """A shard of one micro-batch."""
    prompts = [Prompt(f"{number}-{i}", TEXTS[i % len(TEXTS)]) for i in range(BATCH)]
    rows = tuple(Row(f"{number:08x}{i:024x}", prompt) for i, prompt in enumerate(prompts))
    return GenerateUnit(Part("sd", "cfg", "p", f"0-{number}-{number}"), "p", 0, "identity", BATCH, rows)


def job(folder: str) -> Job:
    """The shapes model, DDIM with guidance."""
    sampler = {"name": "ddim", "steps": STEPS, "spacing": "trailing"}
    return Job(
        root=folder,
        models={"sd": ModelJob("stable_diffusion", "builtin:shapes-sd", slot=Slot("cpu", 1))},
        methods={"cfg": MethodJob(None, {"cfg": {"scale": SCALE}}, sampler)},
    )


def against_the_pipeline(pairs: int, units: int) -> list[float]:
    """Worker rate over loop rate, one entry a pair; both in this process, one thread."""
    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(
        resolve("builtin:shapes-sd"), safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def loop(first: int) -> None:
        for number in range(first, first + units):
            rows = unit(number).rows
            keys = [row_key("identity", "p", row.prompt.id, 0, {}) for row in rows]
            noise = normals([key.generator("noise") for key in keys], (4, 16, 16))
            images = pipeline(
                [row.prompt.text for row in rows], latents=noise, num_inference_steps=STEPS, guidance_scale=SCALE,
                output_type="np",
            ).images
            for image in (images * 255).round().astype("uint8"):
                encode(image[None], "webp")

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(job(folder), Slot("cpu", 1))

        def work(first: int) -> None:
            with ThreadPoolExecutor(2) as calls:  # as the engine's actor calls it
                for report in calls.map(worker.run, [unit(number) for number in range(first, first + units)]):
                    assert not report.failed, report.failed

        for side in (loop, work):
            side(10**6)  # a warm-up that is not counted
        for pair in range(pairs):
            seconds = {}
            for side in (loop, work) if pair % 2 == 0 else (work, loop):
                started = time.perf_counter()
                side(pair * units)
                seconds[side] = time.perf_counter() - started
            rates = [units * BATCH / seconds[side] for side in (loop, work)]
            ratios.append(rates[1] / rates[0])
            print(f"  loop {rates[0]:.2f} images/s, worker {rates[1]:.2f} images/s, ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def two_against_one(pairs: int, units: int) -> list[float]:
    """Rate of two workers over the rate of one, one entry a pair; workers are warm before the clock runs."""
    # Room for both pools at once: the idle one holds its CPUs, but does nothing with them.
    os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"}
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with RayEngine(workers=1) as one, RayEngine(workers=2) as two:
        ratios = []
        folders = {engine: tempfile.mkdtemp() for engine in (one, two)}

        def rate(engine: RayEngine, first: int, count: int) -> float:
            stamps: list[float] = []

            def note(report: Report) -> None:
                assert not report.failed, report.failed
                stamps.append(time.perf_counter())

            started = time.perf_counter()
            engine.run([unit(first + i) for i in range(count)], job(folders[engine]), on_report=note)
            return count * BATCH / (stamps[-1] - started)

        for engine, workers in ((one, 1), (two, 2)):
            rate(engine, 10**6, 2 * workers)
        for pair in range(pairs):
            rates = [rate(engine, pair * 2 * units, workers * units) for engine, workers in ((one, 1), (two, 2))]
            ratios.append(rates[1] / rates[0])
            print(f"  one {rates[0]:.2f} images/s, two {rates[1]:.2f} images/s, ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def main() -> None:
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--units", type=int, default=4, help="micro-batches a measurement")
    arguments = parser.parse_args()
    for title, measure in (("worker / pipeline loop", against_the_pipeline), ("two workers / one", two_against_one)):
        print(title)
        ratios = measure(arguments.pairs, arguments.units)
        print(f"{title}: median {statistics.median(ratios):.3f} of {len(ratios)} pairs "
              f"({min(ratios):.3f} to {max(ratios):.3f})\n")


if __name__ == "__main__":
    main()
