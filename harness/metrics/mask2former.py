"""Mask2Former (Cheng et al. 2022, arXiv:2112.01527) in the `transformers` layout as an object detector with masks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation

from harness.errors import HarnessError
from harness.metrics.geneval_rules import CLASSES, Detection
from harness.quiet import quiet

SHORT, LONG, DIVISOR = 800, 1333, 32  # the network's input: its shorter and longer side at most; a multiple of
GREY = 128  # fills up to the multiple, before normalisation
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PAIRS = 100  # (query, class) pairs that are looked at
# Other versions of `transformers` wrote the first and not the second: computed from the window's size; without effect.
NOT_NEEDED = (".relative_position_index", ".swin.layernorm.")

Size = tuple[int, int]  # height, width


class Mask2Former:
    """One Mask2Former of COCO's 80 classes on one device, float32, an image at a time.

    Neither the folder's own image processor nor the library's post-processing is used: GenEval's detector is
    mmdetection 2.x, and what this class does to the image and to the network's output is what that does
    (`configs/mask2former/mask2former_r50_lsj_8x2_50e_coco.py`, `MaskFormerFusionHead` of 2.28.2). One difference:
    where the image is made smaller, PIL's bilinear filter averages (as in the training of the weights that
    `transformers` has), OpenCV's does not.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = torch.device(device)
        try:
            with quiet("transformers.modeling_utils"):  # reports keys that do not fit; checked below
                model, told = Mask2FormerForUniversalSegmentation.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise HarnessError(
                f"{folder} is no Mask2Former in the transformers layout that can be opened: {error}"
            ) from error
        for kind, keys in told.items():
            wrong = sorted(key for key in map(str, keys) if not any(part in key for part in NOT_NEEDED))
            if wrong:
                raise HarnessError(
                    f"{folder}: the weights do not fit a Mask2Former of this configuration: {kind}: {', '.join(wrong)}"
                )
        if model.config.num_labels != len(CLASSES):
            raise HarnessError(
                f"{folder}: this Mask2Former knows {model.config.num_labels} classes, expected COCO's {len(CLASSES)} "
                f"for instances (not the panoptic ones)"
            )
        self.model = model.requires_grad_(False).eval().to(self.device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, above: float) -> list[Detection]:
        """The objects of an image, uint8 `[H, W, 3]`, whose score is above `above`, in no particular order."""
        pixels, inner = network_input(image)
        output = self.model(pixel_values=pixels.to(self.device))
        padded: Size = (pixels.shape[2], pixels.shape[3])
        size: Size = (image.shape[0], image.shape[1])
        return instances(output.class_queries_logits[0], output.masks_queries_logits[0], padded, inner, size, above)


def network_input(image: np.ndarray) -> tuple[Tensor, Size]:
    """uint8 `[H, W, 3]` as float32 `[1, 3, h, w]`, and the part of (h, w) that is image and not padding."""
    height, width = image.shape[:2]
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    inner = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = Image.fromarray(image).resize(inner[::-1], Image.Resampling.BILINEAR)
    padded = np.full((*(math.ceil(side / DIVISOR) * DIVISOR for side in inner), 3), GREY, np.float32)
    padded[: inner[0], : inner[1]] = np.asarray(resized)
    normal = (torch.from_numpy(padded) - torch.tensor(MEAN)) / torch.tensor(STD)
    return normal.permute(2, 0, 1)[None].contiguous(), inner


def instances(classes: Tensor, masks: Tensor, padded: Size, inner: Size, size: Size, above: float) -> list[Detection]:
    """The instance rule: the 100 best (query, class) pairs, each with its query's mask.

    score = class probability · mean probability inside the mask; a query may appear with several classes.

    Args:
        classes: logits `[Q, 81]`, the last of them "no object".
        masks: logits `[Q, h, w]`.
        padded: size of the network's input, to which masks are enlarged first.
        inner: the part of it that is image; the rest is cut off.
        size: the image's own, to which masks are resized last.
        above: detections with another score than above this are left out.
    """
    scores, pairs = classes.softmax(-1)[:, :-1].flatten().topk(PAIRS)
    # The mask's factor is at most 1: what the class alone does not lift above can be left before the masks' work.
    pairs, scores = pairs[scores > above], scores[scores > above]
    if not len(pairs):
        return []
    queries, labels = pairs // len(CLASSES), pairs % len(CLASSES)
    logits = functional.interpolate(masks[queries][None], padded, mode="bilinear", align_corners=False)
    logits = logits[..., : inner[0], : inner[1]]
    logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    scores = scores * (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    found = []
    for label, score, mask in zip(labels.tolist(), scores.cpu().numpy(), inside.cpu().numpy(), strict=True):
        if score > np.float32(above):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found.append(Detection(label, float(score), box, mask))
    return found
