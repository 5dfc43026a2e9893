"""`harness fetch`: what a name stands for, and its files into `weights.home()`, each by `harness.download`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_url

from harness import artifacts, fetch_edm2, fetch_prompts, fetch_sv3d, manifest, registry, weights
from harness.artifacts import Artifact, File, catalogue
from harness.benchmark import HUB
from harness.download import WHERE, Downloader, NotThere, Unreachable, alone, must_fit, sums
from harness.errors import HarnessError, Lacking
from harness.files import writing
from harness.weights import UNFINISHED, home


class Converted(Protocol):
    """A module of models that are converted once after they were fetched; `harness.fetch_edm2` says what each does."""

    def is_network(self, name: str) -> bool: ...

    def names_of(self, name: str) -> list[str]: ...

    def known(self) -> list[str]: ...

    def here(self, name: str) -> Path | None: ...

    def refuse(self, name: str) -> None: ...

    def network(self, name: str, downloader: Downloader) -> tuple[Path, str]: ...


CONVERTED: tuple[Converted, ...] = (fetch_edm2, fetch_sv3d)


def fetch(names: list[str], verify: bool = False) -> Iterator[tuple[str, HarnessError | None]]:
    """Fetches what is not here and verifies what is: for each artifact, model or prompt set a line that says so, or
    its failure. A name that stands for weights and for a prompt set brings both.

    Sizes and the hashes that the catalogue knows are compared; with `verify` also those of what was fetched earlier.

    Raises:
        HarnessError: a name is not known; nothing was fetched.
    """
    sets = [name for name in dict.fromkeys(names) if name in manifest.known() or name.startswith(HUB)]
    wanted = {name: names_of(name) for name in names}
    downloader, for_sets = Downloader(), Downloader(manifest.WHERE)
    for name in sets:
        try:
            yield fetch_prompts.fetch(name, for_sets, verify), None
        except HarnessError as error:
            yield name, error
    for name, found in wanted.items():
        if not found and name not in sets:
            yield f"{name}: nothing to fetch, all that it needs comes with this package", None
    for name in dict.fromkeys(each for found in wanted.values() for each in found):
        try:
            here = _here(name)
            if here is not None:
                yield f"{name}: is here already, in {here}{_verified(name, here, verify)}", None
                continue
            note = ""
            converter = _converter(name)
            if converter is not None:
                place, note = converter.network(name, downloader)
            elif name in catalogue():
                place = artifact(name, downloader)
            else:
                hub_id, _, revision = name.partition("@")
                place = model(hub_id, revision or None, downloader)
            yield f"{name}: fetched into {place}{note}", None
        except HarnessError as error:
            yield name, error


def converted(name: str, fetch: bool) -> Path | None:
    """The folder of a converted model for `weights:` in a model block, fetched where it is not here; None for another
    name.

    Raises:
        Lacking: it is not here, and `fetch` is False.
        HarnessError: it cannot be had, or the name is none for a model block.
    """
    for module in CONVERTED:
        module.refuse(name)
        found = module.here(name) if re.fullmatch(fetch_edm2.NAME, name) else None
        if found is None and module.is_network(name):
            if not fetch:
                raise Lacking(f"weights {name!r} are not on this machine; `harness fetch {name}` gets them")
            found = module.network(name, Downloader())[0]
        if found is not None:
            return found.resolve()
    return None


def _converter(name: str) -> Converted | None:
    """The module of `CONVERTED` that a name belongs to, or None."""
    return next((module for module in CONVERTED if module.is_network(name)), None)


def _here(name: str) -> Path | None:
    """The folder of what is on this machine already; None where it is not."""
    converter = _converter(name)
    if converter is not None:
        return converter.here(name)
    if name in catalogue():
        return None if artifacts.missing([name]) else artifacts.find(name)
    hub_id, _, revision = name.partition("@")
    return weights.hub_model(hub_id, revision or None)


def names_of(name: str) -> list[str]:
    """The artifacts, converted networks and Hub ids of models that a name of `harness fetch` stands for: [] for a
    metric that needs none, or a prompt set.

    Raises:
        HarnessError: nothing is known by this name.
    """
    if name.startswith(HUB):
        if not re.fullmatch(HUB + weights.HUB_ID + r"(@[\w.-]+)?", name):
            raise HarnessError(f"{name}: expected hub:ORGANISATION/NAME or hub:ORGANISATION/NAME@COMMIT")
        return []
    metrics = registry.names("metric")
    found = [name] if name in catalogue() else []
    if name in metrics or ":" in name:
        cls = registry.load("metric", name)
        required = {
            field.name: "" for field in dataclasses.fields(cls)
            if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }  # such as a reference, which has no part in what is fetched
        needs = registry.build("metric", name, required).artifacts().values()
        return list(dict.fromkeys([*found, *(each for each in needs if each in catalogue())]))
    if found or name in manifest.known():
        return found
    for module in CONVERTED:
        if converted := module.names_of(name):
            return converted
    if re.fullmatch(weights.HUB_ID + r"(@[\w./-]+)?", name):
        return [name]
    known = sorted({
        *catalogue(), *(each for module in CONVERTED for each in module.known()), *metrics, *manifest.known()
    })
    raise HarnessError(
        f"nothing called {name!r} can be fetched: {registry.nearest(name, known)} "
        f"(a diffusion model by its Hub id: 'organisation/name' or 'organisation/name@revision')"
    )


def artifact(name: str, downloader: Downloader) -> Path:
    """The folder of an artifact of the catalogue, its missing files fetched.

    Raises:
        HarnessError: a file cannot be had, or is not what it should be. What is finished is kept.
    """
    entry, folder = catalogue()[name], home() / name
    with alone(home(), name, downloader):
        for file in entry.files:
            try:
                if not file.held(folder):
                    _file(entry, file, folder, downloader)
            except Unreachable as error:
                raise Unreachable(f"{name}: {error}; {_by_hand(name)}") from error
    return folder


def _file(entry: Artifact, file: File, folder: Path, downloader: Downloader) -> None:
    """Gets a file of an artifact, or the first of those that stand for it, with its shards."""
    for name in (file.path, *file.others):
        own = name == file.path
        try:
            if not (folder / name).is_file():
                downloader.file(
                    (file.url if own else None) or _hub_url(entry, name), folder, name,
                    size=file.size if own else None, sha256=file.sha256 if own else None,
                )
        except NotThere:
            continue
        for shard in artifacts.shards(folder / name):
            beside = (PurePosixPath(name).parent / shard).as_posix()
            if not (folder / beside).is_file():
                downloader.file(_hub_url(entry, beside), folder, beside)
        return
    names = " nor ".join((file.path, *file.others))
    raise NotThere(f"{entry.source} has no {names} (any more); look for it there, and put it into {folder}")


def model(name: str, revision: str | None, downloader: Downloader) -> Path:
    """The folder of the diffusion model (or LoRA, or network) of a Hub id, the files that are opened fetched.

    Raises:
        HarnessError: as `artifact`; or the repository holds no safetensors.
    """
    folder = home() / weights.model_folder(name, revision)
    with alone(home(), weights.model_folder(name, revision), downloader):
        here = weights.hub_model(name, revision)  # another process may just have fetched it
        try:
            return here or _model(name, revision, folder, downloader)
        except Unreachable as error:
            at = f" --revision {revision}" if revision else ""
            raise Unreachable(
                f"weights {name!r} are neither under {home()} nor in the Hugging Face cache, and {error}; on a machine "
                f"with network: `hf download {name}{at} --local-dir FOLDER`, then put that folder here as {folder}"
            ) from error


def _model(name: str, revision: str | None, folder: Path, downloader: Downloader) -> Path:
    at = quote(revision or "main", safe="")
    listing = downloader.json(f"{constants.ENDPOINT}/api/models/{name}/revision/{at}?blobs=true")
    files = {entry["rfilename"]: entry for entry in listing["siblings"]}
    commit = listing["sha"]  # so that all files are of one state of the repository
    index = None
    if "model_index.json" in files:
        index = downloader.json(hf_hub_url(name, "model_index.json", revision=commit))
    wanted = weights.needed(files, index)
    pickled = [
        part for part in weights.parts(index or {})
        if any(file.startswith(f"{part}/") and file.endswith(".bin") for file in files)
        and not any(file.startswith(f"{part}/") and file.endswith(".safetensors") for file in wanted)
    ]
    if pickled or not any(file.endswith(".safetensors") for file in wanted):
        raise HarnessError(
            f"{constants.ENDPOINT}/{name} holds no .safetensors file{' for ' if pickled else ''}{', '.join(pickled)} "
            f"(pickled weights are not opened); look for another copy of the model"
        )
    hashes = {file: (files[file].get("lfs") or {}).get("sha256") for file in wanted}  # of large files alone
    before = sums(folder)
    lacking = [f for f in wanted if not ((folder / f).is_file() and hashes[f] and before.get(f) == hashes[f])]
    must_fit(folder, sum(files[file].get("size") or 0 for file in lacking), name)
    with writing(folder, WHERE):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
    for file in lacking:
        url = hf_hub_url(name, file, revision=commit)
        downloader.file(url, folder, file, size=files[file].get("size"), sha256=hashes[file])
    (folder / UNFINISHED).unlink()
    return folder


def listing() -> list[str]:
    """The artifacts and the prompt sets by name, a line each, those on this machine marked."""
    here = {name: _here(name) is not None for name in catalogue()}
    sets = [manifest.load(name) for name in manifest.known()]
    lines = [("weights", here[name], name, entry.title) for name, entry in catalogue().items()]
    lines += [("weights", here, name, title) for name, here, title in fetch_edm2.listing()]
    lines += [("prompts", each.here, each.name, each.title) for each in sets]
    width = max(len(name) for _, _, name, _ in lines)
    return [f"{'here' if there else '':<4}  {kind}  {name:<{width}}  {title}" for kind, there, name, title in lines]


def _verified(name: str, place: Path, deep: bool) -> str:
    """Compares the files here with what is known of them; says what was compared."""
    stated = {file.path: file for file in catalogue()[name].files} if name in catalogue() else {}
    kept = sums(place) if deep else {}
    compared = 0
    for path in sorted({*kept, *stated}):
        found, known = place / path, stated.get(path)
        if not found.is_file():  # another name stands for it
            continue
        if known and known.size not in (None, found.stat().st_size):
            raise HarnessError(
                f"{found} has {found.stat().st_size:,} bytes, expected {known.size:,}: remove it and fetch it again"
            )
        expected = (known.sha256 if known else None) or kept.get(path)
        if expected and not weights.sha256_of(found).startswith(expected):
            raise HarnessError(
                f"{found} is damaged (SHA-256 {weights.sha256_of(found)}, expected {expected}): remove it and fetch it "
                f"again"
            )
        compared += bool(expected)
    return f", {compared} of its hashes verified" if compared else ""


def _hub_url(entry: Artifact, path: str) -> str:
    """The address of a file of an artifact on the Hub, or on what HF_ENDPOINT names."""
    if entry.hub is None:
        raise HarnessError(f"{entry.source}: no address is known for {path}")
    return str(hf_hub_url(entry.hub, path, revision=entry.revision))


def _by_hand(name: str) -> str:
    """What a person does whose machine has no network."""
    entry, folder = catalogue()[name], home() / name
    lacking = [file for file in entry.files if not file.held(folder)]
    what = ", ".join(file.path for file in lacking)
    source = entry.source
    if len(lacking) == 1 and not lacking[0].others:
        source = lacking[0].url or _hub_url(entry, what)
    return f"on another machine get {what} from {source} and put {'it' if len(lacking) == 1 else 'them'} into {folder}"
