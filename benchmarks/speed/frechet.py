"""Seconds of a Fréchet distance of two full-rank 2048-d statistics: ours, scipy's root, torchmetrics, torch-fidelity.

    uv run python benchmarks/speed/frechet.py [--rounds 3] [--dimension 2048]

All four get the same means and covariances in float64, and the same number of threads; that they agree to 1e-8 is
checked first (which is also the warm-up). Medians over rounds in one run, the order turned round by round.
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
    calls = sides(statistics_of(arguments.dimension, 0), statistics_of(arguments.dimension, 1))
    values = {name: call() for name, call in calls.items()}
    for name, value in values.items():
        error = abs(value / values["ours"] - 1)
        print(f"{name}: {value:.10f}, {error:.1e} from ours", flush=True)
        assert error < 1e-8, f"{name} differs"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(arguments.rounds):
        names = list(calls)[number % 4 :] + list(calls)[: number % 4]
        for name in names:
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
    ours = statistics.median(seconds["ours"])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{name}: median {middle:.2f} s ({min(taken):.2f} to {max(taken):.2f}), {middle / ours:.2f} times ours")


if __name__ == "__main__":
    main()
