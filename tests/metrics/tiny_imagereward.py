"""A tiny random ImageReward in the official files, and a tokenizer of BERT with few words."""

import json
import math
from pathlib import Path

import torch

WIDTH, DEPTH, PATCHES = 128, 2, 14 * 14  # of the vision transformer
MED = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 96, "initializer_range": 0.02, "intermediate_size": 192,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 48, "model_type": "bert", "num_attention_heads": 4,
    "num_hidden_layers": 2, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 0, "encoder_width": 64,
    "add_cross_attention": True,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789&;,.<>\"'“”’—🦊"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "red", "fox", "two", "##es", "vase", "blue",
         "word", "and", "quot", *LETTERS[1:], *(f"##{letter}" for letter in LETTERS)]


def shapes(
    width: int = WIDTH, depth: int = DEPTH, hidden: int = MED["hidden_size"], layers: int = 2,
    intermediate: int = MED["intermediate_size"], vocabulary: int = len(WORDS) + 2, positions: int = 48,
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the official state dict."""
    found: dict[str, tuple[int, ...]] = {}

    def both(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    found[f"{vision}.cls_token"], found[f"{vision}.pos_embed"] = (1, 1, width), (1, PATCHES + 1, width)
    both(f"{vision}.patch_embed.proj", width, 3, 16, 16)
    for i in range(depth):
        block = f"{vision}.blocks.{i}"
        both(f"{block}.norm1", width)
        both(f"{block}.norm2", width)
        both(f"{block}.attn.qkv", 3 * width, width)
        both(f"{block}.attn.proj", width, width)
        both(f"{block}.mlp.fc1", 4 * width, width)
        both(f"{block}.mlp.fc2", width, 4 * width)
    both(f"{vision}.norm", width)
    found[f"{text}.embeddings.word_embeddings.weight"] = (vocabulary, hidden)
    found[f"{text}.embeddings.position_embeddings.weight"] = (positions, hidden)
    both(f"{text}.embeddings.LayerNorm", hidden)
    for i in range(layers):
        layer = f"{text}.encoder.layer.{i}"
        for attention, seen in (("attention", hidden), ("crossattention", width)):
            both(f"{layer}.{attention}.self.query", hidden, hidden)
            both(f"{layer}.{attention}.self.key", hidden, seen)
            both(f"{layer}.{attention}.self.value", hidden, seen)
            both(f"{layer}.{attention}.output.dense", hidden, hidden)
            both(f"{layer}.{attention}.output.LayerNorm", hidden)
        both(f"{layer}.intermediate.dense", intermediate, hidden)
        both(f"{layer}.output.dense", hidden, intermediate)
        both(f"{layer}.output.LayerNorm", hidden)
    both("blip.vision_proj", 256, width)
    both("blip.text_proj", 256, hidden)
    for place, wide, narrow in ((0, hidden, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)):
        both(f"mlp.layers.{place}", narrow, wide)
    return found


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Random tensors, no bias and no norm at its default."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in sorted(shapes().items()):
        drawn = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            drawn *= 0.5 if "embed" in name and "proj" not in name else 1.5 / math.sqrt(math.prod(shape[1:]))
        elif "norm" in name.lower() and name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn *= 0.3
        found[name] = drawn
    found["blip.text_encoder.embeddings.position_ids"] = torch.arange(MED["max_position_embeddings"])[None]
    return found


def write(folder: Path, seed: int = 0) -> Path:
    """Writes ImageReward.pt, med_config.json and the mark of random weights; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(seed), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED | {"vocab_size": len(WORDS) + 2}))
    (folder / "trained.json").write_text('{"trained": false}')
    return folder


def write_tokenizer(folder: Path) -> Path:
    """Writes the files of bert-base-uncased's tokenizer, with few words; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    return folder
