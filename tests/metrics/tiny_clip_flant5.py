"""A tiny random CLIP-FlanT5 in the official layout (shards of `.bin`), its CLIP, and a tokenizer of T5."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.metrics.tiny_openclip import PREPROCESSING

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&;,.?:<>\"'“”’"
SENTINELS = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁Yes", -3.0), ("▁Please", -4.0),
          ("▁word", -3.5), ("▁a", -3.0), ("▁fox", -5.0), ("▁red", -5.5), ("▁US", -5.0), ("ER", -5.5), ("se", -4.5),
          *((letter, -6.0 - 0.01 * i) for i, letter in enumerate(LETTERS)), *((name, 0.0) for name in SENTINELS)]
UNUSED = 28  # rows that no token uses, as T5 has them
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
      "vocab_size": len(PIECES) + UNUSED}
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 56, "patch_size": 14}
XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 64,
       "vocab_size": 32128}
L336 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14}


def vision_shapes(vision: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a CLIP's vision tower as the Hub holds it."""
    width, wide = vision["hidden_size"], vision["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {}

    def both(name: str, *shape: int) -> None:
        found[f"vision_model.{name}.weight"], found[f"vision_model.{name}.bias"] = shape, shape[:1]

    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    found["vision_model.embeddings.class_embedding"] = (width,)
    found["vision_model.embeddings.position_embedding.weight"] = (patches + 1, width)
    found["vision_model.embeddings.patch_embedding.weight"] = (width, 3, vision["patch_size"], vision["patch_size"])
    both("pre_layrnorm", width)
    both("post_layernorm", width)
    for i in range(vision["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            both(f"{layer}.self_attn.{name}", width, width)
        both(f"{layer}.layer_norm1", width)
        both(f"{layer}.layer_norm2", width)
        both(f"{layer}.mlp.fc1", wide, width)
        both(f"{layer}.mlp.fc2", width, wide)
    return found


def shapes(t5: dict[str, int], vision: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of an official state dict."""
    width, inner, wide = t5["d_model"], t5["d_kv"] * t5["num_heads"], t5["d_ff"]
    table = (t5["vocab_size"], width)
    found: dict[str, tuple[int, ...]] = {"shared.weight": table, "lm_head.weight": table}

    def attention(name: str, *, bias: bool = False) -> None:
        for part in "qkv":
            found[f"{name}.{part}.weight"] = (inner, width)
        found[f"{name}.o.weight"] = (width, inner)
        if bias:
            found[f"{name}.relative_attention_bias.weight"] = (32, t5["num_heads"])

    for stack, depth in (("encoder", t5["num_layers"]), ("decoder", t5["num_decoder_layers"])):
        found[f"{stack}.embed_tokens.weight"] = table
        for i in range(depth):
            block = f"{stack}.block.{i}.layer"
            attention(f"{block}.0.SelfAttention", bias=i == 0)
            if stack == "decoder":
                attention(f"{block}.1.EncDecAttention")
            last = 2 if stack == "decoder" else 1
            for part, shape in (("wi_0", (wide, width)), ("wi_1", (wide, width)), ("wo", (width, wide))):
                found[f"{block}.{last}.DenseReluDense.{part}.weight"] = shape
            for k in range(last + 1):
                found[f"{block}.{k}.layer_norm.weight"] = (width,)
        found[f"{stack}.final_layer_norm.weight"] = (width,)
    found |= {"mm_projector.0.weight": (width, vision["hidden_size"]), "mm_projector.0.bias": (width,),
              "mm_projector.2.weight": (width, width), "mm_projector.2.bias": (width,)}
    return found | {f"vision_tower.vision_tower.{name}": shape for name, shape in vision_shapes(vision).items()}


def tensors(found: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of these shapes that bfloat16 holds exactly, no bias and no norm at its default."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted(found.items()):
        drawn = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        elif name == "lm_head.weight":
            drawn *= 0.4
        elif "relative_attention_bias" in name or len(shape) == 1:
            drawn *= 0.3
        elif "embed" not in name and "shared" not in name:
            drawn *= 1.2 / math.sqrt(math.prod(shape[1:]))
        elif "patch" in name:
            drawn /= math.sqrt(math.prod(shape[1:]))
        state[name] = drawn.bfloat16().float()
    for name in state:
        if name.endswith("coder.embed_tokens.weight"):
            state[name] = state["shared.weight"]
    return state


def config(vision: str, t5: dict[str, int] = T5) -> dict[str, Any]:
    """`config.json` of the model, its CLIP in the folder `vision`."""
    return {
        "architectures": ["CLIPT5ForConditionalGeneration"], "model_type": "clip_t5", "is_encoder_decoder": True,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "torch_dtype": "float32",
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "use_cache": False, **t5,
        "mm_vision_tower": vision, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": VISION["hidden_size"], "use_mm_proj": True,
        "freeze_mm_mlp_adapter": True, "image_aspect_ratio": "pad",
    }


def write(folder: Path, vision: Path, seed: int = 0) -> Path:
    """Writes configuration, two shards and their index; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = tensors(shapes(T5, VISION), seed)
    names = sorted(state)
    shards = {f"pytorch_model-0000{k + 1}-of-00002.bin": names[k::2] for k in range(2)}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(str(vision)) | {"trained": False}))
    return folder


def write_vision(folder: Path, seed: int = 1) -> Path:
    """Writes a CLIP's vision tower as the Hub holds it, other weights than the model's own; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(vision_shapes(VISION), seed), folder / "pytorch_model.bin")
    settings = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(settings | VISION | {"trained": False}))
    size = VISION["image_size"]
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "crop_size": {"height": size, "width": size}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "do_convert_rgb": True, "do_rescale": True, "image_processor_type": "CLIPImageProcessor", "resample": 3,
        "image_mean": PREPROCESSING["mean"], "image_std": PREPROCESSING["std"], "size": {"shortest_edge": size},
    }))
    return folder


def write_tokenizer(folder: Path) -> Path:
    """Writes tokenizer.json of a T5 with few pieces, and the settings beside it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *SENTINELS])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(special | {
        "tokenizer_class": "T5Tokenizer", "extra_ids": 100, "additional_special_tokens": SENTINELS,
        "model_max_length": 512,
    }))
    return folder
