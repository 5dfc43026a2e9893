"""Stage 2, the text tower, shared by ``shapes-clip`` and ``shapes-sd``.

Plain contrastive training leaves bindings and positions at chance, and the UNet can only read what is in the states.
So the tower is supervised by what a caption *says*:

- the end state, projected, must match a caption's facts (a set encoder whose object code is a *product* of its
  attributes' codes, so that it carries over to compositions that were never seen), against the other captions of the
  batch, which come in families of the same shapes, and against the caption's own attribute and position swaps;
- the end state and the paddings after it (Stable Diffusion passes no mask, so the UNet sees them) must yield each noun
  phrase: shape, count, colour, size, role, each by a linear head.

What is deliberately absent: heads that judge a whole combination (one class a coloured shape, say, or a nonlinear
reader of one shape's attributes). They learn that the held-out combinations never occur, and then deny them: in a
trial such a reader was right for 100 % of seen and 0 % of unseen positions, the heads above for all of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from harness.shapes.data import CLASSES, FIELDS, GROUPS, encode_facts, load_world
from harness.shapes.grammar import TASKS, Caption, Group, held_out, prompt_captions
from harness.shapes.loop import Draws, Stage
from harness.shapes.scene import COLOURS, RELATIONS, SHAPES
from harness.shapes.tokenizer import LENGTH, make_tokenizer, tokenize

WIDTH, PROJECTION, SLOTS = 128, 128, 4  # SLOTS: the end token and three paddings


def text_config() -> CLIPTextConfig:
    """The tower's configuration."""
    tok = make_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=PROJECTION,
        max_position_embeddings=LENGTH,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.eos_token_id,
    )


class FactEncoder(nn.Module):
    """A set of noun phrases and a background to one vector [n, PROJECTION]; a phrase is a product of its fields."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        codes = {f: nn.Embedding(CLASSES[f] + 1, width) for f in FIELDS}
        plain = {f: nn.Embedding(CLASSES[f] + 1, width) for f in FIELDS}
        for f in FIELDS:
            nn.init.normal_(codes[f].weight, 1.0 if f != "shape" else 0.0, 0.7)
            nn.init.normal_(plain[f].weight, 0.0, 0.2)
        self.codes, self.plain = nn.ModuleDict(codes), nn.ModuleDict(plain)
        self.background = nn.Embedding(4, width)
        self.out = nn.Linear(width, PROJECTION, bias=False)

    def forward(self, facts: Tensor) -> Tensor:
        """facts int [n, 16] (``encode_facts``) to [n, PROJECTION], not normalised."""
        groups = facts[:, :-1].view(-1, GROUPS, len(FIELDS))
        product: Any = 1.0
        plain: Any = 0.0
        for i, f in enumerate(FIELDS):
            product = product * self.codes[f](groups[..., i])
            plain = plain + self.plain[f](groups[..., i])
        there = (groups[..., 0] < 6)[..., None]
        total = ((product + plain) * there).sum(1) + 0.5 * self.background(facts[:, -1])
        vector: Tensor = self.out(total)
        return vector


def swaps(facts: np.ndarray) -> np.ndarray:
    """Two near misses of a caption: roles exchanged, colours exchanged (never into a held-out composition).

    uint8 [16] to [2, 16]; where a swap changes nothing or is not allowed, the row is the caption's own.
    """
    rows = np.stack([facts, facts])
    groups = facts[:-1].reshape(GROUPS, len(FIELDS))
    if groups[1, 0] == 6 or groups[2, 0] != 6:
        return rows
    for row, field in zip(rows, (FIELDS.index("role"), FIELDS.index("colour")), strict=True):
        trial = groups.copy()
        trial[[0, 1], field] = groups[[1, 0], field]
        names = [
            Group(
                SHAPES[g[0]],
                int(g[1]) + 1,
                list(COLOURS)[g[2]] if g[2] < 6 else None,
                role=RELATIONS[g[4]] if g[4] < 4 else None,
            )
            for g in trial[:2]
        ]
        if not any(held_out(k) for k in Caption("mixed", tuple(names)).compositions()):
            row[:-1] = trial.ravel()
    return rows


class TextTower(nn.Module):
    """The CLIP text model with its training partners."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPTextModelWithProjection(text_config())
        self.facts = FactEncoder()
        self.slot = nn.ModuleDict({f: nn.Linear(WIDTH, CLASSES[f]) for f in FIELDS})
        self.all = nn.ModuleDict({f: nn.Linear(WIDTH, CLASSES[f] * GROUPS) for f in FIELDS})
        self.background = nn.Linear(WIDTH, 4)
        self.temperature = nn.Parameter(torch.tensor(2.7))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids [n, 24] to states [n, 24, 128], the end state and three paddings [n, 4, 128], projection [n, 128]."""
        out = self.clip(input_ids=ids)
        h = out.last_hidden_state
        end = (ids == self.clip.config.eos_token_id).int().argmax(1)
        where = (end[:, None] + torch.arange(SLOTS, device=ids.device)).clamp(max=LENGTH - 1)
        return h, h[torch.arange(len(h), device=ids.device)[:, None], where], out.text_embeds


class TextStage(Stage):
    """See the module."""

    name = "text"
    lr = 1.5e-3
    decay = 0.6
    ema = 0.995
    weight_decay = 0.02

    def __init__(
        self, data: str, scenes: int, rank: int = 0, device: str = "cpu", batch: int = 96, init: str | None = None
    ) -> None:
        world = load_world(data, scenes, 1)
        self.device, self.batch = device, batch
        self.ids = torch.tensor(tokenize(world.texts))
        self.facts = torch.from_numpy(world.facts).long()
        self.weight = np.bincount(world.caption_of.ravel(), minlength=len(world.texts)) ** 0.5
        # families: captions about the same shapes by the same task, the hard negatives of one another
        groups = world.facts[:, :-1].reshape(-1, GROUPS, len(FIELDS))
        key = [(int(t), *sorted(g[:, 0])) for t, g in zip(world.tags, groups, strict=True)]
        members: dict[Any, list[int]] = {}
        for row, k in enumerate(key):
            members.setdefault(k, []).append(row)
        self.families = [np.array(m) for _, m in sorted(members.items()) if len(m) >= 4]
        tag = np.array([k[0] for k, m in sorted(members.items()) if len(m) >= 4])
        self.swapped = torch.from_numpy(np.stack([swaps(f) for f in world.facts])).long()
        share = np.array([0.08, 0.12, 0.16, 0.12, 0.26, 0.20, 0.06])  # by task, mixed last
        self.family_p = share[tag] / np.bincount(tag, minlength=7)[tag]
        self.family_p /= self.family_p.sum()
        self.model = TextTower()
        if init:
            old, clip = CLIPModel.from_pretrained(init).float(), self.model.clip
            clip.text_model.load_state_dict(old.text_model.state_dict())
            clip.text_projection.load_state_dict(old.text_projection.state_dict())

    def samples(self) -> int:
        """Captions of one step on one rank."""
        return self.batch

    def loss(self, draws: Draws, step: int) -> tuple[Tensor, dict[str, float]]:
        """Half the batch in families of eight, half from anywhere."""
        rows: list[int] = []
        for f in draws.numpy.choice(len(self.families), size=self.batch // 16, p=self.family_p):
            rows += draws.numpy.choice(self.families[f], size=8).tolist()
        for f in draws.numpy.choice(len(self.families), size=self.batch - len(rows), p=self.family_p):
            rows.append(int(draws.numpy.choice(self.families[f])))
        ids, facts = self.ids[rows].to(self.device), self.facts[rows].to(self.device)
        m: TextTower = self.model  # type: ignore[assignment]
        _, slots, projected = m.states(ids)
        groups = facts[:, :-1].view(-1, GROUPS, len(FIELDS))
        slot_loss = projected.new_zeros(())
        right: Any = True
        for i, f in enumerate(FIELDS):
            logits = m.slot[f](slots[:, 1:])
            right = right & (logits.argmax(-1) == groups[..., i])
            slot_loss = slot_loss + F.cross_entropy(logits.flatten(0, 1), groups[..., i].flatten())
            whole = m.all[f](slots).unflatten(-1, (GROUPS, -1))
            slot_loss = slot_loss + 0.5 * F.cross_entropy(
                whole.flatten(0, 2), groups[:, None, :, i].expand(-1, SLOTS, -1).flatten()
            )
        slot_loss = slot_loss + F.cross_entropy(
            m.background(slots).flatten(0, 1), facts[:, -1:].expand(-1, SLOTS).flatten()
        )
        text, partner = F.normalize(projected, dim=-1), F.normalize(m.facts(facts), dim=-1)
        logits = text @ partner.T * m.temperature.exp()
        canonical = self.canonical(facts)
        same = (canonical[:, None] == canonical[None]).all(-1)
        other = ~same | torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(~other, -1e4)
        target = torch.arange(len(logits), device=logits.device)
        contrast = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        near = self.swapped[rows].to(self.device)
        real = (near != facts[:, None]).any(-1)
        miss = (F.normalize(m.facts(near.flatten(0, 1)), dim=-1).view(len(facts), 2, -1) * text[:, None]).sum(-1)
        margin = (text * partner).sum(-1, keepdim=True) - miss
        swap = F.softplus(-m.temperature.exp() * (margin - 0.1))[real].sum() / real.sum().clamp(min=1)
        figures = {
            "contrast": float(contrast.detach()),
            "top1": float((logits.argmax(1) == target).float().mean()),
            "swap": float((margin[real] > 0).float().mean()),
            "slots": float(torch.as_tensor(right).all(1).float().mean()),
        }
        return contrast + swap + slot_loss, figures

    @staticmethod
    def canonical(facts: Tensor) -> Tensor:
        """Facts with the groups in one order, so that equal contents are equal rows."""
        groups = facts[:, :-1].view(-1, GROUPS, len(FIELDS))
        order = groups[..., 0].argsort(1)
        return torch.cat([groups.gather(1, order[..., None].expand_as(groups)).flatten(1), facts[:, -1:]], 1)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Share of prompts whose every slot is read right, and which match their own facts best, by task."""
        m: TextTower = self.model  # type: ignore[assignment]
        m.eval()
        figures: dict[str, float] = {}
        for held in (True, False):
            captions = [c for _, c in prompt_captions(held)]
            ids = torch.tensor(tokenize([c.text for c in captions])).to(self.device)
            facts = torch.from_numpy(np.stack([encode_facts(c) for c in captions])).long().to(self.device)
            _, slots, projected = m.states(ids)
            groups = facts[:, :-1].view(-1, GROUPS, len(FIELDS))
            right = (
                torch.stack([m.slot[f](slots[:, 1:]).argmax(-1) == groups[..., i] for i, f in enumerate(FIELDS)])
                .all(0)
                .all(1)
            )
            text, partner = F.normalize(projected, dim=-1), F.normalize(m.facts(facts), dim=-1)
            best = (text @ partner.T).argmax(1)
            canonical = self.canonical(facts)
            hit = (canonical[best] == canonical).all(-1)
            word = "unseen" if held else "seen"
            for t in TASKS:
                mine = torch.tensor([c.tag == t for c in captions])
                figures[f"{word}/{t}/slots"] = float(right.cpu()[mine].float().mean())
                figures[f"{word}/{t}/match"] = float(hit.cpu()[mine].float().mean())
        m.train()
        return figures

    def export(self, out: Path) -> dict[str, Any]:
        """Save the tower with its projection and the tokenizer as ``out/text`` (working copy, fp32)."""
        m: TextTower = self.model  # type: ignore[assignment]
        m.clip.save_pretrained(out / "text")
        make_tokenizer().save_pretrained(out / "text")
        torch.save(m.facts.state_dict(), out / "text" / "facts.pt")
        return self.check()
