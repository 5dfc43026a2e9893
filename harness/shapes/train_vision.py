"""Stage 4, the vision tower of ``shapes-clip``, trained against the finished text tower.

- Every patch says what covers it (shape, colour), where that object's middle is and which relations it has to the
  other object: local supervision, which a contrastive loss alone takes very long to find;
- the class token says how many of each shape and of each colour there are, where each shape is, and the background
  (one fact a shape: without these a first tower, right about seen relations, was at chance on held-out ones);
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

from harness.shapes.data import World, decode_facts, load_world, scene_roles, truth_table
from harness.shapes.loop import Draws, Stage
from harness.shapes.tokenizer import save_tokenizer, tokenize
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


class VisionTower(nn.Module):
    """The CLIP vision model with its training heads."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPVisionModelWithProjection(vision_config())
        self.patch = nn.Linear(WIDTH, 7 + 7 + 2 + 4)  # shape (6: nothing), colour, offset to the middle, relations
        self.whole = nn.Linear(WIDTH, 6 * 5 + 6 * 5 + 3 + 12)  # number of each shape, each colour; background; places
        self.temperature = nn.Parameter(torch.tensor(3.0))


def patch_targets(scenes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What covers each patch: shape and colour [n, 64] (6: nothing), offset to its middle [n, 64, 2], its number."""
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
    return shape, colour, move.astype(np.float32), best


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
        self.table, self.misses = self.embed_texts()
        self.taste = np.array([1.0, 1.0, 1.0, 1.0, 3.0, 1.5, 1.0])  # how often which task's captions, mixed last
        self.model = VisionTower()
        if init:
            old = CLIPModel.from_pretrained(init).float()
            m: Any = self.model
            m.clip.vision_model.load_state_dict(old.vision_model.state_dict())
            m.clip.visual_projection.load_state_dict(old.visual_projection.state_dict())

    @torch.no_grad()
    def embed_texts(self) -> tuple[Tensor, Tensor]:
        """Unit embeddings of every caption and near miss [m, 128]; rows of each caption's two near misses, or -1."""
        texts: dict[str, int] = {t: i for i, t in enumerate(self.world.texts)}
        misses = np.full((len(self.world.facts), 2), -1, np.int64)
        for i, fact in enumerate(self.world.facts):
            for k, miss in enumerate(swaps(fact)):
                if (miss != fact).any():
                    misses[i, k] = texts.setdefault(decode_facts(miss).text, len(texts))
        ids = torch.tensor(tokenize(list(texts)))
        return F.normalize(
            torch.cat([self.text(input_ids=p).text_embeds for p in ids.split(512)]), dim=-1
        ), torch.from_numpy(misses)

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

        shape, colour, move, thing = (torch.from_numpy(a).to(self.device) for a in patch_targets(scenes))
        dense = m.patch(tokens)
        local = F.cross_entropy(dense[..., :7].flatten(0, 1), shape.flatten())
        local = local + F.cross_entropy(dense[..., 7:14].flatten(0, 1), colour.flatten())
        there = (shape < 6)[..., None]
        local = local + ((dense[..., 14:16] - move).abs() * there).sum() / there.sum()
        roles = torch.from_numpy(scene_roles(scenes)).to(self.device)
        of_patch = roles.gather(1, thing[..., None].expand(-1, -1, 4)).float()
        asked = there & roles.any(-1).any(-1)[:, None, None]
        role = F.binary_cross_entropy_with_logits(dense[..., 16:], of_patch, reduction="none")
        role = (role * asked).sum() / (4 * asked.sum()).clamp(min=1)

        things = scenes[:, :-1].reshape(-1, 4, 5)
        real = things[..., 0] < 6
        numbers = [((things[..., f] == k) & real).sum(1) for f in (0, 1) for k in range(6)]
        whole = m.whole(pooled)
        target = torch.from_numpy(np.stack(numbers, 1)).to(self.device)
        count = F.cross_entropy(whole[:, :60].unflatten(1, (12, 5)).flatten(0, 1), target.flatten())
        count = count + F.cross_entropy(whole[:, 60:63], torch.from_numpy(scenes[:, -1]).long().to(self.device))

        single = target[:, :6] == 1
        place = np.zeros((self.batch, 7, 2), np.float32)
        np.put_along_axis(place, things[..., :1].astype(int), things[..., 2:4] / 32 - 1, 1)
        gap = (whole[:, 63:].unflatten(1, (6, 2)) - torch.from_numpy(place[:, :6]).to(self.device)).abs()
        where = (gap * single[..., None]).sum() / single.sum().clamp(min=1)

        options = self.world.caption_of[index]
        taste = self.taste[self.world.tags[options]].cumsum(1)
        rows = options[np.arange(self.batch), (taste < g.random((self.batch, 1)) * taste[:, -1:]).sum(1)]
        facts = self.world.facts[rows]
        differs = (self.misses[rows] >= 0).to(self.device)
        own, miss = self.table[rows].to(self.device), self.table[self.misses[rows]].to(self.device)
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
            "role": float(role.detach()),
            "where": float(where.detach()),
            "count": float(count.detach()),
            "contrast": float(contrast.detach()),
            "top1": float((logits.argmax(1) == diagonal).float().mean()),
            "swap": float((near_logits.detach() < logits.diagonal()[:, None])[differs].float().mean()),
        }
        return contrast + match + local + 2 * role + count + 2 * where, figures

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
