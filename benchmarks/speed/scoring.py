"""Seconds for 200 images of 40 prompts: HPSv2 and PickScore against their authors' way, the model kept loaded.

    uv run python -m benchmarks.speed.scoring [--patch 16] [--images 200] [--threads 1]

The authors' packages cannot be a dependency (one does not install beside today's libraries, the other is an example
in a README), so their loops are written out here, on the same classes of open_clip and transformers. Held against
the authors' own code once, by processor time on one thread: HPSv2's took 1.02 times the loop's, PickScore's 1.00.

- HPSv2: `score` of github.com/tgxs002/HPSv2 for each image: preprocessing, tokens of its prompt, one pass of both
  transformers. It reads its checkpoint anew at each call; that is left out.
- PickScore: `calc_probs` of the README of github.com/yuvalkirstain/PickScore, once for each image with its prompt
  ("one by one"), and once for each prompt with all of its images ("by prompt").

Random weights of ViT-B's size (HPSv2's heads are 80 wide, so 800 takes the place of 768), 512 x 512 pixels. Ours sees
32 images at once, as a worker does, and forgets the texts between the measurements. Both must give the same values;
that is checked first. Medians of interleaved pairs, in either order, the same number of threads.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, ToTensor
from torchvision.transforms import functional as transforms
from transformers import CLIPModel, CLIPProcessor

from harness.metrics import clip_pixels
from harness.metrics.clip import Embedder
from harness.metrics.load import load_metric
from harness.quiet import quiet
from tests.metrics import tiny_openclip, tiny_pickscore

SEEDS = 5  # images of a prompt
SIZE = 512
TEXT = "a photo of two red foxes beside blue vases on an old wooden table in warm evening light"
Loop = Callable[[list[Image.Image], list[str]], list[float]]


def hpsv2_loop(clip: Embedder) -> Loop:
    """`score`, image by image, on the model that ours has loaded."""
    tokenizer = SimpleTokenizer()

    def longest(image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[1:]
        scale = 224 / max(height, width)
        image = transforms.resize(image, [round(height * scale), round(width * scale)], InterpolationMode.BICUBIC)
        down, right = 224 - image.shape[1], 224 - image.shape[2]
        return transforms.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2])

    shown = Compose([ToTensor(), longest, Normalize(clip_pixels.MEAN, clip_pixels.STD)])

    def scores(images: list[Image.Image], prompts: list[str]) -> list[float]:
        found = []
        for image, prompt in zip(images, prompts, strict=True):
            features = clip.model(shown(image)[None], tokenizer([prompt]))  # type: ignore[attr-defined]
            found.append(100 * torch.diagonal(features[0] @ features[1].T).numpy()[0])
        return found

    return scores


def pickscore_loop(model: CLIPModel, processor: CLIPProcessor, together: bool) -> Loop:
    """`calc_probs` before its softmax, for each image or for each prompt."""

    def embedded(found: object) -> torch.Tensor:
        found = getattr(found, "pooler_output", found)
        return found / torch.norm(found, dim=-1, keepdim=True)

    def calc(prompt: str, images: list[Image.Image]) -> list[float]:
        settings = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        image = embedded(model.get_image_features(**processor(images=images, **settings)))
        text = embedded(model.get_text_features(**processor(text=prompt, **settings)))
        return (model.logit_scale.exp() * (text @ image.T)[0]).tolist()

    def scores(images: list[Image.Image], prompts: list[str]) -> list[float]:
        if not together:
            return [calc(prompt, [image])[0] for image, prompt in zip(images, prompts, strict=True)]
        starts = range(0, len(images), SEEDS)
        return [value for i in starts for value in calc(prompts[i], images[i : i + SEEDS])]

    return scores


def compare(title: str, name: str, parameters: dict[str, str], loop: Loop | None, images: np.ndarray,
            prompts: list[str], pairs: int) -> None:
    """Prints the ratio of the loop's seconds to ours."""
    metric = load_metric(name, **parameters)
    theirs = loop or hpsv2_loop(metric.clip)
    pictures = [Image.fromarray(image[0]) for image in images]

    def ours() -> list[float]:
        metric.clip.texts.clear()
        parts = [slice(i, i + metric.batch) for i in range(0, len(images), metric.batch)]
        return [value for part in parts for value in metric.score(images[part], prompts[part]).values]

    def timed(do: Callable[[], list[float]]) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        found = do()
        return time.perf_counter() - started, np.array(found)

    sides = [lambda: theirs(pictures, prompts), ours]
    (_, a), (_, b) = timed(sides[0]), timed(sides[1])  # a warm-up, and the proof that both do the same
    error = np.abs(a - b).max()
    # The processor of transformers 5 resizes by torchvision, a grey level off Pillow's.
    assert error < (0.5 if name == "pickscore" else 1e-3), f"{title}: the two sides differ by {error:.2g}"
    seconds: list[list[float]] = [[], []]
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[side].append(timed(sides[side])[0])
    ratios = [slow / fast for slow, fast in zip(*seconds, strict=True)]
    print(f"{title}: loop / ours, median {statistics.median(ratios):.2f} of {pairs} pairs ({min(ratios):.2f} to "
          f"{max(ratios):.2f}); {statistics.median(seconds[0]):.1f} and {statistics.median(seconds[1]):.1f} s; "
          f"largest difference {error:.1g}", flush=True)


@torch.no_grad()
def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=32, help="side of a patch in pixels: 32 or 16")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    draw = np.random.default_rng(0)
    prompts = [" ".join(draw.permutation(TEXT.split())) for _ in range(-(-arguments.images // SEEDS))]
    prompts = [prompt for prompt in prompts for _ in range(SEEDS)][: arguments.images]
    images = draw.integers(0, 256, (arguments.images, 1, SIZE, SIZE, 3), dtype=np.uint8)
    vision = {"image_size": 224, "layers": 12, "width": 800, "head_width": 80, "patch_size": arguments.patch}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        settings = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
        hpsv2 = tiny_openclip.write_hpsv2(folder, settings=settings)
        pickscore = tiny_pickscore.write(
            folder / "pickscore", dimension=512,
            text=tiny_pickscore.TEXT | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
                                        "num_attention_heads": 8},
            vision=tiny_pickscore.VISION | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                            "num_attention_heads": 12, "patch_size": arguments.patch},
        )
        processor = tiny_pickscore.write_processor(folder / "processor")
        compare("HPSv2", "hpsv2", {"weights": str(hpsv2)}, None, images, prompts, arguments.pairs)
        model = CLIPModel.from_pretrained(pickscore).eval()
        process = CLIPProcessor.from_pretrained(processor)
        places = {"weights": str(pickscore), "processor": str(processor)}
        for title, together in (("PickScore, one by one", False), ("PickScore, by prompt", True)):
            loop = pickscore_loop(model, process, together)
            compare(title, "pickscore", places, loop, images, prompts, arguments.pairs)


if __name__ == "__main__":
    main()
