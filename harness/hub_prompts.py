"""Data sets on the Hugging Face Hub as files of prompts: the Parquet that the Hub makes of every public data set.

They lie under `manifest.home()/hub/<organisation>--<name>/<commit>/<config>/<split>/<number>.parquet`, with what the
Hub said of all of them in `listing.json`; the Hub's own cache is looked into as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness import manifest
from harness.errors import HarnessError, Lacking
from harness.files import must_be_inside, write_atomic
from harness.registry import nearest
from harness.weights import hub_snapshot

if TYPE_CHECKING:
    from harness.download import Downloader

BRANCH = "refs/convert/parquet"  # https://huggingface.co/docs/dataset-viewer/parquet: <config>/<split>/0000.parquet
LISTING = "listing.json"
Files = dict[str, dict[str, Any]]  # relative path -> size, sha256


@dataclass(frozen=True)
class Found:
    """The files of one split, in order, and the commit that they are of."""

    id: str
    paths: tuple[Path, ...]
    revision: str


def find(
    name: str, revision: str | None, config: str | None, split: str | None, may_fetch: bool = True
) -> Found:
    """The files of one split of a data set, fetched from the Hub where they are not here.

    Without `revision` (a commit of the branch `refs/convert/parquet`) what is here is taken, else the newest.

    Raises:
        Lacking: it is not here, and `may_fetch` is False.
        HarnessError: no such data set, config or split; it must be said which; or the Hub cannot be reached.
    """
    place = _here(name, revision) or _in_hub_cache(name, revision)
    not_here = Lacking(f"data set {name!r} is not on this machine; `harness fetch hub:{name}` gets it")
    if place is None and not may_fetch:
        raise not_here
    if place is None:
        from harness.download import Downloader  # only where something must be fetched

        place = listing(name, revision, Downloader(manifest.WHERE))
    folder, files = place
    config, split, chosen = _choose(name, files, config, split)
    if not all((folder / file).is_file() for file in chosen):
        if not may_fetch:
            raise not_here
        from harness.download import Downloader

        _download(name, folder, {file: files[file] for file in chosen}, Downloader(manifest.WHERE))
    set_id = "--".join((name.replace("/", "--"), config, split))
    return Found(set_id, tuple(folder / file for file in chosen), folder.name)


def fetch(name: str, revision: str | None, downloader: Downloader) -> tuple[Path, bool]:
    """The folder of all configs and splits of a data set, and whether it was here already. Raises as `find`."""
    place = _here(name, revision)
    folder, files = place or listing(name, revision, downloader)
    here = all((folder / file).is_file() for file in files)
    if not here:
        _download(name, folder, files, downloader)
    return folder, here


def listing(name: str, revision: str | None, downloader: Downloader) -> tuple[Path, Files]:
    """Asks the Hub which Parquet files a data set has; the folder for them, and the files."""
    from huggingface_hub import constants

    from harness.download import NotThere, Unreachable

    url = f"{constants.ENDPOINT}/api/datasets/{name}/revision/{quote(revision or BRANCH, safe='')}?blobs=true"
    try:
        said = downloader.json(url)
    except NotThere as error:
        raise NotThere(
            f"{constants.ENDPOINT}/datasets/{name} has no Parquet{f' of commit {revision}' if revision else ''} (the "
            f"Hub makes it of public data sets alone): download a file of it, and write {{set: FILE}}"
        ) from error
    except Unreachable as error:
        raise Unreachable(f"data set {name!r} is not here, and {error}; {_by_hand(name, revision)}") from error
    files = {
        entry["rfilename"]: {"size": entry.get("size"), "sha256": (entry.get("lfs") or {}).get("sha256")}
        for entry in said["siblings"] if entry["rfilename"].endswith(".parquet")
    }
    try:
        for path in (said["sha"], *files):
            must_be_inside(path)
    except ValueError as error:
        raise HarnessError(f"{url}: {error}") from error
    folder = _home(name) / said["sha"]
    write_atomic(folder / LISTING, json.dumps(files, indent=1).encode(), manifest.WHERE)
    return folder, files


def _download(name: str, folder: Path, files: Files, downloader: Downloader) -> None:
    from huggingface_hub import hf_hub_url

    from harness.download import Unreachable, alone, must_fit

    with alone(manifest.home(), f"hub--{name}", downloader):
        lacking = {file: facts for file, facts in files.items() if not (folder / file).is_file()}
        must_fit(folder, sum(facts["size"] or 0 for facts in lacking.values()), name, downloader.where)
        for file, facts in lacking.items():
            url = hf_hub_url(name, file, repo_type="dataset", revision=folder.name)
            try:
                downloader.file(url, folder, file, size=facts["size"], sha256=facts["sha256"])
            except Unreachable as error:
                raise Unreachable(f"{file} of {name!r} is not here, and {error}; "
                                  f"{_by_hand(name, folder.name)}") from error


def _home(name: str) -> Path:
    return manifest.home() / "hub" / name.replace("/", "--")


def _here(name: str, revision: str | None) -> tuple[Path, Files] | None:
    """What was fetched of a data set earlier: its folder, and the files that it has or lacks."""
    found = sorted(path.parent for path in _home(name).glob(f"*/{LISTING}"))
    if revision is not None:
        found = [folder for folder in found if folder.name == revision]
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise HarnessError(f"data set {name!r} is here in {len(found)} states: say which with 'revision:', of {names}")
    return (found[0], json.loads((found[0] / LISTING).read_text(encoding="utf-8"))) if found else None


def _in_hub_cache(name: str, revision: str | None) -> tuple[Path, Files] | None:
    """The snapshot of the Hub's own cache, where it has one of the Parquet branch."""
    folder = hub_snapshot(f"data set {name!r}", name, revision or BRANCH, "dataset")
    if folder is None:
        return None
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    return (folder, {file: {} for file in files}) if files else None


def _choose(name: str, files: Files, config: str | None, split: str | None) -> tuple[str, str, list[str]]:
    """The config, the split and its files in order; what there is one of, or what is called default, need not be
    named."""
    tree: dict[str, dict[str, list[str]]] = {}
    for file in sorted(files):
        parts = PurePosixPath(file).parts
        if len(parts) == 3:
            tree.setdefault(parts[0], {}).setdefault(parts[1], []).append(file)
    config = _one(name, "config", config or ("default" if "default" in tree else None), list(tree))
    split = _one(name, "split", split, list(tree[config]))
    return config, split, tree[config][split]


def _one(name: str, key: str, given: str | None, there: list[str]) -> str:
    if given is None and len(there) == 1:
        return there[0]
    if given is None:
        raise HarnessError(f"data set {name!r} has {len(there)} {key}s: say which with '{key}:', of {', '.join(there)}")
    if given not in there:
        raise HarnessError(f"data set {name!r} has no {key} {given!r}: {nearest(given, there)}")
    return given


def _by_hand(name: str, revision: str | None) -> str:
    return (
        f"on a machine with network: `hf download {name} --repo-type dataset --revision {revision or BRANCH}`, then "
        f"copy its folder of the Hugging Face cache here; or there `harness fetch hub:{name}`, then copy {_home(name)}"
    )
