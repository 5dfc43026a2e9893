"""Runs the official feature extractors and metrics on small random weights and keeps what they give (see README.md).

python -m tests.vectors.distribution.make DINOV2 DGM-EVAL EDM2 CMMD    # folders with the four repositories
"""

import importlib
import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.metrics import tiny_dinov2, tiny_inception, tiny_openclip
from tests.metrics.tiny_openclip import picture

HERE = Path(__file__).parent
# Height and width. Small for Inception, whose network is large.
SIZES = [(512, 512), (480, 640), (224, 224), (700, 300), (1, 300), (333, 250)]
SETS = {"small": (8, {"isc_splits": 3, "kid_subset_size": 5, "kid_subsets": 4}),
        "large": (40, {"isc_splits": 10, "kid_subset_size": 20, "kid_subsets": 5})}
CLIP = {
    "embed_dim": 24, "quick_gelu": True,
    "vision_cfg": {"image_size": 336, "layers": 2, "width": 128, "patch_size": 56},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1},
}


def places(resized: np.ndarray) -> list[float]:
    """A few values and the mean of an image `[H, W, 3]`."""
    rows, columns = (np.linspace(0, side - 1, 5).round().astype(int) for side in resized.shape[:2])
    return [*resized[rows, columns].astype(float).ravel().tolist(), float(resized.astype(float).mean())]


# ---- Inception ----


class Pictures(torch.utils.data.Dataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(self.images[i, 0]).permute(2, 0, 1)


def inception(weights: str) -> dict[str, Any]:
    from torch_fidelity import calculate_metrics
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

    found: dict[str, Any] = {}
    for name, (count, settings) in SETS.items():
        sets = [tiny_inception.pictures(count, seed) for seed in (0, 1)]
        theirs = calculate_metrics(
            input1=Pictures(sets[0]), input2=Pictures(sets[1]), isc=True, fid=True, kid=True, prc=True,
            feature_extractor="inception-v3-compat", feature_layer_prc="2048",
            feature_extractor_weights_path=weights, cuda=False, save_cpu_ram=True, cache=False, verbose=False,
            **settings,
        )
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        metric = FrechetInceptionDistance(feature=network)
        metric.num_features = 2048
        for images, real in zip(sets, (False, True), strict=True):
            for part in np.array_split(images[:, 0], max(count // 8, 1)):
                metric.update(torch.from_numpy(part).permute(0, 3, 1, 2), real=real)
        found[name] = {**theirs, "torchmetrics": float(metric.compute())}
    return found


def clean() -> list[list[float]]:
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    return [places(resize(picture(*size, k))) for k, size in enumerate(SIZES)]


# ---- DINOv2 ----


def hub_model(official: str) -> torch.nn.Module:
    """The hub's model with the tensors of the tiny one."""
    sys.path.insert(0, official)
    from dinov2.models.vision_transformer import DinoVisionTransformer  # type: ignore[import-not-found]

    model = DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=tiny_dinov2.WIDTH, depth=tiny_dinov2.LAYERS,
        num_heads=tiny_dinov2.HEADS, mlp_ratio=4, init_values=1.0, block_chunks=0,
        interpolate_antialias=False, interpolate_offset=0.1,
    )
    s = tiny_dinov2.tensors()
    state = {
        "cls_token": s["embeddings.cls_token"], "mask_token": s["embeddings.mask_token"],
        "pos_embed": s["embeddings.position_embeddings"],
        "norm.weight": s["layernorm.weight"], "norm.bias": s["layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = s[f"embeddings.patch_embeddings.projection.{kind}"]
        for i in range(tiny_dinov2.LAYERS):
            own, mine = f"encoder.layer.{i}", f"blocks.{i}"
            state[f"{mine}.attn.qkv.{kind}"] = torch.cat(
                [s[f"{own}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for theirs, ours in {"attn.proj": "attention.output.dense", "norm1": "norm1", "norm2": "norm2",
                                 "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
                state[f"{mine}.{theirs}.{kind}"] = s[f"{own}.{ours}.{kind}"]
            for n in (1, 2):
                state[f"{mine}.ls{n}.gamma"] = s[f"{own}.layer_scale{n}.lambda1"]
    model.load_state_dict(state, strict=True)
    return model.eval()


@torch.no_grad()
def dinov2(official: str, dgm_eval: str, edm2: str) -> dict[str, Any]:
    model = hub_model(official)
    torch.hub.load = lambda *_, **__: model  # type: ignore[assignment]
    sys.path[:0] = [dgm_eval, edm2]
    package = types.ModuleType("dgm_eval.models")  # its own __init__ imports every encoder
    package.__path__ = [f"{dgm_eval}/dgm_eval/models"]
    sys.modules["dgm_eval.models"] = package
    encoder = importlib.import_module("dgm_eval.models.dinov2").DINOv2Encoder()
    detector = importlib.import_module("calculate_metrics").DINOv2Detector()
    found: dict[str, list[Any]] = {"dgm-eval": [], "edm2": []}
    for k, size in enumerate(SIZES):
        image = picture(*size, k)
        shown = encoder.transform(Image.fromarray(image))[None]
        found["dgm-eval"].append(encoder(shown.float())[0].tolist())
        found["edm2"].append(detector(torch.from_numpy(image).permute(2, 0, 1)[None])[0].tolist())
    return found


# ---- CMMD ----


def clip_of_transformers(state: dict[str, torch.Tensor]) -> CLIPVisionModelWithProjection:
    """The model that the official code opens, with the tensors of a tiny one in open_clip's keys."""
    tower = CLIP["vision_cfg"]
    width = tower["width"]  # type: ignore[index]
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, projection_dim=CLIP["embed_dim"], hidden_act="quick_gelu",
        num_hidden_layers=tower["layers"], num_attention_heads=width // 64,  # type: ignore[index]
        image_size=tower["image_size"], patch_size=tower["patch_size"],  # type: ignore[index]
    ))
    v = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    filled = {
        "visual_projection.weight": v["proj"].T,
        "vision_model.embeddings.class_embedding": v["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": v["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": v["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        filled[f"vision_model.pre_layrnorm.{kind}"] = v[f"ln_pre.{kind}"]
        filled[f"vision_model.post_layernorm.{kind}"] = v[f"ln_post.{kind}"]
        for i in range(tower["layers"]):  # type: ignore[index]
            own, theirs = f"transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
            for part, value in zip("qkv", v[f"{own}.attn.in_proj_{kind}"].chunk(3), strict=True):
                filled[f"{theirs}.self_attn.{part}_proj.{kind}"] = value
            for name, mine in {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                               "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}.items():
                filled[f"{theirs}.{name}.{kind}"] = v[f"{own}.{mine}.{kind}"]
    model.load_state_dict({key: value.contiguous() for key, value in filled.items()}, strict=True)
    return model.eval()


def cmmd(official: str) -> dict[str, Any]:
    sys.path.insert(0, official)
    import distance  # type: ignore[import-not-found]
    import embedding  # type: ignore[import-not-found]
    import io_util  # type: ignore[import-not-found]
    from transformers import CLIPImageProcessor

    embedder = embedding.ClipEmbeddingModel.__new__(embedding.ClipEmbeddingModel)
    embedder.image_processor = CLIPImageProcessor(size=336, crop_size=336)  # the published settings
    embedder.input_image_size = 336
    embedder._model = clip_of_transformers(tiny_openclip.tensors(CLIP, 0))

    def embed(images: list[np.ndarray]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            for k, image in enumerate(images):
                Image.fromarray(image).save(Path(folder) / f"{k:03}.png")
            return np.asarray(io_util_embed(io_util, folder, embedder))

    shown = embed([picture(*size, k) for k, size in enumerate(SIZES)])
    others = embed([picture(100, 90, k + 20) for k in range(5)])
    return {"embeddings": shown.tolist(), "others": others.tolist(), "cmmd": float(distance.mmd(shown, others))}


def io_util_embed(io_util: Any, folder: str, embedder: Any) -> Any:
    compute: Callable[..., Any] = io_util.compute_embeddings_for_dir
    return compute(folder, embedder, batch_size=1)


def main(official: str, dgm_eval: str, edm2: str, port: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = tiny_inception.write(Path(folder))
        outputs = {
            "clean": clean(),
            "dinov2": dinov2(official, dgm_eval, edm2),
            "cmmd": cmmd(port),
            "inception": inception(str(weights)),
        }
    (HERE / "outputs.json").write_text(json.dumps(outputs, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
