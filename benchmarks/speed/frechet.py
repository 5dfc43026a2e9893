"""Seconds of a Fréchet distance of two full-rank 2048-d statistics: ours, scipy's root, torchmetrics, torch-fidelity.

    uv run python benchmarks/speed/frechet.py [--rounds 3] [--dimension 2048]

All four get the same means and covariances in float64 and the same number of threads, and must agree to 1e-8. Medians
over rounds in one run, the order turned round by round, of wall time and of processor time (of all threads), which says
more on a machine that is busy with other things.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid

from harness.frechet import Moments, frechet_distance


def statistics_of(dimension: int, seed: int) -> Moments:
    """Moments of 4 D rows whose spectrum falls as that of image features does."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dimension, dimension)) * np.arange(1, dimension + 1) ** -0.5
    return Moments.of_parts(rng.normal(size=(256, dimension)) @ mix.T + 0.01 for _ in range(4 * dimension // 256))


def sides(a: Moments, b: Moments) -> dict[str, Callable[[], float]]:
    """Each implementation as a call."""
    given = [a.mean, a.covariance, b.mean, b.covariance]
    tensors = [torch.from_numpy(z) for z in given]
    named = [{"mu": given[0], "sigma": given[1]}, {"mu": given[2], "sigma": given[3]}]

    def scipy_root() -> float:
        root = scipy.linalg.sqrtm(given[1] @ given[3])  # pytorch-fid, clean-fid, dgm-eval, EDM2
        return float(((given[0] - given[2]) ** 2).sum() + np.trace(given[1] + given[3] - 2 * root.real))

    return {
        "ours": lambda: frechet_distance(*given),
        "torch-fidelity": lambda: fid_statistics_to_metric(*named, False)["frechet_inception_distance"],
        "torchmetrics": lambda: _compute_fid(*tensors).item(),
        "scipy sqrtm": scipy_root,
    }


def main() -> None:
    """Prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch; set OMP_NUM_THREADS alike for numpy")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for call in sides(statistics_of(256, 0), statistics_of(256, 1)).values():
        call()  # libraries start their threads
    calls = sides(statistics_of(arguments.dimension, 0), statistics_of(arguments.dimension, 1))
    values: dict[str, float] = {}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(arguments.rounds):
        names = list(calls)[number % 4 :] + list(calls)[: number % 4]
        for name in names:
            wall, processor = time.perf_counter(), time.process_time()
            values[name] = calls[name]()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
            print(f"round {number}: {name} {seconds[name][-1][0]:.2f} s", flush=True)
    ours = [statistics.median(taken) for taken in zip(*seconds["ours"], strict=True)]
    for name, taken in seconds.items():
        wall, processor = (statistics.median(each) for each in zip(*taken, strict=True))
        error = abs(values[name] / values["ours"] - 1)
        print(f"{name}: {wall:.2f} s, {wall / ours[0]:.2f} times ours; processor {processor:.2f} s, "
              f"{processor / ours[1]:.2f} times ours; differs by {error:.1e}")
        assert error < 1e-8, f"{name} differs"


if __name__ == "__main__":
    main()
