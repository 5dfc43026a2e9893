"""Tiny random CLIPs in open_clip's keys, as HPSv2 and as OpenAI's models are published, and images to show them."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

WEIGHTS = "open_clip_model.safetensors"
# HPSv2 is a ViT-H/14: heads 80 wide, the plain GELU.
HPSV2 = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
OPENAI = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
PREPROCESSING = {
    "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic", "resize_mode": "shortest",
}
PROMPTS = [
    "a photo of a red fox beside two blue vases",
    "",
    "word " * 500,
    "a \U0001f98a fox \U0001f1eb\U0001f1f7 and \U0001f469‍\U0001f680 rocket",
    "salt &amp; pepper &lt;3 &amp;amp; more",
    "“curly” quotes — it’s Zürich, naïve",
]
SIZES = [(512, 512), (480, 640), (224, 224), (700, 300), (1, 300), (334, 250)]  # height and width, one a prompt


def tensors(settings: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of these sizes that float16 holds exactly, named as in a checkpoint."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in open_clip.CLIP(**settings).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in sorted(shapes.items()):
        drawn = torch.randn(shape, generator=generator)
        if name == "logit_scale":
            drawn = torch.tensor(math.log(100))
        elif len(shape) > 1:
            drawn /= math.sqrt(math.prod(shape[1:]) if "embedding" not in name else 4)
        elif name.endswith("weight"):  # of a layer norm
            drawn = 1 + 0.1 * drawn
        else:
            drawn *= 0.3
        found[name] = drawn.half().float()
    return found


def write_hpsv2(folder: Path, seed: int = 0, settings: dict[str, Any] = HPSV2) -> Path:
    """A `.pt` file that holds `state_dict`, in float16; returns it."""
    path = folder / "HPS_v2.1_compressed.pt"
    state = {name: tensor.half() for name, tensor in tensors(settings, seed).items()}
    torch.save({"state_dict": state}, path)
    path.with_name(path.name + ".json").write_text('{"trained": false}')
    return path


def write_openai(folder: Path, seed: int = 26, settings: dict[str, Any] = OPENAI) -> Path:
    """The folder with configuration and safetensors. By the default seed cosines of both signs."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(settings, seed), folder / WEIGHTS, metadata={"format": "pt"})
    config = {"model_cfg": settings, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "trained.json").write_text('{"trained": false}')
    return folder


def sha256(state: dict[str, torch.Tensor]) -> str:
    """Of all tensors in float32, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(name.encode() + tensor.float().numpy().tobytes())
    return total.hexdigest()


def picture(height: int, width: int, k: int) -> np.ndarray:
    """uint8 `[height, width, 3]` of integers alone: a ramp, stripes and a hash of the place; odd `k` in grey."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    c = np.zeros_like(c) if k % 2 else c
    hashed = (x * 73856093 ^ y * 19349663 ^ (c + k) * 83492791) % 97
    striped = ((x // (5 + c) + y // (7 + k)) % 2) * 60
    return np.asarray((x * 150 // width + y * 50 // height * (c + 1) + striped + hashed) % 256, dtype=np.uint8)
