"""Finds the weights of models, and says exactly which ones they are.

A name is `builtin:NAME` (shipped with this package), a local folder, or a Hub id. Nothing is ever unpickled
here: models are opened from safetensors.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from harness.errors import HarnessError, Lacking
from harness.files import must_be_inside
from harness.identity import digest
from harness.registry import nearest

HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
SUFFIXES = (".json", ".txt", ".model", ".safetensors")
NOT_LOADED = ("safety_checker", "feature_extractor")  # parts of a pipeline that no model here opens
UNFINISHED = ".fetching"  # lies in a model's folder until all its files do
SUMS = "SHA256SUMS"  # beside fetched files: what was verified, as `sha256sum --check` reads it
_HASHED: dict[tuple[str, int, int], str] = {}  # (path, bytes, mtime in ns) -> SHA-256


def home() -> Path:
    """Where fetched weights lie, a folder each: `HARNESS_WEIGHTS`, else the user's cache."""
    named = os.environ.get("HARNESS_WEIGHTS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "diffusion-noise-harness" / "weights"


def builtin_folder() -> Path:
    """The folder of the weights that ship with this package."""
    return Path(str(resources.files("harness"))) / "shapes" / "weights"


def resolve(weights: str, revision: str | None = None, *, fetch: bool = True) -> Path:
    """The local folder that holds `weights`, fetched from the Hub where it is not here yet.

    A Hub id is looked for in `home()`, as `<organisation>/<name>` (with `@<revision>` after it) or `<name>`, then in
    the Hub's own cache, before it is fetched into `home()`. A network of EDM2 and SV3D-U are looked for and fetched by
    their names; what `harness fetch` made of a file of one's own is found by that file's name without its ending.

    Raises:
        HarnessError: no such built-in name, or the Hub cannot be reached.
        Lacking: no such folder; or a Hub id that is not here, and `fetch` is False.
    """
    if weights.startswith("builtin:"):
        name = weights.removeprefix("builtin:")
        folder = builtin_folder() / name
        if not folder.is_dir():
            known = sorted(p.name for p in builtin_folder().glob("*") if p.is_dir())
            raise HarnessError(f"weights {weights!r} do not ship with this package: {nearest(name, known)}")
        return folder
    local = Path(weights).expanduser()
    if local.is_dir():
        return local.resolve()
    from harness import fetch as fetcher  # here, because it needs this module

    converted = fetcher.converted(weights, fetch)
    if converted is not None:
        return converted
    if not re.fullmatch(HUB_ID, weights):
        raise Lacking(
            f"weights {weights!r}: no such folder; expected a folder in the diffusers layout, "
            f"a Hub id like 'organisation/name', or 'builtin:NAME'"
        )
    found = hub_model(weights, revision)
    if found is not None:
        return found
    if not fetch:
        at = f"@{revision}" if revision else ""
        raise Lacking(f"weights {weights!r} are not on this machine; `harness fetch {weights}{at}` gets them")
    from harness import download  # only where something must be fetched

    return fetcher.model(weights, revision, download.Downloader())


def hub_model(weights: str, revision: str | None) -> Path | None:
    """The folder on this machine that holds the model of a Hub id; None where it is not here, or not wholly."""
    own = model_folder(weights, revision)
    for name in (own, weights, weights.split("/")[1]):
        folder = home() / name
        other = name != own and (folder / SUMS).exists()  # fetched as another revision
        if folder.is_dir() and not other and not (folder / UNFINISHED).exists():
            return folder.resolve()
    return _in_hub_cache(weights, revision)


def model_folder(weights: str, revision: str | None) -> str:
    """The folder below `home()` that the model of a Hub id is fetched into."""
    folder = f"{weights}@{revision}" if revision else weights
    try:
        must_be_inside(folder)
    except ValueError as error:
        raise HarnessError(f"weights {weights!r}, revision {revision!r}: {error}") from error
    return folder


def _in_hub_cache(weights: str, revision: str | None) -> Path | None:
    """The snapshot of the Hub's own cache, where it has every part that the model's index names."""
    folder = hub_snapshot(f"weights {weights!r} (no folder here)", weights, revision)
    if folder is None or not all((folder / part).is_dir() for part in parts(model_index(folder) or {})):
        return None
    return folder


def hub_snapshot(what: str, name: str, revision: str | None, kind: str = "model") -> Path | None:
    """The folder of a repository in the Hub's own cache, None where it has none; `kind` is "model" or "dataset".

    Raises:
        HarnessError: the Hub gives no such names; the message calls it `what`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise HarnessError(f"{what}: no id of the Hugging Face Hub: {' '.join(str(error).split())}") from error


def model_index(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's model_index.json; None where it has none."""
    file = folder / "model_index.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HarnessError(f"{file} is damaged ({error}); put a good copy in its place") from error
    return found if isinstance(found, dict) else {}


def parts(index: dict[str, Any]) -> list[str]:
    """The sub-folders of a model that are opened, by its model_index.json.

    An image encoder is opened beside the UNet of clips alone; that of Stable Diffusion's index is an adapter's.
    """
    named = (key for key, value in index.items() if isinstance(value, list) and isinstance(value[-1], str))
    clips = "SpatioTemporal" in str(index.get("unet"))
    return [key for key in named if key not in NOT_LOADED and (clips or key != "image_encoder")]


def part_of(folder: Path, part: str) -> Path:
    """The sub-folder of that name where there is one, else the folder itself: a network in a pipeline, or alone."""
    return folder / part if (folder / part).is_dir() else folder


def needed(names: Iterable[str], index: dict[str, Any] | None) -> list[str]:
    """Those of a model's files (relative paths) that are opened, sorted.

    With a model_index.json these are that file and the configurations and safetensors of the parts that it names;
    without one (a LoRA, a single network) all there are. Of weights in several variants the plain one is opened,
    else the fp16 one: `open_network` in `harness.diffusion.folders` does the same.
    """
    known = sorted(name for name in names if PurePosixPath(name).suffix in SUFFIXES)
    if index is not None:
        folders = parts(index)
        known = [name for name in known if name == "model_index.json" or PurePosixPath(name).parts[0] in folders]
    variants = [(*_variant(name), name) for name in known]
    kinds: dict[str, set[str]] = {}
    for network, variant, _ in variants:
        kinds.setdefault(network, set()).add(variant)
    return [
        name for network, variant, name in variants
        if variant == "" or ("" not in kinds[network] and (variant == "fp16" or "fp16" not in kinds[network]))
    ]


def _variant(name: str) -> tuple[str, str]:
    """A file's network and the variant of it: `unet/diffusion_pytorch_model.fp16.safetensors`, its shards and their
    index are of (unet/diffusion_pytorch_model, fp16); a file that is no weights is a network of its own."""
    path = PurePosixPath(name)
    network, index, variant = path.name.partition(".safetensors.index.")
    if index:
        variant = variant.removesuffix("json").removesuffix(".")
    elif path.suffix == ".safetensors":
        network, _, variant = re.sub(r"-\d+-of-\d+$", "", path.stem).partition(".")
    else:
        return name, ""
    return str(path.parent / network), variant


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, kept for this process by path, size and time of change."""
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _HASHED:
        with path.open("rb") as file:
            _HASHED[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHED[key]


def content_digest(path: Path) -> str:
    """The digest of a file, or of a folder's weights and configuration files that are opened, wherever it lies."""
    if path.is_file():
        return sha256_of(path)
    found = files_of(path)
    if not any(p.suffix == ".safetensors" for p in found):
        raise HarnessError(
            f"weights folder {path} holds no .safetensors file (pickled weights are not opened); "
            f"expected the layout of the diffusers or transformers library, or a network that `harness fetch` converted"
        )
    for p in found:
        if p.suffix == ".safetensors":
            _must_be_whole(p)
    return digest({p.relative_to(path).as_posix(): sha256_of(p) for p in found})


def files_of(folder: Path) -> list[Path]:
    """The files of a model's folder that are opened: `needed`."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [folder / name for name in needed(names, model_index(folder))]


def _must_be_whole(path: Path) -> None:
    """Reads the header alone: a cut download is found before a model is built from it."""
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise HarnessError(f"{path} is damaged or not whole ({error}); put a good copy in its place") from error


def is_trained(path: Path) -> bool:
    """False where a folder, or a file's neighbour `<file>.json`, says that the weights are random
    (`"trained": false`)."""
    said = [path / "model_index.json", path / "config.json", path / "trained.json"]
    if path.is_file():
        said = [path.with_name(path.name + ".json")]
    return not any(file.is_file() and json.loads(file.read_text()).get("trained") is False for file in said)
