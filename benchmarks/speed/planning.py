"""How long it takes to plan 1,000,000 samples, and how much memory.

    uv run python benchmarks/speed/planning.py

Target: at most 10 s and 500 MB.
"""

import resource
import time

from harness.plan import Cell, shards
from harness.prompts import Prompt, PromptSet


def main() -> None:
    """Plans 5 methods x 50,000 prompts x 4 seeds, none done and then half of them done."""
    prompts = PromptSet("coco", tuple(Prompt(str(i), f"a photo of object {i}") for i in range(50_000)))
    cells = [
        Cell("model", f"method-{k}", "coco", "m" * 64, str(k) * 64, prompts, (0, 1, 2, 3), "identity", 8)
        for k in range(5)
    ]
    for name, finished in (("nothing done", 0), ("half done", 2)):
        started = time.perf_counter()
        samples = units = 0
        for cell in cells:
            done = {cell.sample_id(p.id, seed) for seed in range(finished) for p in prompts.prompts}
            for unit in shards(cell, done):
                units += 1
                samples += len(unit.rows)
        seconds = time.perf_counter() - started
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {samples:,} samples in {units:,} shards, {seconds:.1f} s, peak {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
