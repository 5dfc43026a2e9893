"""Multistep score distillation of a guided teacher into a refiner of the initial noise: `train(recipe, folder)`.

Source: Ahn et al., arXiv 2412.03895, section 4. The student's steps without guidance are run as they are, without
autograd; since each step is `a * x + b * stop_gradient(prediction)`, the clean latent depends on the refined noise
by one constant, and only the refiner itself is differentiated.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from harness.diffusion.base import Diffusion, Sampler
from harness.diffusion.levels import from_ratio
from harness.diffusion.sampling import sample
from harness.display import Display
from harness.errors import HarnessError
from harness.files import write_atomic
from harness.guidance.none import NoGuidance
from harness.method import load_method
from harness.noise.noise_refine import TIMESTEP
from harness.noise_refine import lora
from harness.noise_refine.data import Pairs, Teacher, make_pairs, open_model
from harness.noise_refine.recipe import Recipe
from harness.seeding import normals
from harness.shapes.loop import Draws, Progress, Settings, Stage, load_average, run_stage


def slope(model: Diffusion, sampler: Sampler) -> float:
    """A, the derivative of the clean latent by the initial noise when every prediction is held constant.

    The product over the DDIM steps actually taken from (alpha, sigma) to (alpha', sigma') of alpha'/alpha where
    the network predicts epsilon, of alpha' * alpha + sigma' * sigma where it predicts v, of sigma'/sigma where it
    predicts the clean latent.

    Raises:
        HarnessError: another solver than DDIM, whose steps are not of this form.
    """
    if sampler.name != "ddim":
        raise HarnessError(f"student: the clean latent is a multiple of the noise for the sampler 'ddim' alone, "
                           f"got {sampler.name!r}")
    schedule = model.schedule(sampler)
    total = 1.0
    for step, arrival in zip(schedule.evaluations, schedule.arrivals, strict=True):
        (alpha, sigma), (alpha_next, sigma_next) = model.alpha_sigma(step.timestep), from_ratio(arrival)
        if model.native == "epsilon":
            total *= alpha_next / alpha
        elif model.native == "v_prediction":
            total *= alpha_next * alpha + sigma_next * sigma
        else:
            total *= sigma_next / sigma
    return total


def reattached(latents: Tensor, noise: Tensor, slope: float) -> Tensor:
    """The value of `latents`, which were made without autograd, with the derivative `slope` by `noise`."""
    return (latents - slope * noise).detach() + slope * noise


class NoiseRefineStage(Stage):
    """The loss |x0_guided - x0(x + refiner(x))|^2, a mean over elements, and its gradient by the refiner alone."""

    name = "noise-refine"

    def __init__(
        self, recipe: dict[str, Any], folder: str, here: str, batch: int, rank: int = 0, device: str = "cpu"
    ) -> None:
        self.recipe, self.batch = Recipe.model_validate(recipe), batch
        training = self.recipe.training
        self.lr, self.warmup, self.ema = training.lr, training.warmup, training.average
        self.sampler = load_method(sampler=self.recipe.student).sampler
        self.pairs = Pairs.read(Teacher(self.recipe, Path(folder), Path(here)))
        self.base = open_model(self.recipe.model, device)
        self.refiner = lora.refiner(self.base, self.recipe.lora.rank, self.recipe.lora.layers)
        self.model = nn.ParameterList(lora.parameters(self.refiner))  # a checkpoint holds nothing else
        self.slope = slope(self.base, self.sampler)

    def samples(self) -> int:
        """Pairs of one step on one rank."""
        return self.batch

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """The distance of the student's latents from the teacher's; `shift` is |refiner(x)| / |x|."""
        chosen = draws.numpy.integers(len(self.pairs), size=self.batch)
        conditioning = self.base.encode([self.pairs.prompts[i] for i in chosen])
        keys = [self.pairs.keys[i].generator("noise") for i in chosen]
        x = normals(keys, self.base.latent_shape).to(self.base.device)
        target = self.pairs.targets[chosen].to(x)
        shift = self.refiner.predict(x, TIMESTEP, conditioning)
        refined = x + shift
        with torch.no_grad():
            latents = sample(self.base, refined, conditioning, NoGuidance(), self.sampler)
        loss = (reattached(latents, refined, self.slope) - target).square().mean()
        return loss, {"shift": float(shift.detach().norm() / x.norm())}

    def export(self, out: Path) -> dict[str, Any]:
        """The LoRA as `pytorch_lora_weights.safetensors`; returns figures for the model card."""
        lora.save(self.refiner, out)
        return {
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "generated": self.pairs.generated, "kept": len(self.pairs),
        }


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    here: str | Path = ".",
    processes: int = 1,
    device: str = "cpu",
    display: Display | None = None,
    progress: Progress | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Makes the teacher's pairs, trains the refiner and writes it to `out`; calling again resumes.

    Arguments:
        here: where relative paths of the recipe's prompt files start.
        processes: CPU processes of one thread each, or GPUs of this machine.
        display: shows the making of the pairs. progress: called with the loop's figures; it must be picklable when
            processes > 1. Default: log lines.
        stop_after: break off after so many steps of this call; then nothing but a checkpoint is written.

    Raises:
        HarnessError: something that the recipe names is missing or makes no sense, or `out` holds the training of
            another recipe.
    """
    folder = Path(out)
    if recipe.training.batch % processes:
        raise HarnessError(f"training.batch: {recipe.training.batch} pairs cannot be shared by {processes} processes")
    settings = Settings(
        folder=str(folder / "checkpoints"), steps=recipe.training.steps, processes=processes, device=device,
        every=10, stop_after=stop_after,
        options={
            "recipe": recipe.model_dump(mode="json"), "folder": str(folder), "here": str(here),
            "batch": recipe.training.batch // processes,
        },
    )
    note = Path(settings.folder) / "recipe.json"
    _must_be_the_same(recipe, note)
    make_pairs(Teacher(recipe, folder, Path(here)), processes, device, display or Display(quiet=True))
    stage = NoiseRefineStage(**settings.options)  # what is wrong with the recipe is said here, not by a process of many
    write_atomic(note, json.dumps(recipe.model_dump(mode="json"), indent=1).encode())
    run_stage(NoiseRefineStage, settings, progress)
    step = load_average(stage, replace(settings, device="cpu"))
    if step < recipe.training.steps:
        return {"steps": step}
    figures = stage.export(folder) | {"steps": step}
    (folder / "README.md").write_text(card(recipe, figures), encoding="utf-8")
    return figures


def _must_be_the_same(recipe: Recipe, note: Path) -> None:
    """A checkpoint goes on with the recipe that it began with."""
    if not note.is_file():
        return
    now, before = recipe.model_dump(mode="json"), json.loads(note.read_text(encoding="utf-8"))
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise HarnessError(
            f"{note.parent} holds the training of another recipe (it differs in {', '.join(changed)}): give another "
            f"--out, or delete that folder to train anew with the teacher's images that still fit"
        )


def card(recipe: Recipe, figures: dict[str, Any]) -> str:
    """The model card: what this is, how it was made, how it is used."""
    where = recipe.model.weights
    local = Path(where).is_dir()
    base = Path(where).name if local else where  # the path of a folder is nobody else's business
    shown = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": base})})
    made = yaml.safe_dump(shown.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=110)
    hub = "" if local or where.startswith("builtin:") else f"base_model: {where}\n"
    return f"""---
library_name: diffusers
{hub}tags: [lora, noise-refine]
---
# A NoiseRefine network for {base}

A LoRA of the UNet ({figures["parameters"]:,} parameters, float16). With it on, at timestep 999, the UNet's own output
is added to the initial noise; with it off, sampling then needs no guidance (Ahn et al., arXiv 2412.03895).

Trained for {figures["steps"]:,} steps on {figures["kept"]:,} of {figures["generated"]:,} images of a guided teacher, by
`harness train noise-refine` with this recipe:

```yaml
{made}```

In a benchmark: `networks: {{refiner: {{lora: THIS FOLDER}}}}` in the model block, `noise: noise_refine` in the method.
"""
