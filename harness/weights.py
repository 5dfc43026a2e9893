"""Finds weights, and says exactly which ones they are.

A name is `builtin:NAME` (shipped with this package), a local folder, or a Hub id. Nothing is ever unpickled
here: models are opened from safetensors.
"""

import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path

from safetensors import SafetensorError, safe_open

from harness.errors import HarnessError
from harness.identity import digest
from harness.registry import nearest

_HASHED: dict[tuple[str, int, int], str] = {}  # (path, bytes, mtime in ns) -> SHA-256


def builtin_folder() -> Path:
    """The folder of the weights that ship with this package."""
    return Path(str(files("harness"))) / "shapes" / "weights"


def resolve(weights: str, revision: str | None = None) -> Path:
    """The local folder that holds `weights`, fetched from the Hub where it is not here yet.

    `HARNESS_WEIGHTS` names a folder that is searched for `<organisation>/<name>` or `<name>` before the Hub.

    Raises:
        HarnessError: no such folder or built-in name, or the Hub cannot be reached.
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
    if weights.startswith(("/", ".", "~")) or weights.count("/") != 1:
        raise HarnessError(
            f"weights {weights!r}: no such folder; expected a folder in the diffusers layout, "
            f"a Hub id like 'organisation/name', or 'builtin:NAME'"
        )
    for name in (weights, weights.split("/")[1]):
        placed = Path(os.environ.get("HARNESS_WEIGHTS", "")) / name
        if os.environ.get("HARNESS_WEIGHTS") and placed.is_dir():
            return placed.resolve()
    return _from_hub(weights, revision)


def _from_hub(weights: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the Hub's client raises many kinds; each means the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HarnessError(
            f"weights {weights!r} are neither in the Hugging Face cache nor under HARNESS_WEIGHTS, and fetching "
            f"them failed: {reason}\nOn a machine with network: `hf download {weights}`, "
            f"then copy the folder here and name it in the benchmark"
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, kept for this process by path, size and time of change."""
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _HASHED:
        with path.open("rb") as file:
            _HASHED[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHED[key]


def content_digest(path: Path) -> str:
    """The digest of a file, or of all weights and configuration files below a folder, wherever it lies."""
    if path.is_file():
        return sha256_of(path)
    wanted = (".json", ".txt", ".model", ".safetensors")
    found = sorted(p for p in path.rglob("*") if p.suffix in wanted and p.is_file())
    if not any(p.suffix == ".safetensors" for p in found):
        raise HarnessError(
            f"weights folder {path} holds no .safetensors file (pickled weights are not opened); "
            f"expected the layout of the diffusers or transformers library"
        )
    for p in found:
        if p.suffix == ".safetensors":
            _must_be_whole(p)
    return digest({p.relative_to(path).as_posix(): sha256_of(p) for p in found})


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
