"""A tiny random CLIP in the transformers layout, with tokenizer, processor settings and a reference."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from harness.metrics.reference import write_reference
from tests.tiny import MAX_LENGTH, tiny_tokenizer


def tiny_clip(folder: Path, *, size: int = 32, seed: int = 0, dimension: int = 12) -> Path:
    """Writes the folder and returns it; `config.json` says that the weights are random."""
    tokenizer = tiny_tokenizer(folder)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": MAX_LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": size, "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dimension))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder, safe_serialization=True)
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "trained": False}))
    features = np.random.default_rng(seed).normal(size=(90, dimension)).astype(np.float32)
    write_reference(folder / "reference.safetensors", features, "random")
    return folder
