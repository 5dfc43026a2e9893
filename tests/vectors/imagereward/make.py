"""Scores the tiny random checkpoint by the official code of ImageReward, in the older environment of README.md.

python -m tests.vectors.imagereward.make IMAGEREWARD    # the folder of its repository
"""

import json
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.metrics import tiny_imagereward
from tests.metrics.tiny_openclip import PROMPTS, SIZES, picture, sha256


def official(folder: Path) -> Any:
    """The official class with the tiny checkpoint, by the official loader; its fixed sizes made smaller."""
    from ImageReward import load
    from ImageReward.models.BLIP import blip, blip_pretrain
    from transformers import BertTokenizer

    code = import_module("ImageReward.ImageReward")  # the package's own name for it is the class
    tokenizer = str(tiny_imagereward.write_tokenizer(folder / "tokenizer"))
    blip.BertTokenizer = SimpleNamespace(from_pretrained=lambda _: BertTokenizer.from_pretrained(tokenizer))
    width, depth = tiny_imagereward.WIDTH, tiny_imagereward.DEPTH
    blip_pretrain.create_vit = lambda _, size, *rest: (blip.VisionTransformer(
        img_size=size, patch_size=16, embed_dim=width, depth=depth, num_heads=width // 64), width)
    head = code.MLP
    code.MLP = lambda _: head(tiny_imagereward.MED["hidden_size"])
    weights = tiny_imagereward.write(folder / "weights")
    return load(str(weights / "ImageReward.pt"), "cpu", med_config=str(weights / "med_config.json"))


def main(repository: str) -> None:
    """Writes `outputs.json`."""
    sys.path.insert(0, repository)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = official(Path(folder))
    pictures = [Image.fromarray(picture(height, width, k)) for k, (height, width) in enumerate(SIZES)]
    with torch.no_grad():
        scores = [model.score(text, image) for text, image in zip(PROMPTS, pictures, strict=True)]
        same_prompt = model.score(PROMPTS[0], pictures)
    ids = [model.blip.tokenizer(text, truncation=True, max_length=35).input_ids for text in PROMPTS]
    found = {
        "checkpoint": sha256(tiny_imagereward.tensors(0)), "scores": scores, "same prompt": same_prompt, "ids": ids,
        "versions": {name: version(name) for name in ("torch", "transformers", "timm", "fairscale")},
    }
    (Path(__file__).parent / "outputs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
