"""How long the tables of 1,000,000 score rows take, with intervals and paired differences, and how much memory.

    uv run python benchmarks/speed/tables.py [--methods 20] [--metrics 5] [--prompts 5000] [--seeds 2]

Three cases, each in a process of its own, all of 1,000,000 rows by default: table records, differences and Markdown
from rows in memory, spread over 100 cells (methods × metrics) and in a single one; and the whole `harness table RUN
--ci` on a run folder, written here through `harness.store` without images. Target: at most 30 s and 2 GB each.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

METRIC = '''import dataclasses

from harness.metrics.base import SampleMetric

@dataclasses.dataclass(frozen=True)
class Made{k}(SampleMetric):
    """Stands for a scorer; its scores are written, not computed."""

    name = "made-{k}"

    def score(self, images, prompts):
        raise NotImplementedError
'''


def score_values(methods: int, metrics: int, prompts: int, seeds: int) -> np.ndarray:
    """Scores `[methods, metrics, seeds, prompts]`: every third metric is 0 or 1, the seeds of a prompt are alike."""
    rng = np.random.default_rng(0)
    shape = (methods, metrics, seeds, prompts)
    shared = rng.normal(size=(1, metrics, 1, prompts)) + 0.5 * rng.normal(size=(1, metrics, seeds, prompts))
    values = np.asarray(shared + rng.normal(size=shape) + np.linspace(0, 0.2, methods).reshape(-1, 1, 1, 1))
    values[:, ::3] = values[:, ::3] > 0
    return values


def in_memory(methods: int, metrics: int, prompts: int, seeds: int) -> float:
    """Seconds from rows to Markdown."""
    from harness.analysis import tables
    from harness.run import Outcome, TableSpec

    values = score_values(methods, metrics, prompts, seeds)
    grid = pd.MultiIndex.from_product([[f"method-{k}" for k in range(methods)], range(seeds), range(prompts)])
    method, seed, prompt = (grid.get_level_values(k) for k in range(3))
    sample = pd.Series(np.arange(len(grid))).map("{:032x}".format)
    rows = pd.DataFrame({
        "sample_id": sample, "frame": 0, "model": "model", "method": method, "prompts": "prompts",
        "prompt_id": prompt.astype(str), "category": None, "seed": seed, "nfe": 40, "flops": 1e12, "seconds": 1.0,
        "error": None,
    })
    infos = {f"made-{k}": tables.MetricInfo(f"made-{k}", "digest") for k in range(metrics)}
    scores = pd.concat([
        pd.DataFrame({"sample_id": sample, "metric": label, "metric_digest": "digest",
                      "value": values[:, k].reshape(-1), "error": None})
        for k, label in enumerate(infos)
    ], ignore_index=True)
    del values
    started = time.perf_counter()
    records = tables.records(rows, scores, [], infos)
    spec = TableSpec(baseline="method-0")
    outcome = Outcome(records, [spec], rows, scores, infos, {})
    text = tables.render(outcome, spec, "markdown", ci=True)
    assert text.count("method-") >= 2 * methods - 1
    return time.perf_counter() - started


def run_folder(results: Path, methods: int, metrics: int, prompts: int, seeds: int) -> None:
    """Writes a run called `million`: a part for each method and seed, and for each metric one as large."""
    from harness import benchmark as benchmarks
    from harness.resolve import resolve
    from harness.run import _grown
    from harness.store import Store
    from harness.units import Part

    for k in range(metrics):
        (results / f"made_{k}.py").write_text(METRIC.format(k=k))
    (results / "prompts.txt").write_text("".join(f"a photo of object {i}\n" for i in range(prompts)))
    path = results / "million.yaml"
    path.write_text(yaml.safe_dump({
        "name": "million",
        "models": {"model": {"family": "stable_diffusion", "weights": "builtin:shapes-sd"}},
        "prompts": {"prompts": {"set": "own", "path": "prompts.txt"}},
        "seeds": list(range(seeds)),
        "methods": {f"method-{k}": {"guidance": {"cfg": {"scale": k + 1}}} for k in range(methods)},
        "metrics": [f"made_{k}:Made{k}" for k in range(metrics)],
        "tables": [{"baseline": "method-0"}],
    }))
    resolved = resolve(benchmarks.load(path), path)
    store = Store(results / "million")
    store.write_benchmark(_grown(None, resolved, path))
    values = score_values(methods, metrics, prompts, seeds)
    for number, cell in enumerate(resolved.cells()):
        for seed in cell.seeds:
            part = Part(cell.model, cell.method, cell.prompts, f"{seed}-0-{prompts - 1}")
            ids = [cell.sample_id(prompt.id, seed) for prompt in cell.prompt_set.prompts]
            store.write_images(part, [
                {"sample_id": sample, "model": cell.model, "method": cell.method, "prompts": cell.prompts,
                 "prompt_id": prompt.id, "prompt": prompt.text, "seed": seed, "nfe": 40, "flops": 1e12,
                 "seconds": 1.0}
                for sample, prompt in zip(ids, cell.prompt_set.prompts, strict=True)
            ], [None] * prompts)
            for k, (label, metric) in enumerate(resolved.metrics.items()):
                store.write_scores(label, part, [
                    {"sample_id": sample, "metric_digest": metric.digest, "value": value}
                    for sample, value in zip(ids, values[number, k, seed], strict=True)
                ])


def measured(name: str, command: list[str], rows: int) -> None:
    """Runs a command, and prints its wall time and the most memory that it held."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall, processor = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    inside = f" ({said.split()[-1]} s of it after start-up and making the rows)" if said.startswith("seconds") else ""
    print(f"{name}: {rows:,} score rows, {wall:.1f} s{inside}, processor {processor:.1f} s, "
          f"peak {usage.ru_maxrss / 1024:.0f} MB", flush=True)
    assert child.returncode == 0, said[-2000:]


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("methods", 20), ("metrics", 5), ("prompts", 5000), ("seeds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", action="store_true", help="run the case in memory here, and print its seconds")
    given = parser.parse_args()
    shape = [given.methods, given.metrics, given.prompts, given.seeds]
    if given.child:
        print(f"seconds {in_memory(*shape):.1f}")
        return
    rows = int(np.prod(shape))
    child = [sys.executable, __file__, "--child"]
    words = zip(("--methods", "--metrics", "--prompts", "--seeds"), map(str, shape), strict=True)
    measured("many cells", [*child, *itertools.chain(*words)], rows)
    one = ["--methods", "1", "--metrics", "1", "--prompts", str(rows // 2), "--seeds", "2"]
    measured("one cell", [*child, *one], rows // 2 * 2)
    with tempfile.TemporaryDirectory() as folder:
        run_folder(Path(folder), *shape)
        measured("harness table RUN --ci", [
            sys.executable, "-m", "harness", "table", "million", "--results", folder, "--ci", "--format", "markdown",
        ], rows)


if __name__ == "__main__":
    main()
