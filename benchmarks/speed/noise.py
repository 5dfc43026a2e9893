"""Images per second of NLG, of selection and of optimisation by inversion stability, against plain loops.

    uv run python benchmarks/speed/noise.py [--device cuda]

The loops are what a researcher writes first, on the library's own parts: one prompt at a time, all its candidates in
one batch, its text encoded once, the same number of threads. Ours goes over the prompts of a micro-batch instead.
Both must give the same noise; that is checked first. Medians of interleaved pairs, in either order.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import DDIMScheduler
from torch import Tensor

import harness
from harness.diffusion.stable_diffusion import StableDiffusion
from harness.method import Method
from harness.prompts import Prompt
from harness.seeding import RowKey, normals

STEPS, SCALE = 10, 3.0
NLG_STEPS, CANDIDATES, ROUNDS = 10, 4, 4
TEXTS = ("a red circle", "a blue square above a green star", "three yellow rings", "a purple cross and a circle")


class Loop:
    """One prompt at a time with the library's UNet and scheduler."""

    def __init__(self, model: StableDiffusion) -> None:
        self.model, self.unet = model, model.unet
        self.scheduler = DDIMScheduler.from_config(
            model.scheduler_config, timestep_spacing="trailing", clip_sample=False
        )
        self.scheduler.set_timesteps(STEPS)
        self.abar = self.scheduler.alphas_cumprod.double()

    def states(self, text: str, rows: int) -> tuple[Tensor, Tensor]:
        """Null and own states of a prompt, repeated for its candidates."""
        known = self.model.encode([Prompt("0", text)])
        null, own = known.null["text"], known.tensors["text"]
        return null.expand(rows, -1, -1), own.expand(rows, -1, -1)

    def sample(self, x: Tensor, null: Tensor, own: Tensor, scale: float) -> Tensor:
        """DDIM."""
        both = torch.cat([null, own])
        for t in self.scheduler.timesteps:
            if scale == 1:
                epsilon = self.unet(x, t, own).sample
            else:
                u, c = self.unet(torch.cat([x, x]), t, both).sample.chunk(2)
                epsilon = u + scale * (c - u)
            x = self.scheduler.step(epsilon, t, x).prev_sample
        return x

    def invert(self, x: Tensor, own: Tensor) -> Tensor:
        """The same grid backwards, conditional."""
        stride = 1000 // STEPS
        for t in self.scheduler.timesteps.flip(0):
            before = self.abar[t - stride] if t >= stride else self.scheduler.final_alpha_cumprod.double()
            epsilon = self.unet(x, t, own).sample
            ratio = (self.abar[t] / before).sqrt()
            x = ratio.float() * x + ((1 - self.abar[t]).sqrt() - ratio * (1 - before).sqrt()).float() * epsilon
        return x

    def nlg(self, key: RowKey, text: str) -> Tensor:
        """Refinement, then sampling without guidance; the refined noise."""
        null, own = self.states(text, 1)
        n = normals([key.generator("noise")], self.model.latent_shape).to(self.model.device)
        extra, both = key.generator("nlg"), torch.cat([null, own])
        for _ in range(NLG_STEPS):
            u, c = self.unet(torch.cat([n, n]), 999, both).sample.chunk(2)
            d = c - u
            n = n - d * min(1.0, 0.5 / float(d.norm()))
            n = n + math.sqrt(0.001) * normals([extra], self.model.latent_shape).to(n.device)
            n = n * math.sqrt(n.numel()) / n.norm()
        self.model.decode(self.sample(n, null, own, 1))
        return n[0]

    def selection(self, key: RowKey, text: str) -> Tensor:
        """The most stable of the candidates."""
        null, own = self.states(text, CANDIDATES)
        generators = [key.generator("noise")] + [key.generator("candidate", k) for k in range(1, CANDIDATES)]
        noise = normals(generators, self.model.latent_shape).to(self.model.device)
        latents = self.sample(noise, null, own, SCALE)
        back = self.invert(latents, own)
        best = int(torch.cosine_similarity(noise.flatten(1).double(), back.flatten(1).double()).argmax())
        self.model.decode(latents[best : best + 1])
        return noise[best]

    def optimisation(self, key: RowKey, text: str) -> Tensor:
        """Descent on 1 - cos, the last rate 0."""
        null, own = self.states(text, 1)
        n = normals([key.generator("noise")], self.model.latent_shape).to(self.model.device)
        m = torch.zeros_like(n)
        for i in range(1, ROUNDS + 1):
            latents = self.sample(n, null, own, SCALE)
            back = self.invert(latents, own).double()
            a, b = n.double() / n.double().norm(), back / back.norm()
            m = 0.5 * m - ((b - (a * b).sum() * a) / n.double().norm()).float()
            n = n - 100 * n.numel() / 65_536 / 2 * (1 + math.cos(math.pi * i / ROUNDS)) * m
        self.model.decode(latents)
        return n[0]


def methods() -> dict[str, Method]:
    """The same three, ours."""
    sampler = {"name": "ddim", "steps": STEPS}
    guided = {"cfg": {"scale": SCALE}}
    return {
        "nlg": harness.load_method(noise={"nlg": {"steps": NLG_STEPS}}, sampler=sampler),
        "selection": harness.load_method(
            noise={"inversion_stability": {"candidates": CANDIDATES}}, guidance=guided, sampler=sampler
        ),
        "optimisation": harness.load_method(
            noise={"noise_optimisation": {"steps": ROUNDS}}, guidance=guided, sampler=sampler
        ),
    }


@torch.no_grad()
def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=16, help="prompts of a micro-batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = StableDiffusion.load("builtin:shapes-sd", device=arguments.device)
    loop = Loop(model)
    prompts = [Prompt(str(i), TEXTS[i % len(TEXTS)]) for i in range(arguments.prompts)]
    keys = [RowKey("p", prompt.id, 0) for prompt in prompts]

    def timed(do: Callable[[], Tensor]) -> tuple[float, Tensor]:
        started = time.perf_counter()
        found = do()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started, found

    for name, method in methods().items():
        plain = getattr(loop, name)

        def theirs(plain: Callable[[RowKey, str], Tensor] = plain) -> Tensor:
            return torch.stack([plain(key, prompt.text) for key, prompt in zip(keys, prompts, strict=True)]).cpu()

        def ours(method: Method = method) -> Tensor:
            return method.run(model, prompts, [replace(key) for key in keys]).initial_noise

        (_, a), (_, b) = timed(theirs), timed(ours)  # a warm-up, and the proof that both do the same
        error = float((a - b).norm() / a.norm())
        assert error < 1e-3, f"{name}: the two sides differ by {error:.2g} of the norm"
        ratios = []
        for pair in range(arguments.pairs):
            sides = (theirs, ours) if pair % 2 == 0 else (ours, theirs)
            seconds = {side: timed(side)[0] for side in sides}
            ratios.append(seconds[theirs] / seconds[ours])
        print(f"{name}: ours / loop, median {statistics.median(ratios):.2f} of {len(ratios)} pairs "
              f"({min(ratios):.2f} to {max(ratios):.2f}); last: loop {len(prompts) / seconds[theirs]:.2f}, "
              f"ours {len(prompts) / seconds[ours]:.2f} images/s", flush=True)


if __name__ == "__main__":
    main()
