"""`harness fetch` of EDM2: the networks that a published preset takes, each one's pickle fetched and converted once.

A network lies in `weights.home()/<its name>/`: the pickle, and what `harness.edm2_pickle` makes of it.
"""

from __future__ import annotations

import functools
import json
import re
from importlib.resources import files
from pathlib import Path

import pydantic
import yaml

from harness import artifacts
from harness.artifacts import megabytes
from harness.download import SUMS, Downloader, Unreachable, alone, sums, write_sums
from harness.errors import HarnessError, Lacking
from harness.registry import nearest
from harness.weights import home, sha256_of

PICKLE = ".pkl"
NAME = r"\w[\w.-]*"  # of a network and its folder


class Published(pydantic.BaseModel):
    """What `edm2.yaml` says."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    licence: str
    source: str
    networks: str  # the address below which the pickles lie
    autoencoders: dict[str, str]  # by data set
    short: dict[str, str]
    presets: dict[str, tuple[str, ...]]


@functools.cache
def published() -> Published:
    """The published networks and presets."""
    return Published.model_validate(yaml.safe_load((files("harness") / "edm2.yaml").read_text(encoding="utf-8")))


def known() -> list[str]:
    """The names of presets, the short ones first."""
    return [*published().short, *published().presets]


def listing() -> list[tuple[str, bool, str]]:
    """The short names of presets, whether all their networks are here, and what they are."""
    return [
        (name, all(here(network) for network in preset(name)), f"EDM2: {', guided by '.join(preset(name))}")
        for name in published().short
    ]


def preset(name: str) -> tuple[str, ...]:
    """The networks that a preset takes, the guiding one second; () where there is no such preset."""
    return published().presets.get(published().short.get(name, name), ())


def is_network(name: str) -> bool:
    """Whether a name is that of a published network (any EMA length), or the path of a pickle of one's own."""
    pattern = r"edm2-img(64|512)-(xs|s|m|l|xl|xxl)(-uncond)?-\d{7}-0\.\d{3}"
    return bool(re.fullmatch(pattern, name)) or Path(name).suffix == PICKLE


def names_of(name: str) -> list[str]:
    """All that a preset or a network needs: networks, and the Hub id of the autoencoder; [] for another name."""
    networks = preset(name) or ((name,) if is_network(name) else ())
    data = {network.split("-")[1] for network in networks if Path(network).suffix != PICKLE}
    return [*networks, *(hub_id for made_of, hub_id in published().autoencoders.items() if made_of in data)]


def refuse(name: str) -> None:
    """Raises a HarnessError for what cannot stand as `weights:` in a model block: a pickle, a preset, or a name like a
    network's that is none."""
    if Path(name).suffix == PICKLE:
        raise HarnessError(f"weights {name!r}: a pickle is not opened as it is. `harness fetch {name}` converts one of "
                           f"EDM2, and 'weights: {Path(name).stem}' then finds it")
    if pair := preset(name):
        further = "".join(f" and 'networks: {{guide: {{weights: {guide}}}}}'" for guide in pair[1:])
        raise HarnessError(f"weights {name!r}: a preset of EDM2; write 'weights: {pair[0]}'{further}")
    if name.startswith("edm2-") and re.fullmatch(NAME, name) and not is_network(name) and here(name) is None:
        networks = dict.fromkeys(network for pair in published().presets.values() for network in pair)
        raise Lacking(f"weights {name!r}: no such folder, and no network that EDM2's authors publish: "
                      f"{nearest(name, list(networks))}")


def here(name: str) -> Path | None:
    """The folder of a converted network; None where it is not here, or was made of another pickle than the given."""
    given = _given(name)
    folder = home() / (given.stem if given else name)
    source = made_of(folder / "config.json")
    return None if source is None or (given and given.is_file() and sha256_of(given) != source) else folder


def network(name: str, downloader: Downloader) -> tuple[Path, str]:
    """The folder of a network, fetched and converted, and what a person should know of it.

    Its pickle is taken where it lies in that folder already, or where `name` is its path.

    Raises:
        HarnessError: it cannot be had, or is refused (`edm2_pickle.read`), or another model has its name.
    """
    from harness import edm2_pickle  # torch alone takes seconds
    from harness.diffusion.edm2_network import WEIGHTS

    given = _given(name)
    if given:
        must_be_called(given)
        name = given.stem
    folder = home() / name
    pickle = given or folder / f"{name}{PICKLE}"
    with alone(home(), name, downloader):
        found = here(str(given or name))
        if found is not None:  # another process has just fetched it
            return found, ""
        must_be_its_own(folder, pickle)
        if not pickle.is_file():
            _download(name, folder, downloader)
        downloader.progress.say(f"{name}: converting {megabytes(pickle.stat().st_size)}")
        edm2_pickle.convert(pickle, folder)
        made = {path: sha256_of(folder / path) for path in (WEIGHTS, "config.json")}
        write_sums(folder, sums(folder) | made)
    note = f" and converted; {pickle} is not needed any more (removing it frees {megabytes(pickle.stat().st_size)})"
    return folder, note if given else f"{note}. No hash of it is published: its own is kept in {SUMS}"


def _download(name: str, folder: Path, downloader: Downloader) -> None:
    """Fetches a pickle. One that was fetched earlier and removed must be the same."""
    file = f"{name}{PICKLE}"
    url = f"{published().networks}/{file}"
    try:
        downloader.file(url, folder, file, sha256=sums(folder).get(file))
    except Unreachable as error:
        raise Unreachable(
            f"{name}: {error}; on another machine get {url} and put it into {folder}: the same command then converts it"
        ) from error


def _given(name: str) -> Path | None:
    """The pickle of one's own that a name is the path of."""
    return Path(name).expanduser() if Path(name).suffix == PICKLE else None


# ------------------------------------------------------ for every module of models that are converted (fetch.CONVERTED)


def must_be_called(file: Path) -> None:
    """Refuses a file of one's own that cannot be converted under its name.

    Raises:
        HarnessError: there is no such file, its name is none for a folder, or that of something published. A pickle
            may be called as the published network that it is.
    """
    name = file.stem
    if not re.fullmatch(NAME, name):
        raise HarnessError(f"{file}: a model is called as its file; expected letters, digits and '._-', no spaces")
    if not file.is_file():
        raise HarnessError(f"{file}: no such file")
    if name in artifacts.catalogue() or name in known() or (is_network(name) and file.suffix != PICKLE):
        raise HarnessError(f"{file}: {name!r} is the name of something published: give the file another name")


def must_be_its_own(folder: Path, file: Path) -> None:
    """Refuses a folder that holds another model than one made of this file, be it of another kind.

    Raises:
        HarnessError: it does.
    """
    for description in (folder / "model_index.json", folder / "config.json"):
        if description.exists() and not (file.is_file() and made_of(description) == sha256_of(file)):
            raise HarnessError(f"{folder} holds another model ({description.name}) than one made of {file}, which "
                               f"would take its place: give the file another name, or move that folder away")


def made_of(description: Path) -> str | None:
    """The SHA-256 of the file that a model was converted from, out of its config.json or model_index.json; None where
    it was not, or cannot be read."""
    try:
        found = json.loads(description.read_text(encoding="utf-8"))["source"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
