"""Images as lossless bytes: WebP by default (method 0: ten times faster than PNG and smaller), or PNG."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from harness.errors import HarnessError

OPTIONS: dict[str, dict[str, object]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0, "exact": True},
    "png": {"format": "PNG", "compress_level": 1},
}
CODECS = tuple(OPTIONS)
WEBP_SIDE = 16383  # pixels: the format's own limit


@dataclass(frozen=True)
class Encoded:
    """A sample's frames (one, for a still), encoded."""

    frames: tuple[bytes, ...]
    width: int
    height: int
    codec: str


def encode(image: np.ndarray, codec: str) -> Encoded:
    """Encodes uint8 `[F, H, W, 3]`, without loss."""
    if codec not in OPTIONS:
        raise HarnessError(f"images: unknown codec {codec!r}, expected {' or '.join(CODECS)}")
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"an image is uint8 [F, H, W, 3], got {image.dtype} {list(image.shape)}")
    height, width = image.shape[1:3]
    if codec == "webp" and max(height, width) > WEBP_SIDE:
        raise HarnessError(f"images: {width}x{height} is more than WebP can hold ({WEBP_SIDE}); use codec png")
    frames = []
    for frame in image:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(frame)).save(buffer, **OPTIONS[codec])  # type: ignore[arg-type]
        frames.append(buffer.getvalue())
    return Encoded(tuple(frames), width, height, codec)


def decode(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels, uint8 `[H, W, 3]`, of one encoded frame or picture; what is transparent in it lies on white.

    With `size` (width, height) an image of another size is brought to it by Pillow's Lanczos filter, unless its sides
    have another ratio: then it is left as it is.

    Raises:
        ValueError: the bytes are no sound image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            shown = on_white(image)
            if size is not None and shown.size != size and shown.width * size[1] == shown.height * size[0]:
                shown = shown.resize(size, Image.Resampling.LANCZOS)
            return np.asarray(shown)
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        raise ValueError(unreadable(error)) from error


def unreadable(error: Exception) -> str:
    """Why Pillow cannot read the bytes of an image. It names what holds them, which is an address in memory."""
    return "no format of images" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB; what is transparent in it lies on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
