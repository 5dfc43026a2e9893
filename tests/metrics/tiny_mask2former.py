"""A tiny random Mask2Former in the transformers layout, and logits to try the instance rule on."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

# (padded, inner, the image's own size) of the masks of `logits`.
SIZES = {
    "enlarged": ((96, 128), (90, 120), (113, 151)), "reduced": ((96, 128), (96, 128), (48, 64)),
    "one row": ((32, 128), (5, 128), (1, 40)),
}


def write(folder: Path, labels: int = 80) -> Path:
    """Writes a Mask2Former of random weights that says so, and returns its folder."""
    swin = SwinConfig(
        embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=7, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=4, num_labels=labels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(config)
        model.class_predictor.weight.data.normal_(0, 1.5)  # some classes are sure, others are not
    model.save_pretrained(folder, safe_serialization=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained": False}))
    return folder


def logits() -> tuple[Tensor, Tensor]:
    """Of 100 queries: classes `[100, 81]` and masks `[100, 24, 32]`, of which one lies nowhere."""
    draw = np.random.default_rng(5)
    classes = (draw.random((100, 81)) * 16).astype(np.float32)
    coarse = torch.from_numpy((draw.random((1, 100, 4, 5)) * 8 - 7).astype(np.float32))
    masks = torch.nn.functional.interpolate(coarse, (24, 32), mode="nearest")[0]
    masks += torch.from_numpy(draw.random((100, 24, 32)).astype(np.float32))
    masks[3] = -4
    classes[3, 5] = 25
    return torch.from_numpy(classes), masks
