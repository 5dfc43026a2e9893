"""Writes clip.safetensors with kornia, which this project does not need (see README.md).

    python -m tests.vectors.sv3d.make_clip
"""

from pathlib import Path

import kornia  # type: ignore[import-not-found]
import torch
from safetensors.torch import save_file

from tests.vectors.sv3d.pictures import PICTURES, kept, picture

HERE = Path(__file__).parent
MEAN, STD = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])


def main() -> None:
    found = {}
    for height, width, side in PICTURES:
        pixels = kornia.geometry.resize(
            picture(height, width) * 2 - 1, (side, side), interpolation="bicubic", align_corners=True, antialias=True
        )
        pixels = kornia.enhance.normalize((pixels + 1) / 2, MEAN, STD)
        found[f"{height}x{width}.{side}"] = kept(pixels)
    save_file(found, HERE / "clip.safetensors", metadata={"kornia": kornia.__version__})


if __name__ == "__main__":
    main()
