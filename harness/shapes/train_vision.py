"""Stage 4, the vision tower of ``shapes-clip``, trained against the finished text tower.

- Every patch says what covers it (shape, colour) and where that object's middle is: local supervision, which a
  contrastive loss alone takes very long to find;
- the class token says how many of each shape and of each colour there are, and the background;
- its projection must match the captions of its scene against those of the batch (captions that happen to be true of
  another scene are no negatives there) and against each caption's near misses, its colours or its roles exchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from harness.shapes.data import FIELDS, GROUPS, World, load_world
from harness.shapes.grammar import Caption, Group
from harness.shapes.loop import Draws, Stage
from harness.shapes.scene import BACKGROUNDS, COLOURS, LARGE, RELATIONS, SHAPES, SMALL, Box, extent, relations
from harness.shapes.tokenizer import make_tokenizer, tokenize
from harness.shapes.train_text import PROJECTION, WIDTH, swaps

PATCH = 8


def vision_config() -> CLIPVisionConfig:
    """The tower's configuration."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=PROJECTION,
        image_size=64,
        patch_size=PATCH,
    )


def decode_facts(facts: np.ndarray) -> Caption:
    """A plain caption of ``encode_facts``'s numbers, "a photo of ..."."""
    groups = []
    for g in facts[:-1].reshape(GROUPS, len(FIELDS)):
        if g[0] < 6:
            colour = list(COLOURS)[g[2]] if g[2] < 6 else None
            size = ("small", "large")[g[3]] if g[3] < 2 else None
            groups.append(Group(SHAPES[g[0]], int(g[1]) + 1, colour, size, RELATIONS[g[4]] if g[4] < 4 else None))
    return Caption("mixed", tuple(groups), list(BACKGROUNDS)[facts[-1]] if facts[-1] < 3 else None)


def truth_table(scenes: np.ndarray, facts: np.ndarray) -> np.ndarray:
    """Which captions are true of which scenes, and name all that is there: scenes [n, 21], facts [m, 16] to [n, m]."""
    things = scenes[:, :-1].reshape(-1, 4, 5)
    shape, colour, radius = things[..., 0].astype(int), things[..., 1].astype(int), things[..., 4]
    table = np.zeros((len(facts), len(scenes)), bool)
    count = np.stack([(shape == s).sum(1) for s in range(6)], 1)
    boxes = (
        np.array([extent(s) for s in SHAPES] + [(0, 0, 0, 0)])[shape] * radius[..., None] + things[..., [2, 3, 2, 3]]
    )
    for j, fact in enumerate(facts):
        groups = fact[:-1].reshape(GROUPS, len(FIELDS)).astype(int)
        groups = groups[groups[:, 0] < 6]
        want = np.zeros(6, int)
        want[groups[:, 0]] = groups[:, 1] + 1
        good = (count == want).all(1)
        if fact[-1] < 3:
            good &= scenes[:, -1] == fact[-1]
        for g in groups:
            mine = shape == g[0]
            if g[2] < 6:
                good &= (~mine | (colour == g[2])).all(1)
            if g[3] < 2:
                fits = radius <= SMALL if g[3] == 0 else radius >= LARGE
                good &= (~mine | fits).all(1)
        if groups[0, 4] < 4:
            for i in np.flatnonzero(good):
                a, b = (Box(*boxes[i, int(np.flatnonzero(shape[i] == g[0])[0])]) for g in groups[:2])
                good[i] = RELATIONS[groups[0, 4]] in relations(a, b)
        table[j] = good
    return table.T


class VisionTower(nn.Module):
    """The CLIP vision model with its training heads."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPVisionModelWithProjection(vision_config())
        self.patch = nn.Linear(WIDTH, 7 + 7 + 2)  # shape (6: nothing), colour, offset to the middle
        self.whole = nn.Linear(WIDTH, 6 * 5 + 6 * 5 + 3)  # number of each shape, of each colour, background
        self.temperature = nn.Parameter(torch.tensor(3.0))


def patch_targets(scenes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What covers each patch: shape and colour [n, 64] (6: nothing), offset to its middle [n, 64, 2]."""
    things = scenes[:, :-1].reshape(-1, 4, 5)
    grid = (np.arange(8) + 0.5) * PATCH
    centre = np.stack(np.meshgrid(grid, grid, indexing="xy"), -1).reshape(1, 64, 1, 2)
    offset = things[:, None, :, 2:4] - centre
    far = np.hypot(offset[..., 0], offset[..., 1]) - things[:, None, :, 4]
    far[np.broadcast_to(things[:, None, :, 0] == 6, far.shape)] = 99
    best = far.argmin(-1)
    hit = np.take_along_axis(far, best[..., None], -1)[..., 0] < 0
    rows = np.arange(len(scenes))[:, None]
    shape = np.where(hit, things[rows, best, 0], 6).astype(np.int64)
    colour = np.where(hit, things[rows, best, 1], 6).astype(np.int64)
    move = np.take_along_axis(offset, best[..., None, None], 2)[:, :, 0] / 16
    return shape, colour, move.astype(np.float32)


def normalise(images: np.ndarray) -> Tensor:
    """uint8 [n, 64, 64, 3] to the tower's input, [-1, 1]; the shipped processor does the same."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


class VisionStage(Stage):
    """See the module."""

    name = "vision"
    lr = 1.5e-3
    decay = 0.6
    ema = 0.995
    weight_decay = 0.05

    def __init__(
        self,
        data: str,
        scenes: int,
        parts: str,
        rank: int = 0,
        device: str = "cpu",
        batch: int = 48,
        init: str | None = None,
    ) -> None:
        self.world: World = load_world(data, scenes, 1)
        self.parts, self.batch, self.device = Path(parts), batch, device
        self.text = CLIPTextModelWithProjection.from_pretrained(self.parts / "text").eval().requires_grad_(False)
        self.ids = torch.tensor(tokenize(self.world.texts))
        self.model = VisionTower()
        if init:
            old = CLIPModel.from_pretrained(init).float()
            m: Any = self.model
            m.clip.vision_model.load_state_dict(old.vision_model.state_dict())
            m.clip.visual_projection.load_state_dict(old.visual_projection.state_dict())

    def samples(self) -> int:
        """Images of one step on one rank."""
        return self.batch

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """See the module."""
        g, m = draws.numpy, self.model
        assert isinstance(m, VisionTower)
        index = g.integers(len(self.world), size=self.batch)
        scenes = self.world.scenes[index]
        images = self.world.image(index).astype(np.float32)
        level = g.uniform(0, 12, (self.batch, 1, 1, 1))
        images += (level * g.standard_normal(images.shape)).astype(np.float32)
        x = torch.from_numpy(images.clip(0, 255)).permute(0, 3, 1, 2).div(127.5).sub(1).to(self.device)
        hidden = m.clip.vision_model(x)
        tokens, pooled = hidden.last_hidden_state[:, 1:], hidden.pooler_output
        image = F.normalize(m.clip.visual_projection(pooled), dim=-1)

        shape, colour, move = (torch.from_numpy(a).to(self.device) for a in patch_targets(scenes))
        dense = m.patch(tokens)
        local = F.cross_entropy(dense[..., :7].flatten(0, 1), shape.flatten())
        local = local + F.cross_entropy(dense[..., 7:14].flatten(0, 1), colour.flatten())
        there = (shape < 6)[..., None]
        local = local + ((dense[..., 14:] - move).abs() * there).sum() / there.sum()

        things = scenes[:, :-1].reshape(-1, 4, 5)
        real = things[..., 0] < 6
        numbers = [((things[..., f] == k) & real).sum(1) for f in (0, 1) for k in range(6)]
        whole = m.whole(pooled)
        target = torch.from_numpy(np.stack(numbers, 1)).to(self.device)
        count = F.cross_entropy(whole[:, :60].unflatten(1, (12, 5)).flatten(0, 1), target.flatten())
        count = count + F.cross_entropy(whole[:, 60:], torch.from_numpy(scenes[:, -1]).long().to(self.device))

        rows = self.world.caption_of[index, g.integers(self.world.caption_of.shape[1], size=self.batch)]
        facts = self.world.facts[rows]
        near = np.stack([swaps(f) for f in facts])
        differs = torch.from_numpy((near != facts[:, None]).any(-1)).to(self.device)
        with torch.no_grad():
            missed = torch.tensor(tokenize([decode_facts(f).text for f in near.reshape(-1, near.shape[-1])]))
            ids = torch.cat([self.ids[rows], missed]).to(self.device)
            text = F.normalize(self.text.to(self.device)(input_ids=ids).text_embeds, dim=-1)
        own, miss = text[: self.batch], text[self.batch :].view(self.batch, 2, -1)
        scale = m.temperature.exp()
        also = torch.from_numpy(truth_table(scenes, facts)).to(self.device)
        also = also & ~torch.eye(self.batch, dtype=torch.bool, device=self.device)
        near_logits = (image[:, None] * miss).sum(-1).mul(scale).masked_fill(~differs, -1e4)
        logits = (image @ own.T * scale).masked_fill(also, -1e4)
        diagonal = torch.arange(self.batch, device=self.device)
        contrast = F.cross_entropy(torch.cat([logits, near_logits], 1), diagonal) + F.cross_entropy(logits.T, diagonal)
        match = 1 - (image * own).sum(-1).mean()
        figures = {
            "local": float(local.detach()),
            "count": float(count.detach()),
            "contrast": float(contrast.detach()),
            "top1": float((logits.argmax(1) == diagonal).float().mean()),
            "swap": float((near_logits.detach() < logits.diagonal()[:, None])[differs].float().mean()),
        }
        return contrast + match + local + count, figures

    def export(self, out: Path) -> dict[str, Any]:
        """Join both towers and save as ``out/shapes-clip`` in half precision, with tokenizer and processor."""
        assert isinstance(self.model, VisionTower)
        return export_clip(self.text, self.model.clip, out / "shapes-clip")


def export_clip(
    text: CLIPTextModelWithProjection, vision: CLIPVisionModelWithProjection, folder: Path
) -> dict[str, Any]:
    """Save a CLIPModel of two towers in half precision with everything that ``CLIPProcessor`` needs."""
    config = CLIPConfig(
        text_config=text.config.to_dict(), vision_config=vision.config.to_dict(), projection_dim=PROJECTION
    )
    model = CLIPModel(config)
    model.text_model.load_state_dict(text.text_model.state_dict())
    model.text_projection.load_state_dict(text.text_projection.state_dict())
    model.vision_model.load_state_dict(vision.vision_model.state_dict())
    model.visual_projection.load_state_dict(vision.visual_projection.state_dict())
    model.half().save_pretrained(folder)
    save_tokenizer(folder)
    CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        do_center_crop=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def save_tokenizer(folder: Path) -> None:
    """Save the tokenizer with the classic two files beside, for older readers."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))
