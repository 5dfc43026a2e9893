"""A folder of weights such as `harness fetch` fills: every checkpoint tiny, random, in the official format."""

from collections.abc import Callable
from pathlib import Path

from tests.metrics import (
    tiny_aesthetic,
    tiny_alexnet,
    tiny_clip_flant5,
    tiny_dinov2,
    tiny_imagereward,
    tiny_inception,
    tiny_mask2former,
    tiny_openclip,
    tiny_pickscore,
)

WRITERS: dict[str, Callable[[Path], Path]] = {
    "hpsv2": lambda folder: tiny_openclip.write_hpsv2(folder, seed=1).rename(folder / "HPS_v2_compressed.pt"),
    "hpsv2.1": tiny_openclip.write_hpsv2,
    "pickscore": tiny_pickscore.write,
    "clip-h-14-processor": tiny_pickscore.write_processor,
    "clip-b-32": tiny_openclip.write_openai,
    "clip-b-16": lambda folder: tiny_openclip.write_openai(folder, seed=27),
    "clip-l-14": lambda folder: tiny_openclip.write_openai(folder, seed=28),
    "clip-l-14-336": lambda folder: tiny_openclip.write_openai(folder, seed=29),
    "aesthetic": lambda folder: tiny_aesthetic.write(folder).rename(folder / "sac+logos+ava1-l14-linearMSE.pth"),
    "imagereward": tiny_imagereward.write,
    "bert-base-uncased": tiny_imagereward.write_tokenizer,
    "clip-flant5-xxl": lambda folder: tiny_clip_flant5.write(folder, folder.parent / "clip-vit-large-patch14-336"),
    "clip-flant5-xl": lambda folder: tiny_clip_flant5.write(folder, folder.parent / "clip-vit-large-patch14-336", 2),
    "clip-vit-large-patch14-336": tiny_clip_flant5.write_vision,
    "flan-t5-xxl-tokenizer": tiny_clip_flant5.write_tokenizer,
    "flan-t5-xl-tokenizer": tiny_clip_flant5.write_tokenizer,
    "mask2former-swin-small-coco": tiny_mask2former.write,
    "inception-2015-12-05": tiny_inception.write,
    "dinov2-large": tiny_dinov2.write,
    "alexnet": tiny_alexnet.write,
}


def write(home: Path) -> Path:
    """Fills a folder for `HARNESS_WEIGHTS`; returns it."""
    for name, writer in WRITERS.items():
        folder = home / name
        folder.mkdir(parents=True)
        writer(folder)
        (folder / "trained.json").write_text('{"trained": false}')
    return home
