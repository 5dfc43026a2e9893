"""A tiny random PickScore in the transformers layout, and the processor of the CLIP that it was made from."""

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPConfig, CLIPModel

from tests.metrics.tiny_openclip import PREPROCESSING

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu",
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 2,
    "hidden_act": "gelu", "image_size": 224, "patch_size": 14,
}


def write(
    folder: Path, seed: int = 0, text: dict[str, Any] = TEXT, vision: dict[str, Any] = VISION, dimension: int = 64
) -> Path:
    """Writes the model and returns its folder; `config.json` says that the weights are random."""
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dimension))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                drawn = torch.tensor(4.5)
            elif parameter.ndim > 1:
                drawn /= 2 if "embedding" in name and "patch" not in name else parameter[0].numel() ** 0.5
            elif name.endswith("weight"):  # of a layer norm
                drawn = 1 + 0.1 * drawn
            else:
                drawn *= 0.3
            parameter.copy_(drawn)
    for part in (model.text_model, model.vision_model):
        ids = part.embeddings.position_ids
        ids.copy_(torch.arange(ids.shape[-1])[None])
    model.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "trained": False}))
    return folder


def write_processor(folder: Path) -> Path:
    """Writes the files that tokenizer and image processor are read from, as the Hub holds them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): place for token, place in bpe.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in bpe.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokens = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
              "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": PREPROCESSING["mean"],
        "image_std": PREPROCESSING["std"], "resample": 3, "size": 224,
    }))
    return folder
