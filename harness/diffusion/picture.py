"""A prompt's picture as an image-to-video model is shown it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness.errors import HarnessError
from harness.prompts import Prompt

WHITE = (255, 255, 255)


def open_picture(prompt: Prompt, size: int) -> Tensor:
    """The prompt's picture, float32 `[3, size, size]` in [-1, 1].

    With transparency, as the official script of SV3D does it: the smallest box around all that is not transparent
    goes to the middle of a square as high as the picture, which is resized (Lanczos) and laid on white; pixels are
    rounded down. Without, it is taken to lie on its background already: resized, a picture that is not square with
    white at its sides.

    Raises:
        HarnessError: the prompt names no picture, or one that cannot be read or shows nothing.
    """
    if prompt.image is None:
        raise HarnessError(f"prompt {prompt.id!r} names no picture: this model makes clips out of one")
    try:
        with Image.open(Path(prompt.image)) as file:
            picture = file.convert("RGBA" if file.has_transparency_data else "RGB")
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise HarnessError(
            f"prompt {prompt.id!r}: its picture {prompt.image} cannot be read ({type(error).__name__}: {error}); put a "
            f"good PNG, JPEG or WebP file in its place"
        ) from error
    if picture.mode == "RGBA":
        pixels = _on_white(_centred(picture, prompt).resize((size, size), Image.Resampling.LANCZOS))
    else:
        pixels = np.array(ImageOps.pad(picture, (size, size), Image.Resampling.LANCZOS, color=WHITE))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 * 2 - 1


def _centred(picture: Image.Image, prompt: Prompt) -> Image.Image:
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise HarnessError(f"prompt {prompt.id!r}: its picture {prompt.image} is transparent everywhere")
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(picture.height, width)  # the script asks for a square picture, in which the object always has room
    square = Image.new("RGBA", (side, side))
    square.paste(picture.crop(box), (side // 2 - width // 2, side // 2 - height // 2))
    return square


def _on_white(picture: Image.Image) -> np.ndarray:
    levels = np.array(picture) / 255.0
    alpha = levels[..., 3:]
    return ((levels[..., :3] * alpha + (1 - alpha)) * 255).astype(np.uint8)
