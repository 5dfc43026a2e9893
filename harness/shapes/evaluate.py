"""How good the shapes models are: accuracy by task with the detector, and what the vision tower can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness.shapes.data import encode_facts, encode_scene, truth_table
from harness.shapes.detector import detect, judge
from harness.shapes.grammar import TASKS, Caption, draw, prompt_captions
from harness.shapes.scene import OPPOSITE, Scene, render

if TYPE_CHECKING:
    from transformers import CLIPModel

WEIGHTS = Path(__file__).parent / "weights"
REFERENCE_SEED = 77
BATCH = 40


def score(captions: Sequence[Caption], images: NDArray[np.uint8]) -> dict[str, Any]:
    """Accuracy by task and their mean (``overall``), with n."""
    right = [judge(c.truth(), detect(i))[0] for c, i in zip(captions, images, strict=True)]
    tasks = {t: [r for r, c in zip(right, captions, strict=True) if c.tag == t] for t in TASKS}
    figures: dict[str, Any] = {t: float(np.mean(r)) for t, r in tasks.items() if r}
    return {"overall": float(np.mean(list(figures.values()))), **figures, "n": len(right)}


def evaluate(
    weights: str | Path = WEIGHTS / "shapes-sd",
    scale: float = 3.0,
    seeds: Sequence[int] = (0,),
    steps: int = 20,
    held_out: bool = True,
    first: int = 240,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Accuracy of a Stable Diffusion folder on the ``shapes`` (or, not ``held_out``, ``shapes-seen``) prompts.

    The images are those of a benchmark with the same prompts, seeds and scale. Returns ``score``'s figures.
    """
    from harness.diffusion.stable_diffusion import StableDiffusion
    from harness.method import load_method
    from harness.prompts import Prompt
    from harness.shapes.prompts import set_name

    model = StableDiffusion.load(str(weights), device=device)
    method = load_method(guidance={"cfg": {"scale": scale}}, sampler={"steps": steps})
    rows = prompt_captions(held_out)[:first]
    captions = [caption for _, caption in rows]
    prompts = [Prompt(key, caption.text) for key, caption in rows]
    images = []
    for seed in seeds:
        batches = [
            method(model, prompts[i : i + BATCH], seed, prompt_set=set_name(held_out)).images[:, 0]
            for i in range(0, len(prompts), BATCH)
        ]
        images.append(np.concatenate(batches))
        if progress:
            progress(f"seed {seed}: {score(captions, images[-1])}")
    return score(captions * len(seeds), np.concatenate(images))


def scene_captions(number: int, seed: int, held: bool = True) -> tuple[list[Caption], list[Scene]]:
    """Captions of the prompt set in turn, with a fresh scene for each: for the vision tower and the reference."""
    rng = np.random.default_rng((REFERENCE_SEED, seed))
    rows = [c for _, c in prompt_captions(held)]
    captions: list[Caption] = []
    scenes: list[Scene] = []
    while len(captions) < number:
        caption = rows[len(captions) % len(rows)]
        scene = draw(caption, rng, tries=2000)
        if scene is None:
            raise RuntimeError(f"no layout found for {caption.text!r}")
        captions.append(caption)
        scenes.append(scene)
    return captions, scenes


def reference_images(n: int = 2000) -> NDArray[np.uint8]:
    """Ground-truth renders uint8 [n, 64, 64, 3], the 240 ``shapes`` prompts in turn; always the same."""
    return np.stack([render(s) for s in scene_captions(n, seed=0)[1]])


def near_miss(caption: Caption) -> Caption | None:
    """The same words with the roles (position) or the colours (color_attr) of the two objects exchanged."""
    if caption.tag == "position":
        a, b = caption.groups
        assert a.role
        return replace(caption, groups=(replace(a, role=OPPOSITE[a.role]), replace(b, role=a.role)))
    if caption.tag == "color_attr":
        a, b = caption.groups
        return replace(caption, groups=(replace(a, colour=b.colour), replace(b, colour=a.colour)))
    return None


@torch.no_grad()
def evaluate_clip(
    weights: str | Path = WEIGHTS / "shapes-clip", number: int = 960, held_out: bool = True
) -> dict[str, Any]:
    """What ``shapes-clip`` tells apart on held-out compositions.

    ``r1_of_200``: for how many renders is the nearest of 200 prompts true of the picture (it names all that is there,
    in the right number, colours, places, on the right background); ``r1_of_200_own``: is it the very prompt that the
    scene was drawn from, or one that says the same (of a white scene both "two stars" and "two stars on a white
    background" are true); ``attribute_swap``, ``position_swap``: how often the true caption beats the one with
    colours or relation exchanged. ``held_out`` false: the same on compositions seen in training.
    """
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(weights).float().eval()
    processor = CLIPProcessor.from_pretrained(weights)
    captions, scenes = scene_captions(number, seed=1, held=held_out)
    pixels = processor.image_processor([render(s) for s in scenes], return_tensors="pt").pixel_values
    image = torch.cat([image_features(model, part) for part in pixels.split(120)])

    def embed(texts: list[str]) -> Tensor:
        batch = processor.tokenizer(texts, padding=True, return_tensors="pt")
        return text_features(model, batch.input_ids, batch.attention_mask)

    text = embed([c.text for c in captions[:200]])
    true, own, rounds = 0.0, 0.0, number // 240
    facts = np.stack([encode_facts(c) for c in captions[:200]])
    content = [(frozenset(c.groups), c.background) for c in captions[:200]]
    for k in range(rounds):
        mine = slice(240 * k, 240 * k + 200)
        best = (image[mine] @ text.T).argmax(1).tolist()
        table = truth_table(np.stack([encode_scene(s) for s in scenes[mine]]), facts)
        true += sum(bool(table[i, b]) for i, b in enumerate(best))
        own += sum(content[b] == content[i] for i, b in enumerate(best))
    figures: dict[str, Any] = {"r1_of_200": true / (200 * rounds), "r1_of_200_own": own / (200 * rounds)}
    for task, name in (("color_attr", "attribute_swap"), ("position", "position_swap")):
        rows = [i for i, c in enumerate(captions) if c.tag == task]
        right = embed([captions[i].text for i in rows])
        wrong = embed([m.text for i in rows if (m := near_miss(captions[i]))])
        figures[name] = float(((image[rows] * right).sum(1) > (image[rows] * wrong).sum(1)).float().mean())
    return figures


def image_features(model: CLIPModel, pixels: Tensor, unit: bool = True) -> Tensor:
    """Projected image embeddings [n, 128], of unit length unless ``unit`` is false."""
    embeds = model.visual_projection(model.vision_model(pixels).pooler_output)
    return F.normalize(embeds, dim=-1) if unit else embeds


def text_features(model: CLIPModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Projected text embeddings [n, 128] of unit length."""
    embeds = model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)
    return F.normalize(embeds, dim=-1)
