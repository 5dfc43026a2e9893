"""A method: a noise stage together with a guidance and a sampler. Runs in a notebook, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from harness import registry
from harness.diffusion.base import Conditioning, Counter, Diffusion, Sampler
from harness.diffusion.inversion import invert
from harness.diffusion.sampling import no_timesteps, sample
from harness.errors import HarnessError
from harness.guidance.base import Guidance
from harness.guidance.cfg import CFG
from harness.guidance.none import NoGuidance
from harness.metrics.base import SampleMetric
from harness.noise.base import NoiseContext, NoiseStage, Refined
from harness.noise.gaussian import Gaussian
from harness.prompts import Prompt, as_prompts
from harness.registry import nearest
from harness.seeding import RowKey, normals, row_key


@dataclass
class Result:
    """What a method made, a row each of B prompts."""

    images: np.ndarray  # uint8 [B, F, H, W, 3]
    initial_noise: Tensor  # float32 [B, C, H, W] ([B, F, C, H, W] of clips) on the CPU, after the noise stage
    latents: Tensor  # likewise, clean
    records: list[dict[str, Any]]  # what the noise stage reports
    nfe: np.ndarray  # int64 [B], every denoiser evaluation
    nfe_by_network: list[dict[str, int]]
    grad_evals: np.ndarray  # int64 [B], gradient passes, through the denoiser or not; none of them is in `nfe`
    count_flops: Callable[[], np.ndarray] = field(repr=False)

    @cached_property
    def flops(self) -> np.ndarray:
        """Floating-point operations, float64 `[B]`; NaN where the judge's are not known.

        Every network counts: the prompt's encoding, evaluations of all denoisers, decoded and judged images, and the
        gradients through any of them (docs/cost.md). What one of each costs is measured when this is first asked for
        in a process, so that it is no part of the time that making the images took.
        """
        return self.count_flops()


@dataclass(frozen=True)
class Method:
    """A noise stage, a guidance, a sampler, and the judge that a stage may need."""

    stage: NoiseStage = field(default_factory=Gaussian)
    guidance: Guidance = field(default_factory=NoGuidance)
    sampler: Sampler = field(default_factory=Sampler)
    judge: SampleMetric | None = None

    def __call__(
        self,
        model: Diffusion,
        prompts: str | Sequence[Prompt | str],
        seeds: int | Sequence[int] = 0,
        *,
        prompt_set: str = "prompts",
        seeding: str = "identity",
    ) -> Result:
        """An image for every prompt, all in one batch; `seeds` is one for all or one a prompt.

        A bare text is its own prompt id. The noise of a row is that of a benchmark with the same prompt set
        id, prompt id, seed and seeding.

        Raises:
            HarnessError: no prompts, as many seeds as neither one nor the prompts, a stage without its judge, a
                seeding that means nothing to the stage.
        """
        rows = as_prompts(prompts)
        if not rows:
            raise HarnessError("no prompts were given")
        if seeding == "published" and not getattr(self.stage, "published_seeding", False):
            raise HarnessError(f"{type(self.stage).__name__} as it is set defines no 'published' seeding "
                               f"(docs/methods.md says which stages do); take identity or literal")
        numbers = [seeds] * len(rows) if isinstance(seeds, int) else list(seeds)
        if len(numbers) != len(rows):
            raise HarnessError(f"{len(rows)} prompts, but {len(numbers)} seeds; give one seed, or one a prompt")
        keys = [
            row_key(seeding, prompt_set, prompt.id, seed, prompt.columns, place=place, batch=len(rows))
            for place, (prompt, seed) in enumerate(zip(rows, numbers, strict=True))
        ]
        return self.run(model, rows, keys)

    # Not in inference mode: its tensors could never meet autograd, which a noise stage may switch on.
    @torch.no_grad()
    def run(self, model: Diffusion, prompts: Sequence[Prompt], keys: Sequence[RowKey]) -> Result:
        """One micro-batch: an image for each prompt, its randomness from its key."""
        if self.judge is None and getattr(self.stage, "needs_judge", False):
            raise HarnessError(f"{type(self.stage).__name__} needs a judge: a metric that scores each image")
        if self.judge is not None and getattr(self.stage, "needs_gradient", False) and not self.judge.has_gradient:
            raise HarnessError(no_gradient(self.stage, self.judge))
        if getattr(self.stage, "needs_timesteps", False) and not model.timesteps:
            raise HarnessError(no_timesteps(self.stage, model.family))
        counter = Counter(len(prompts))
        before, model.counter = model.counter, counter
        try:
            generators = [key.generator("noise") for key in keys]
            noise = normals(generators, model.latent_shape).to(model.device)
            given = prompts
            prompts = [model.draw(prompt, generator) for prompt, generator in zip(given, generators, strict=True)]
            conditioning = model.encode(prompts)
            refined = self.stage(self._context(model, prompts, keys, conditioning, noise))
            _check(self.stage, refined, noise)
            latents = refined.latents
            if latents is None:
                latents = sample(
                    model, refined.noise, conditioning, self.guidance, self.sampler, on_step=refined.on_step
                )
            images = model.decode(latents)
        finally:
            model.counter = before
        return Result(
            images=images,
            initial_noise=refined.noise.float().cpu(),
            latents=latents.float().cpu(),
            records=[
                record if drawn == prompt else record | {"class_label": drawn.class_label}
                for record, prompt, drawn in zip(refined.records or [{}] * len(given), given, prompts, strict=True)
            ],
            nfe=counter.nfe,
            nfe_by_network=[
                {name: int(counts[row]) for name, counts in counter.by_network.items()} for row in range(len(prompts))
            ],
            grad_evals=counter.gradients,
            count_flops=lambda: _flops(model, counter, self.judge, images.shape[1:]),
        )

    def _context(
        self, model: Diffusion, prompts: Sequence[Prompt], keys: Sequence[RowKey], conditioning: Conditioning,
        noise: Tensor,
    ) -> NoiseContext:
        def repeated(given: Tensor) -> Conditioning:
            times, rest = divmod(len(given), len(prompts))
            if rest or not times:
                raise HarnessError(f"{type(self.stage).__name__} gave {len(given)} rows to a context of "
                                   f"{len(prompts)}; expected a multiple of it, the micro-batch again and again")
            return conditioning if times == 1 else Conditioning.cat([conditioning] * times)

        def sample_noise(noise: Tensor) -> Tensor:
            return sample(model, noise, repeated(noise), self.guidance, self.sampler)

        def invert_latents(latents: Tensor, scale: float = 1.0) -> Tensor:
            return invert(model, latents, repeated(latents), self.sampler, CFG(scale))

        return NoiseContext(
            noise=noise, prompts=prompts, conditioning=conditioning, model=model, sampler=self.sampler,
            sample=sample_noise, invert=invert_latents, keys=keys, judge=self.judge,
        )


def _check(stage: NoiseStage, refined: Refined, noise: Tensor) -> None:
    """A stage written elsewhere is told at once what it returned wrongly."""
    name = type(stage).__name__
    if refined.noise.shape != noise.shape:
        raise HarnessError(f"{name} returned noise {tuple(refined.noise.shape)}, expected {tuple(noise.shape)}")
    if refined.latents is not None and refined.latents.shape != noise.shape:
        raise HarnessError(f"{name} returned latents {tuple(refined.latents.shape)}, expected {tuple(noise.shape)}")
    if refined.records and len(refined.records) != len(noise):
        raise HarnessError(f"{name} returned {len(refined.records)} records for {len(noise)} rows")


def _flops(
    model: Diffusion, counter: Counter, judge: SampleMetric | None = None, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """What has been counted, float64 `[B]`; the judge's share at images of `shape` (F, H, W, 3)."""
    total = model.flops_per_text() + counter.decoded * model.flops_per_decode()
    for network, counts in counter.by_network.items():
        total = total + counts * model.flops_per_evaluation(network)
    for network, counts in counter.gradients_by_network.items():
        total = total + counts * model.flops_per_gradient(network)
    if judge is not None and counter.judged.any():
        total = total + judge.flops("text", shape) + counter.judged * judge.flops("image", shape)
        apart = counter.gradients - sum(counter.gradients_by_network.values())
        if np.any(apart):  # back through judge and decoder
            back = judge.flops("gradient", shape, model.device) + model.flops_per_decode(gradient=True)
            total = total + apart * back
    return np.asarray(total, dtype=np.float64)


def no_gradient(stage: NoiseStage, judge: SampleMetric) -> str:
    """What to say of a judge that the stage cannot differentiate."""
    return (f"{type(stage).__name__} needs a judge with a gradient, which {judge.name!r} does not have; take a "
            f"metric that can be differentiated, as clipscore-shapes can")


def load_method(
    noise: Any = None, guidance: Any = None, sampler: Any = None, judge: SampleMetric | None = None
) -> Method:
    """A method from the forms of the YAML: None, a name, or {name: parameters}; the sampler a mapping.

    Raises:
        HarnessError: an unknown name or parameter, a value that makes no sense, alone or with the sampler.
    """
    stage = _build("noise", noise, "gaussian")
    guide = _build("guidance", guidance, "none")
    chosen = sampler if isinstance(sampler, Sampler) else load_sampler(sampler or {})
    problems = guide.problems(chosen) if hasattr(guide, "problems") else []
    if problems:
        raise HarnessError("guidance: " + "; ".join(problems))
    return Method(stage, guide, chosen, judge)


def _build(kind: str, given: Any, default: str) -> Any:
    """A plug-in from None, a name, {name: parameters}, {name: null}, or an instance already made."""
    if given is None:
        given = default
    if isinstance(given, str):
        return registry.build(kind, given, {})
    if isinstance(given, dict):
        if len(given) != 1:
            raise HarnessError(f"{kind}: expected a name or one {{name: parameters}}, got {given!r}")
        (name, parameters), = given.items()
        if not isinstance(parameters, dict | None):
            raise HarnessError(f"{kind}: the parameters of {name!r} must be a mapping, got {parameters!r}")
        return registry.build(kind, str(name), parameters or {})
    if hasattr(given, "__dataclass_fields__") and not isinstance(given, type):
        return given
    raise HarnessError(f"{kind}: expected a name or {{name: parameters}}, got {given!r}")


def load_sampler(given: Any) -> Sampler:
    """A sampler from the mapping of the YAML.

    Raises:
        HarnessError: an unknown setting, or a value that makes no sense.
    """
    if not isinstance(given, dict):
        raise HarnessError(f"sampler: expected a mapping with name, steps and spacing, got {given!r}")
    known = [setting.name for setting in fields(Sampler)]
    for key in given:
        if key not in known:
            raise HarnessError(f"sampler has no setting {key!r}: {nearest(str(key), known)}")
    try:
        return pydantic.TypeAdapter(Sampler).validate_python(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["sampler", *map(str, first["loc"])])
        if first["type"] == "value_error":  # says what it got
            raise HarnessError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error
        raise HarnessError(f"{place}: {first['msg']}, got {first['input']!r}") from error


def method_identity(method: Method, judge_digest: str | None = None) -> dict[str, Any]:
    """What the method's digest is made of: both plug-ins with all parameters and versions, sampler, judge.

    A plug-in is known by its class, so that the same class named in two ways is the same method.
    """
    return {
        "noise": registry.identity_of("noise", _name("noise", method.stage), method.stage),
        "guidance": registry.identity_of("guidance", _name("guidance", method.guidance), method.guidance),
        "sampler": method.sampler.identity,
        "judge": judge_digest,
    }


def _name(kind: str, instance: Any) -> str:
    place = f"{type(instance).__module__}:{type(instance).__qualname__}"
    own = {target: name for name, target in registry.BUILTIN[kind].items()}
    return own.get(place, place)
