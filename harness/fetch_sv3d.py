"""`harness fetch` of SV3D-U: the official single file, from the Hub or one's own, converted once.

It lies in `weights.home()/sv3d-u/` (one's own: `/<its name>/`): the folder that `harness.diffusion.sv3d_file` makes,
beside the file that came from the Hub. The functions are called as their likes in `harness.fetch_edm2`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.artifacts import megabytes
from harness.download import Downloader, alone
from harness.errors import HarnessError, Lacking
from harness.fetch_edm2 import NAME
from harness.weights import home, sha256_of

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


def resolve(name: str, fetch: bool) -> Path | None:
    """The folder for `weights:` in a model block, fetched where it is not here; None for another name.

    Raises:
        Lacking: it is not here, and `fetch` is False.
        HarnessError: as `network`; or the name is that of a single file.
    """
    if Path(name).suffix == SUFFIX:
        raise HarnessError(
            f"weights {name!r}: a single file is not opened as it is. `harness fetch {name}` converts one of SV3D-U, "
            f"and 'weights: {Path(name).stem}' then finds it"
        )
    if not re.fullmatch(NAME, name) or (here(name) is None and name != SV3D_U):
        return None
    if here(name) is None and not fetch:
        raise Lacking(f"weights {name!r} are not on this machine; `harness fetch {name}` gets them")
    return (here(name) or network(name, Downloader())[0]).resolve()


def here(name: str) -> Path | None:
    """The converted folder; None where it is not here, or was made of another file than the given."""
    given = _given(name)
    folder = home() / (given.stem if given else name)
    try:
        source = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if given and given.is_file() and sha256_of(given) != source["sha256"] else folder


def network(name: str, downloader: Downloader) -> tuple[Path, str]:
    """The folder, fetched and converted, and what a person should know of it.

    Raises:
        HarnessError: the file cannot be had (the Hub asks for a token), or is refused (`sv3d_file.convert`).
    """
    from harness import fetch  # here, because it needs this module
    from harness.diffusion import sv3d_file  # the libraries take seconds

    given = _given(name)
    if given and not re.fullmatch(NAME, given.stem):
        raise HarnessError(f"{given}: a model is called as its file; expected letters, digits and '._-', no spaces")
    file = given or fetch.artifact(SV3D_U, downloader) / sv3d_file.FILE
    folder = home() / (given.stem if given else SV3D_U)
    with alone(home(), folder.name, downloader):
        found = here(name)
        if found is not None:  # another process has just converted it
            return found, ""
        if file.is_file():
            downloader.progress.say(f"{name}: converting {megabytes(file.stat().st_size)}")
        sv3d_file.convert(file, folder)
    return folder, f" and converted; {file} is not needed any more (removing it frees {megabytes(file.stat().st_size)})"


def _given(name: str) -> Path | None:
    """The file of one's own that a name is the path of."""
    return Path(name).expanduser() if Path(name).suffix == SUFFIX else None
