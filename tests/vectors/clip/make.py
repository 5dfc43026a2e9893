"""Scores tiny random checkpoints by the official code of HPSv2, PickScore, CLIPScore and the aesthetic predictor.

python -m tests.vectors.clip.make HPSV2 PICKSCORE CLIPSCORE AESTHETIC    # folders of their repositories (README.md)
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.metrics import tiny_aesthetic, tiny_openclip, tiny_pickscore
from tests.metrics.tiny_openclip import PROMPTS, SIZES, picture, sha256

HERE = Path(__file__).parent
PICTURES = [Image.fromarray(picture(height, width, k)) for k, (height, width) in enumerate(SIZES)]


def hpsv2(folder: Path) -> dict[str, Any]:
    """`hpsv2.score` with its model kept loaded; the tiny model stands for "ViT-H-14"."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory, transform
    from torchvision.transforms import functional

    checkpoint = tiny_openclip.write_hpsv2(folder)
    factory._MODEL_CONFIGS["ViT-H-14"] = tiny_openclip.HPSV2
    model, _, shown = factory.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device="cpu", force_patch_dropout=False, light_augmentation=True, aug_cfg={},
        output_dict=True,
    )
    img_score.model_dict |= {"model": model, "preprocess_val": shown}

    def scores() -> list[float]:
        return [float(img_score.score(image, prompt, cp=str(checkpoint))[0])
                for image, prompt in zip(PICTURES, PROMPTS, strict=True)]

    found: dict[str, Any] = {"antialias": scores()}
    transform.F = ModuleType("functional")  # torchvision as it was when the code was written
    transform.F.resize = partial(functional.resize, antialias=False)
    transform.F.pad = functional.pad
    found["no antialias"] = scores()
    return found | {"checkpoint": sha256(torch.load(checkpoint)["state_dict"])}


def pickscore(folder: Path, official: Path) -> dict[str, Any]:
    """The example of the README, with its scores instead of their softmax."""
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    model = tiny_pickscore.write(folder / "model")
    processor = tiny_pickscore.write_processor(folder / "processor")
    code = (official / "README.md").read_text().split("```python")[1].split("pil_images =")[0]
    for old, new in {
        '"cuda"': '"cpu"', "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": str(processor),
        "yuvalkirstain/PickScore_v1": str(model),
        "(**image_inputs)": "(**image_inputs).pooler_output", "(**text_inputs)": "(**text_inputs).pooler_output",
        "return probs": "return scores",
    }.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(code, names)
    names["processor"] = CLIPProcessor.from_pretrained(processor)  # the folder lacks the file that says so
    names["processor"].image_processor = CLIPImageProcessorPil.from_pretrained(processor)
    shown = [k for k, (height, _) in enumerate(SIZES) if height > 1]  # it takes such an image's rows for channels
    scores = [names["calc_probs"](PROMPTS[k], [PICTURES[k]])[0] for k in shown]
    one = [PICTURES[k] for k in shown]
    return {
        "pictures": shown, "scores": scores, "one prompt": names["calc_probs"](PROMPTS[0], one),
        "checkpoint": sha256(load_file(model / "model.safetensors")),
    }


def clipscore(folder: Path) -> dict[str, Any]:
    """`get_clip_score` on image files, and 100 times the cosine by the same model without the prefix."""
    import clip

    sys.modules["generation_eval_utils"] = ModuleType("generation_eval_utils")  # scores of captions alone
    import clipscore as official

    made = tiny_openclip.write_openai(folder / "clip")
    state = load_file(made / tiny_openclip.WEIGHTS)
    model = clip.model.build_model(dict(state)).float().eval()
    official.extract_all_captions = partial(official.extract_all_captions, num_workers=0)
    paths = []
    for k, image in enumerate(PICTURES):
        paths.append(str(folder / f"{k}.png"))
        image.save(paths[-1])
    images = official.extract_all_images(paths, model, "cpu", num_workers=0)
    hessel = official.get_clip_score(model, images, PROMPTS, "cpu")[1]
    with torch.no_grad():
        logits = [model(clip.clip._transform(224)(image)[None], clip.tokenize([prompt], truncate=True))[0].item()
                  for image, prompt in zip(PICTURES, PROMPTS, strict=True)]
    cosines = [100 * value / state["logit_scale"].exp().item() for value in logits]
    return {"hessel": [float(value) for value in hessel], "100 cos": cosines, "checkpoint": sha256(state)}


def aesthetic(folder: Path, official: Path) -> dict[str, Any]:
    """The script's network and normalisation on embeddings of the same model; its ReLUs uncommented for one file."""
    import clip

    state = load_file(tiny_openclip.write_openai(folder / "clip") / tiny_openclip.WEIGHTS)
    model = clip.model.build_model(dict(state)).float().eval()
    with torch.no_grad():
        embedded = torch.cat([model.encode_image(clip.clip._transform(224)(image)[None]) for image in PICTURES])
    script = (official / "simple_inference.py").read_text()
    code = "class MLP" + script.split("class MLP")[1].split("model = MLP(768)")[0]
    found = {}
    for kind, source in {"linear": code, "relu": code.replace("#nn.ReLU", "nn.ReLU")}.items():
        lightning = ModuleType("pl")
        lightning.LightningModule = nn.Module  # type: ignore[attr-defined]
        import numpy as np

        names: dict[str, Any] = {"pl": lightning, "nn": nn, "np": np}
        exec(source, names)
        network = names["MLP"](tiny_openclip.OPENAI["embed_dim"]).eval()
        network.load_state_dict(torch.load(tiny_aesthetic.write(folder, kind)))
        with torch.no_grad():
            unit = torch.from_numpy(names["normalized"](embedded.numpy())).float()
            found[kind] = network(unit)[:, 0].tolist()
    return found


def main(*official: str) -> None:
    sys.path[:0] = official
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            "hpsv2": hpsv2(folder),
            "pickscore": pickscore(folder, Path(official[1])),
            "clipscore": clipscore(folder),
            "aesthetic": aesthetic(folder, Path(official[3])),
        }
    (HERE / "outputs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
