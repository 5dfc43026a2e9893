"""Reference statistics from images: a folder of files, Parquet, the images of a run's cell, or guided-diffusion's npz.

The images go through a metric's own extractor; moments are summed as they come, so that memory does not grow with
their number, and the features are kept where they are wanted (KID, precision and recall, CMMD need them).
"""

import hashlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness import registry
from harness.display import Display
from harness.errors import HarnessError
from harness.exact import exact_float32
from harness.frechet import Moments
from harness.images import unreadable
from harness.metrics.base import DistributionMetric
from harness.metrics.reference import named_file, write_reference
from harness.store import check_label

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
BATCH = 32  # images decoded and given to the extractor at once


def make_reference(
    name: str, images: Path, metric_name: str, *, size: int | None = None, resample: str = "bicubic",
    keep_features: bool = False, device: str = "cpu", replace: bool = False, display: Display | None = None,
) -> Path:
    """Writes what a metric's extractor makes of images under a name, which the metric's `statistics` then takes.

    Args:
        images: a folder of png, jpg or webp files (searched below, in the order of their names), a Parquet file with
            a column `image` of struct<bytes, path>, a folder of such files, or an .npz whose `arr_0` holds pixels.
        size: the side to which each image is brought: the largest square in its middle, resized by Pillow. None
            leaves images as they are; the extractor resizes them in its own way.
        keep_features: keeps the features, float32, beside their moments.

    Raises:
        HarnessError: no images, one that cannot be read (it is named), a metric without features, a file that is
            there already (without `replace`), or weights that are not here.
    """
    metric = registry.build("metric", metric_name, {})
    if not isinstance(metric, DistributionMetric):
        raise HarnessError(f"metric {metric_name!r} compares no distributions: a reference is for one like fid or kid")
    path = named_file(check_label("reference", name), metric.extractor)
    if path.exists() and not replace:
        raise HarnessError(f"{path} is there already: --replace makes it anew, or choose another name")
    if resample not in RESAMPLING:
        raise HarnessError(f"--resample {resample}: expected one of {', '.join(RESAMPLING)}")
    exact_float32()  # as in a worker: the features must be those of a run
    metric.open(device)
    count, held = _source(images)
    hashed, kept = hashlib.sha256(), []
    display = display or Display(quiet=True)

    def features() -> Iterator[np.ndarray]:
        while batch := list(itertools.islice(held, BATCH)):
            for _, data in batch:
                hashed.update(hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).digest())
            found = _features(metric, [_opened(place, data, size, resample) for place, data in batch])
            if keep_features:
                kept.append(found)
            display.advance(len(batch))
            yield found

    display.start("features", count)
    moments = Moments.of_parts(features())
    display.finish()
    if moments.count < 2:
        raise HarnessError(f"{images} holds {moments.count} image: statistics need at least 2")
    told = {
        "source": images.name, "source_sha256": hashed.hexdigest(),
        "size": "as they are" if size is None else f"{size}, centre crop, {resample}",
    }
    write_reference(
        path, np.concatenate(kept) if keep_features else None, metric.preprocessing, metric.extractor_digest,
        moments=moments, told=told,
    )
    return path


def _features(metric: DistributionMetric, images: list[np.ndarray]) -> np.ndarray:
    """Features `[N, D]` in order; images of one size go through the network together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(i)
    parts = [metric.features(np.stack([images[i] for i in rows])[:, None]) for rows in by_shape.values()]
    order = np.argsort(np.concatenate([np.array(rows) for rows in by_shape.values()]))
    return np.asarray(np.concatenate(parts)[order], np.float32)


def _opened(place: str, data: bytes | np.ndarray, size: int | None, resample: str) -> np.ndarray:
    """The pixels, uint8 `[H, W, 3]`, of one image."""
    try:
        with Image.open(io.BytesIO(data)) if isinstance(data, bytes) else Image.fromarray(data) as image:
            pixels = image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise HarnessError(
            f"{place} cannot be read as an image ({unreadable(error)}): mend it or take it away"
        ) from error
    if size is not None:
        side = min(pixels.size)
        left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
        pixels = pixels.crop((left, top, left + side, top + side)).resize((size, size), RESAMPLING[resample])
    return np.asarray(pixels)


Held = tuple[str, bytes | np.ndarray]  # where an image lies, for messages, and its file's bytes or its pixels


def _source(images: Path) -> tuple[int, Iterator[Held]]:
    """How many images there are, and each of them, in a fixed order."""
    if images.is_file():
        return _in_npz(images) if images.suffix == ".npz" else _in_parquet([images])
    if not images.is_dir():
        raise HarnessError(f"--images {images}: no such file or folder")
    found = sorted(p for p in images.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = [p for p in found if p.suffix.lower() in SUFFIXES]
    parts = [p for p in found if p.suffix.lower() == ".parquet"]
    if bool(files) == bool(parts):
        held = "both image files and Parquet files" if files else f"no {', '.join(SUFFIXES)} and no .parquet file"
        raise HarnessError(f"--images {images} holds {held}: name a folder of one kind")
    return _in_parquet(parts) if parts else (len(files), ((str(p), _bytes(p)) for p in files))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HarnessError(f"{path} cannot be read: {error.strerror or error}") from error


def _in_npz(path: Path) -> tuple[int, Iterator[Held]]:
    """guided-diffusion's reference and sample batches: `arr_0`, uint8 `[N, H, W, 3]`, read whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            pixels = file["arr_0"]
    except Exception as error:  # a damaged file can raise anything
        raise HarnessError(f"{path} has no images `arr_0` that can be read: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise HarnessError(f"{path}: images are uint8 [N, H, W, 3], `arr_0` is {pixels.dtype} {list(pixels.shape)}")
    return len(pixels), ((f"{path}, image {i}", image) for i, image in enumerate(pixels))


def _in_parquet(paths: list[Path]) -> tuple[int, Iterator[Held]]:
    """The images of a column `image`; rows without one (a sample that could not be made) are passed over."""

    def opened(path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise HarnessError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error
        kind = file.schema_arrow.field("image").type if "image" in file.schema_arrow.names else None
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise HarnessError(f"{path} has no column `image` of struct<bytes, path>; found {file.schema_arrow.names}")
        return file

    def rows() -> Iterator[Held]:
        for path in paths:
            place = 0
            try:
                with opened(path) as file:
                    for batch in file.iter_batches(BATCH, columns=["image"]):
                        for image in batch.column("image").to_pylist():
                            if image is not None and image["bytes"] is not None:
                                yield f"{path}, row {place}", image["bytes"]
                            place += 1
            except (OSError, pa.ArrowException) as error:
                reason = str(error).splitlines()[0]
                raise HarnessError(f"{path} is damaged and cannot be read: {reason}") from error

    total = 0
    for path in paths:
        with opened(path) as file:
            total += file.metadata.num_rows
    return total, rows()
