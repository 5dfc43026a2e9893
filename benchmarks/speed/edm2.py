"""Our EDM2 network against the official one, and sampling with a guidance interval against guidance everywhere.

    uv run python benchmarks/speed/edm2.py --official FOLDER [--compile] [--device cuda --dtype float16 --size xxl]
    uv run python benchmarks/speed/edm2.py --interval [--device cuda --dtype float16 --size xxl]

FOLDER is a checkout of https://github.com/NVlabs/edm2 (its licence keeps it out of this project; its modules want
`requests` and `click` installed). Both networks get the same random weights and inputs; that they agree is checked
first. Rounds go through all variants in turn; ratios are of medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.diffusion.edm2_network import WIDTHS, EDM2Config, EDM2Network

DTYPES = {"float32": torch.float32, "float16": torch.float16}
TOLERANCE = {"float32": 1e-5, "float16": 1e-2}  # relative, of float32 and of half precision inside


def network(config: EDM2Config, device: str) -> EDM2Network:
    """Random weights whose gains are not 0, as they are before training."""
    torch.manual_seed(0)
    made = EDM2Network(config)
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.5)
    return made.to(device)


def official(config: EDM2Config, weights: dict[str, Tensor], folder: Path, device: str, half: bool) -> torch.nn.Module:
    """The published network with these weights."""
    sys.path.insert(0, str(folder))
    from training.networks_edm2 import Precond

    made = Precond(
        img_resolution=config.resolution, img_channels=config.channels, label_dim=config.classes, use_fp16=half,
        model_channels=config.width,
    )
    made.load_state_dict({(n if n.startswith("logvar_") else f"unet.{n}"): v for n, v in weights.items()})
    made = made.to(device).eval().requires_grad_(False)
    if half:  # as its published pickles hold them
        made = made.half()
    return made  # type: ignore[no-any-return]


def medians(variants: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each, its first round left out."""
    took: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            took[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in took.items()}


def compare_networks(config: EDM2Config, options: argparse.Namespace) -> None:
    """Prints official / ours, eager and, on request, compiled."""
    device, dtype = options.device, DTYPES[options.dtype]
    ours = network(config, device)
    theirs = official(config, ours.state_dict(), options.official, device, dtype == torch.float16)
    ours.bake(dtype)
    x = torch.randn(options.rows, config.channels, config.resolution, config.resolution, device=device)
    sigma = torch.full((options.rows,), 1.0, device=device)
    labels = torch.eye(config.classes, device=device)[: options.rows]
    variants = {"official": theirs, "ours": ours}
    if options.compile:
        variants |= {"official compiled": torch.compile(theirs), "ours compiled": torch.compile(ours)}
    expected = theirs(x, sigma, labels)
    for name, variant in variants.items():
        error = float((variant(x, sigma, labels) - expected).norm() / expected.norm())
        if error > TOLERANCE[options.dtype]:
            raise SystemExit(f"{name} is {error:.1e} from the official network: nothing to compare")
    found = medians({n: lambda v=v: v(x, sigma, labels) for n, v in variants.items()}, options.rounds, device)
    for name, seconds in found.items():
        print(f"{name}: {1000 * seconds:.1f} ms for {options.rows} rows")
    for kind in ("", " compiled") if options.compile else ("",):
        print(f"official{kind} / ours{kind}: {found[f'official{kind}'] / found[f'ours{kind}']:.2f}")


def compare_sampling(config: EDM2Config, options: argparse.Namespace) -> None:
    """Prints the ratio of time and of evaluations, guidance everywhere / in an interval, both networks of one size."""
    import harness
    from harness.diffusion.edm2 import EDM2
    from harness.diffusion.edm2_images import Pixels
    from harness.prompts import Prompt

    networks = [network(config, options.device).bake(DTYPES[options.dtype]) for _ in range(2)]
    model = EDM2(networks[0], Pixels(), device=options.device)
    model.add_network("guide", networks[1])
    prompts = [Prompt(str(row), "", class_label=row) for row in range(options.rows)]
    sampler = {"name": "heun", "steps": options.steps}
    nfe: dict[str, int] = {}

    def run(name: str, guidance: dict[str, object]) -> None:
        result = harness.load_method(guidance={"cfg": guidance}, sampler=sampler)(model, prompts)
        nfe[name] = int(result.nfe[0])

    low = options.steps * 17 // 32
    high = low + options.steps * 6 // 32 - 1
    found = medians(
        {
            "everywhere": lambda: run("everywhere", {"scale": 2.0}),
            "interval": lambda: run("interval", {"scale": 2.0, "steps": [low, high]}),
        }, options.rounds, options.device,
    )
    time_ratio, nfe_ratio = found["everywhere"] / found["interval"], nfe["everywhere"] / nfe["interval"]
    print(f"guided everywhere {found['everywhere']:.2f} s ({nfe['everywhere']} evaluations), in steps {low} to {high} "
          f"{found['interval']:.2f} s ({nfe['interval']})")
    apart = 100 * (time_ratio / nfe_ratio - 1)
    print(f"time ratio {time_ratio:.3f}, evaluations ratio {nfe_ratio:.3f}: {apart:+.1f} %")


@torch.no_grad()
def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of NVlabs/edm2")
    parser.add_argument("--interval", action="store_true", help="sampling with and without an interval")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--size", choices=WIDTHS, default="xs")
    parser.add_argument("--resolution", type=int, default=32, help="of the latents; 64 for images of 512 pixels")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = EDM2Config(options.resolution, 4, 1000, WIDTHS[options.size])
    if options.official:
        compare_networks(config, options)
    if options.interval:
        compare_sampling(dataclasses.replace(config, channels=3), options)
    if not (options.official or options.interval):
        parser.error("give --official FOLDER, --interval, or both")


if __name__ == "__main__":
    main()
