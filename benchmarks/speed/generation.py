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

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from harness.engine import RayEngine
from harness.images import encode
from harness.job import Job, MethodJob, ModelJob, Slot
from harness.prompts import Prompt
from harness.seeding import normals, row_key
from harness.units import GenerateUnit, Part, Report, Row
from harness.weights import resolve

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


class Loop:
    """The plain loop over the library's pipeline, one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.pipeline = StableDiffusionPipeline.from_pretrained(
            resolve("builtin:shapes-sd"), safety_checker=None, torch_dtype=torch.float32
        )
        self.pipeline.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)

    def rate(self, first: int, count: int) -> float:
        """Images per second over `count` micro-batches."""
        started = time.perf_counter()
        for number in range(first, first + count):
            rows = unit(number).rows
            keys = [row_key("identity", "p", row.prompt.id, 0, {}) for row in rows]
            images = self.pipeline(
                [row.prompt.text for row in rows], num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np",
                latents=normals([key.generator("noise") for key in keys], (4, 16, 16)),
            ).images
            for image in (images * 255).round().astype("uint8"):
                encode(image[None], "webp")
        return count * BATCH / (time.perf_counter() - started)


class Workers:
    """A pool of workers, as a run has it."""

    def __init__(self, engine: RayEngine) -> None:
        self.engine, self.job = engine, job(tempfile.mkdtemp())

    def rate(self, first: int, count: int) -> float:
        """Images per second over `count` shards of one micro-batch, images encoded and written."""
        stamps: list[float] = []

        def note(report: Report) -> None:
            assert not report.failed, report.failed
            stamps.append(time.perf_counter())

        started = time.perf_counter()
        self.engine.run([unit(first + i) for i in range(count)], self.job, on_report=note)
        return count * BATCH / (stamps[-1] - started)


def compare(title: str, sides: tuple[Loop | Workers, Loop | Workers], counts: tuple[int, int], pairs: int) -> None:
    """Prints the second side's rate over the first's: the median of interleaved pairs, in either order."""
    print(title)
    for side in sides:
        side.rate(10**6, 4)  # a warm-up that is not counted
    ratios = []
    for pair in range(pairs):
        rates = [0.0, 0.0]
        for place in (0, 1) if pair % 2 == 0 else (1, 0):
            rates[place] = sides[place].rate(pair * max(counts), counts[place])
        ratios.append(rates[1] / rates[0])
        print(f"  {rates[0]:.2f} and {rates[1]:.2f} images/s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"{title}: median {statistics.median(ratios):.3f} of {pairs} pairs "
          f"({min(ratios):.3f} to {max(ratios):.3f})\n")


def main() -> None:
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--units", type=int, default=4, help="micro-batches a measurement")
    arguments = parser.parse_args()
    # Room for both pools at once: the idle one holds its CPUs, but does nothing with them.
    os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"}
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    units = arguments.units
    with RayEngine(workers=1) as one, RayEngine(workers=2) as two:
        worker = Workers(one)
        compare("one worker / pipeline loop", (Loop(), worker), (units, units), arguments.pairs)
        compare("two workers / one", (worker, Workers(two)), (units, 2 * units), arguments.pairs)


if __name__ == "__main__":
    main()
