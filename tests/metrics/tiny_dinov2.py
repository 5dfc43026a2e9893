"""A tiny random DINOv2 with the names of the published checkpoint, and the large one's image and patch size."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Dinov2Config

WIDTH, LAYERS, HEADS = 32, 2, 2


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random in all of them, positions and layer scales included."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + 37**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    linear = {
        "attention.attention.query": (WIDTH, WIDTH), "attention.attention.key": (WIDTH, WIDTH),
        "attention.attention.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH), "norm1": (WIDTH,), "norm2": (WIDTH,),
    }
    for i in range(LAYERS):
        for name, shape in linear.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        shapes |= {f"encoder.layer.{i}.layer_scale{n}.lambda1": (WIDTH,) for n in (1, 2)}
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in sorted(shapes.items()):
        drawn = torch.randn(shape, generator=generator)
        found[name] = 1 + 0.1 * drawn if "norm" in name and name.endswith("weight") else 0.3 * drawn
    return found


def write(folder: Path, seed: int = 0) -> Path:
    """The folder; `config.json` says that the weights are random."""
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=518, patch_size=14
    )
    said = {**config.to_dict(), "architectures": ["Dinov2Model"], "trained": False}
    (folder / "config.json").write_text(json.dumps(said, default=str))
    save_file(tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
