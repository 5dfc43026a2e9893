"""The picture as SV3D's CLIP sees it, against kornia (tests/vectors/sv3d).

1e-5 absolute, on values of up to 2.7: both sides compute in float32 and differ in the order of operations.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.diffusion.sv3d_clip import clip_pixels
from tests.vectors.sv3d.pictures import PICTURES, kept, picture

HERE = Path(__file__).parent.parent / "vectors" / "sv3d"


@pytest.mark.parametrize(("height", "width", "side"), PICTURES)
def test_pixels_equal_kornias(height: int, width: int, side: int) -> None:
    theirs = load_file(HERE / "clip.safetensors")[f"{height}x{width}.{side}"]
    ours = clip_pixels(picture(height, width), side)
    assert ours.shape == (2, 3, side, side)
    torch.testing.assert_close(kept(ours), theirs, rtol=0, atol=1e-5)


def test_a_gradient_comes_through() -> None:
    picture = torch.full((1, 3, 30, 30), 0.5, dtype=torch.float64, requires_grad=True)
    clip_pixels(picture, 14).sum().backward()
    assert picture.grad is not None
    # Weights sum to one: what a grey picture's value changes is 14 x 14 pixels a channel, over the deviation.
    torch.testing.assert_close(
        picture.grad.sum((0, 2, 3)), 196 / torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
    )
