"""`harness fetch` of SV3D-U: the official single file, from the Hub or one's own, converted once.

It lies in `weights.home()/sv3d-u/` (one's own: `/<its name>/`): the folder that `harness.diffusion.sv3d_file` makes,
beside the file that came from the Hub. The functions are called as their likes in `harness.fetch_edm2`.
"""

from __future__ import annotations

from pathlib import Path

from harness import artifacts
from harness.artifacts import megabytes
from harness.download import Downloader, alone, sums, write_sums
from harness.errors import HarnessError
from harness.fetch_edm2 import made_of, must_be_called, must_be_its_own
from harness.weights import files_of, home, model_index, parts, sha256_of

SV3D_U = "sv3d-u"  # in the catalogue of artifacts
SUFFIX = ".safetensors"


def is_network(name: str) -> bool:
    """Whether a name is SV3D-U's, or the path of a single file of one's own."""
    return name == SV3D_U or Path(name).suffix == SUFFIX


def names_of(name: str) -> list[str]:
    """What is fetched for a name: itself, or nothing."""
    return [name] if is_network(name) else []


def known() -> list[str]:
    """Names beyond those of the catalogue: none."""
    return []


def refuse(name: str) -> None:
    """Raises a HarnessError for what cannot stand as `weights:` in a model block: a single file."""
    if Path(name).suffix == SUFFIX:
        raise HarnessError(
            f"weights {name!r}: a single file is not opened as it is. `harness fetch {name}` converts one of SV3D-U, "
            f"and 'weights: {Path(name).stem}' then finds it; other models: a folder in the diffusers layout"
        )


def here(name: str) -> Path | None:
    """The converted folder; None where it is not here as a whole, or was made of another file than the given."""
    given = _given(name)
    folder = home() / (given.stem if given else name)
    source = made_of(folder / "model_index.json")
    if source is None or not all((folder / part).is_dir() for part in parts(model_index(folder) or {})):
        return None
    return None if given and given.is_file() and sha256_of(given) != source else folder


def network(name: str, downloader: Downloader) -> tuple[Path, str]:
    """The folder, fetched and converted, and what a person should know of it.

    Raises:
        HarnessError: the file cannot be had (the Hub asks for a token), or is refused (`sv3d_file.convert`), or another
            model has its name.
    """
    from harness.diffusion import sv3d_file  # the libraries take seconds

    given = _given(name)
    if given:
        must_be_called(given)
    file = given or _published(downloader)
    folder = home() / (given.stem if given else SV3D_U)
    with alone(home(), folder.name, downloader):
        found = here(name)
        if found is not None:  # another process has just converted it
            return found, ""
        must_be_its_own(folder, file)
        downloader.progress.say(f"{name}: converting {megabytes(file.stat().st_size)}")
        sv3d_file.convert(file, folder)
        made = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files_of(folder)}
        write_sums(folder, sums(folder) | made)
    freed = megabytes(file.stat().st_size)
    return folder, f" and converted; {file.resolve()} is not needed any more (removing it frees {freed})"


def _published(downloader: Downloader) -> Path:
    """The official file, fetched where it is neither in its folder nor in the Hub's own cache."""
    from harness import fetch  # here, because it needs this module

    if artifacts.missing([SV3D_U]):
        fetch.artifact(SV3D_U, downloader)
    file, stated = artifacts.file_of(SV3D_U), artifacts.catalogue()[SV3D_U].files[0]
    if sha256_of(file) != stated.sha256:  # one that came from elsewhere
        raise HarnessError(
            f"{file} is not the published {stated.path} (SHA-256 {sha256_of(file)}, expected {stated.sha256}): remove "
            f"it and fetch it again, or convert it under a name of its own with `harness fetch FILE{SUFFIX}`"
        )
    return file


def _given(name: str) -> Path | None:
    """The file of one's own that a name is the path of."""
    return Path(name).expanduser() if Path(name).suffix == SUFFIX else None
