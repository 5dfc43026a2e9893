"""Objects with masks, and a tiny random CLIP in open_clip's layout, to compare colours on."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from harness.metrics.geneval_rules import CLASSES, Detection


def write(folder: Path) -> Path:
    """Writes a CLIP of random weights that says so, and returns its folder."""
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        "quick_gelu": True,
    }
    draw = np.random.default_rng(7)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in open_clip.CLIP(**model).named_parameters()}
    state = {
        name: torch.from_numpy((0.3 if len(shape) > 1 else 1.0) * draw.standard_normal(shape, np.float32)).clone()
        for name, shape in sorted(shapes.items()) if shape
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state | {"logit_scale": torch.tensor(4.6)}, folder / "open_clip_model.safetensors")
    shown = {
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic", "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": shown}))
    (folder / "trained.json").write_text(json.dumps({"trained": False}))
    return folder


def picture(height: int, width: int) -> np.ndarray:
    """A pattern of many colours, uint8 `[height, width, 3]`, in whole numbers alone."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7 + y * y, y * 11 + x * y, (x // 3 + y // 5) * 37], axis=-1).astype(np.uint8)


def blob(height: int, width: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A slanted mask inside a box."""
    y, x = np.mgrid[:height, :width]
    return (x >= left) & (x < right) & (y >= top) & (y < bottom) & ((x + 2 * y) % 5 < 4)


def see(name: str, box: tuple[float, float, float, float], mask: np.ndarray | None) -> Detection:
    return Detection(CLASSES.index(name), 0.9, box, mask)


def objects() -> dict[str, tuple[np.ndarray, list[Detection], str]]:
    """By name: an image, its objects, and their class."""
    several = [(0, 0, 9, 9), (10, 3, 61, 30), (0, 0, 83, 61), (40, 60, 70, 61), (80, 2, 81, 50)]
    return {
        "several": (
            picture(61, 83), [see("dog", tuple(map(float, b)), blob(61, 83, *b)) for b in several], "dog"  # type: ignore[arg-type]
        ),
        "halves": (picture(48, 64), [see("computer mouse", (0.5, 1.5, 20.5, 31.5), blob(48, 64, 0, 2, 20, 32)),
                                     see("computer mouse", (2.5, 4.49, 11.51, 9.5), None)], "computer mouse"),
        "large": (picture(300, 700), [see("traffic light", (30.0, 5.0, 690.0, 280.0), blob(300, 700, 30, 5, 690, 280))],
                  "traffic light"),
    }
