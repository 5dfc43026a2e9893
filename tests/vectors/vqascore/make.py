"""Scores the tiny random CLIP-FlanT5 by the official code of VQAScore, in the older environment of README.md.

python -m tests.vectors.vqascore.make T2V    # a folder with the parts of its repository that README.md names
"""

import json
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from PIL import Image
from transformers import T5TokenizerFast

from tests.metrics import tiny_clip_flant5 as tiny
from tests.metrics.tiny_openclip import PROMPTS, SIZES, picture, sha256

LONG = "word " * 2500  # beyond the 2048 tokens that are read
OTHER = {"question_template": "{}?", "answer_template": "a red fox, {}"}


def official(folder: Path) -> tuple[Any, Any]:
    """The official class and its module, the tiny model loaded by the official loader."""
    sys.modules["cv2"] = ModuleType("cv2")  # for videos
    code = import_module("t2v_metrics.models.vqascore_models.clip_t5_model")
    tools = import_module("t2v_metrics.models.vqascore_models.mm_utils")
    tools.AutoTokenizer = SimpleNamespace(
        from_pretrained=lambda path, use_fast, **settings: T5TokenizerFast.from_pretrained(path, **settings))
    tokenizer, vision = tiny.write_tokenizer(folder / "tokenizer"), tiny.write_vision(folder / "vision")
    weights = tiny.write(folder / "weights", vision)
    code.CLIP_T5_MODELS["tiny"] = {
        "tokenizer": {"path": str(tokenizer), "model_max_length": code.CONTEXT_LEN},
        "model": {"path": str(weights), "conversation": "t5_chat", "image_aspect_ratio": "pad"},
    }
    model = code.CLIPT5Model("tiny", "cpu", str(folder / "cache"))
    model.model.float()  # it is cast to bfloat16, which holds these weights exactly
    return model, code


def main(repository: str) -> None:
    """Writes `outputs.json`."""
    sys.path.insert(0, repository)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, code = official(folder)
        shown = []
        for k, (height, width) in enumerate(SIZES):
            Image.fromarray(picture(height, width, k)).save(folder / f"{k}.png")
            shown.append(str(folder / f"{k}.png"))
        alone = [model.forward([image], [text]).item() for image, text in zip(shown, PROMPTS, strict=True)]
        found = {
            "checkpoint": sha256(tiny.tensors(tiny.shapes(tiny.T5, tiny.VISION), 0)),
            "scores": alone,
            "together": model.forward(shown, PROMPTS).tolist(),
            "same prompt": model.forward(shown, PROMPTS[:1] * len(shown)).tolist(),
            "long": model.forward(shown[:1], [LONG]).item(),
            "other templates": model.forward(shown, PROMPTS, **OTHER).tolist(),
        }
        asked = [code.format_question(code.default_question_template.format(text), "t5_chat") for text in PROMPTS]
        found["ids"] = [code.t5_tokenizer_image_token(question, model.tokenizer)[:2048] for question in asked]
        found["pixels"] = [[float(x[c].mean()) for c in range(3)] for x in model.load_images(shown)]
        found["vocabulary"] = model.model.lm_head.weight.shape[0]
    found["versions"] = {name: version(name) for name in ("torch", "transformers")}
    (Path(__file__).parent / "outputs.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
