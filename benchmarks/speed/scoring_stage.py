"""How busy scoring from Parquet keeps the model: the share of wall time outside preprocessing and model calls.

    uv run python benchmarks/speed/scoring_stage.py

Target: at most 10 %. Images of 512 x 512 pixels in lossless WebP, a random CLIP of ViT-B/32's size, float32; a worker
with two units in flight, as its actor has them. What is outside: reading and decoding that nothing hides, batches put
together, scores written. Start-up is left out.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from harness.job import Job, MetricJob, Slot
from harness.metrics.clip import Clip
from harness.prompts import Prompt
from harness.store import Store
from harness.units import Part, ScoreUnit
from harness.weights import resolve
from harness.worker import Worker

SIZE, UNIT = 512, 16
busy = 0.0  # seconds in preprocessing and model calls; one thread at a time computes


def checkpoint(folder: Path) -> Path:
    """A random CLIP whose image tower has ViT-B/32's size."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin:shapes-clip"))
    text = {
        "vocab_size": len(tokenizer), "num_hidden_layers": 2, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)  # vision: 12 layers of 768, patches of 32
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


def picture(rng: np.random.Generator) -> np.ndarray:
    """Waves and a little noise: about as large in WebP as a photograph."""
    y, x, c = np.ogrid[:SIZE, :SIZE, :3]
    a, b, phase = rng.uniform(5, 60, 3), rng.uniform(5, 60, 3), rng.uniform(0, 6, 3)
    waves = sum(40 * np.sin(x / a[i] + y / b[i] + phase[i] * c) for i in range(3))
    return np.clip(128 + waves + rng.normal(0, 5, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)[None]


def units(store: Store, count: int) -> list[ScoreUnit]:
    """Writes `count` images and says what is to be scored."""
    rng, made = np.random.default_rng(0), []
    for first in range(0, count, UNIT):
        part = Part("model", "method", "prompts", f"0-{first}-{first + UNIT - 1}")
        prompts = [Prompt(str(i), f"a photo of a circle {i % 40}") for i in range(first, first + UNIT)]
        rows = [{"sample_id": f"{i:032x}", "prompt_id": p.id, "prompt": p.text, "seed": 0, "error": None}
                for i, p in enumerate(prompts, first)]
        store.write_images(part, rows, [picture(rng) for _ in rows])
        made.append(ScoreUnit(part, ("clipscore-shapes",), (), tuple(prompts)))
    return made


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its seconds added to `busy`."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        global busy  # noqa: PLW0603
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            busy += time.perf_counter() - started

    return wrapped


def main() -> None:
    """Prints the share of each repetition and their median."""
    global busy
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the model, as in a benchmark's model block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flight", type=int, default=2, help="units in flight; 1 hides nothing")
    arguments = parser.parse_args()
    for name in ("pixels", "embed", "text"):
        setattr(Clip, name, timed(getattr(Clip, name)))
    with tempfile.TemporaryDirectory() as place:
        weights = checkpoint(Path(place) / "clip")
        store = Store(Path(place) / "run")
        work = units(store, arguments.images)
        slot = Slot(arguments.device, arguments.threads)
        metric = MetricJob("clipscore-shapes", {"weights": str(weights)}, "digest")
        worker = Worker(Job(str(store.root), metrics={"clipscore-shapes": metric}, scoring=slot), slot)
        worker.run(work[0])  # loads the model, imports, warms up
        shares = []
        for _ in range(arguments.repeats):
            busy, started = 0.0, time.perf_counter()
            with ThreadPoolExecutor(arguments.flight) as threads:
                reports = list(threads.map(worker.run, work))
            wall = time.perf_counter() - started
            assert not any(report.failed for report in reports), reports
            shares.append(1 - busy / wall)
            print(f"  {arguments.images / wall:.1f} images/s, {shares[-1]:.1%} outside", flush=True)
    median = statistics.median(shares)
    print(f"scoring {arguments.images} images from Parquet: {median:.1%} of wall time outside preprocessing and model "
          f"calls (median of {arguments.repeats}; target: at most 10 %)")


if __name__ == "__main__":
    main()
