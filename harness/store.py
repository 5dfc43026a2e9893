"""The run folder: schemas, atomic part files, reading back. The only file that knows paths.

    results/runs/<name>/
      benchmark.yaml  environment.json  log.jsonl  tables/  report/
      images/<model>/<method>/<prompts>/<seed>-<first>-<last>.parquet
      scores/<metric>/<model>/<method>/<prompts>/...      features/<shelf>/<model>/...

A part file appears under its final name complete or not at all, and writing it twice is harmless. pandas,
DuckDB and `datasets` read the parts without this project.
"""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from harness.errors import HarnessError, PartError
from harness.files import StoreError, listing, write_atomic, writing
from harness.images import Encoded, decode, encode
from harness.parquet import (
    DETERMINISTIC,
    IMAGES,
    MEASURED,
    SCORES,
    feature_table,
    once,
    plain,
    read_part,
    serialised,
    to_json,
)
from harness.units import Part

__all__ = ["DETERMINISTIC", "MEASURED", "NO_IMAGE", "Store", "StoreError", "check_label"]

Stage = Literal["images", "scores", "features"]
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
# What tells rows of a cell apart.
KEYS: dict[Stage, list[str]] = {
    "images": ["sample_id", "frame"], "scores": ["sample_id", "metric_digest"], "features": ["sample_id"],
}

NO_IMAGE = "no image"  # the error of a score row whose sample could not be made
COMPACT_BYTES = 128 * 2**20


def check_label(kind: str, label: str) -> str:
    """Returns `label` when it can be a folder's name on every system that reads the results.

    Raises:
        HarnessError: it cannot. (Readers of Parquet folders skip names that begin with "." or "_", and take
            "a=b" for a partition; "/" would leave the folder.)
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", label) or len(label) > 100:
        raise HarnessError(
            f"{kind} {label!r} cannot name a folder: use letters, digits, '.', '_', '+' and '-', starting with "
            f"a letter or a digit, at most 100 of them"
        )
    return label


class Store:
    """One run folder. Cheap to make, in the driver and in every worker; nothing is read or written by that."""

    def __init__(self, root: Path | str, codec: str = "webp") -> None:
        self.root = Path(root)
        self.codec = codec

    # ---- paths ----

    def path(self, stage: Stage, part: Part, of: str | None = None) -> Path:
        """The part's file. `of` is the metric's label (scores) or the shelf (features)."""
        folder = self._folder(stage, of)
        for kind, label in (("model", part.model), ("method", part.method), ("prompt set", part.prompts)):
            folder = folder / check_label(kind, label)
        if not re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9._+-]*", part.name):
            raise HarnessError(f"part {part.name!r} cannot name a file")
        return folder / f"{part.name}.parquet"

    def _folder(self, stage: Stage, of: str | None) -> Path:
        if (of is None) != (stage == "images"):
            raise ValueError(f"stage {stage!r} with of={of!r}")
        return self.root / stage if of is None else self.root / stage / check_label("metric", of)

    def parts(
        self, stage: Stage, of: str | None = None, *, model: str | None = None, method: str | None = None,
        prompts: str | None = None,
    ) -> Iterator[Part]:
        """All parts of a stage, or those of one model, method or prompt set, in a fixed order."""
        for model_folder in _folders(self._folder(stage, of), model):
            for method_folder in _folders(model_folder, method):
                for prompts_folder in _folders(method_folder, prompts):
                    names = [entry[:-8] for entry in listing(prompts_folder) if entry.endswith(".parquet")]
                    for name in sorted(names, key=_natural):
                        yield Part(model_folder.name, method_folder.name, prompts_folder.name, name)

    def kept(self, stage: Literal["scores", "features"]) -> list[str]:
        """The metrics (or shelves of features) that have parts."""
        return [folder.name for folder in _folders(self.root / stage, None)]

    # ---- writing ----

    def write_images(
        self, part: Part, rows: Sequence[dict[str, Any]], images: Sequence[np.ndarray | Encoded | None]
    ) -> Path:
        """Writes a shard: a row a sample, and its image (uint8 `[F, H, W, 3]`, encoded, or None).

        `nfe_by_network`, `record` and `versions` are plain structures here and JSON in the file; a clip
        becomes a row a frame; columns that a row does not mention are null.
        """
        table_rows = []
        for row, pixels in zip(rows, images, strict=True):
            image = encode(pixels, self.codec) if isinstance(pixels, np.ndarray) else pixels
            shared = row | {
                name: to_json(row[name]) for name in ("nfe_by_network", "record", "versions") if name in row
            }
            if image is None:
                table_rows.append(shared | {"frame": 0})
                continue
            for frame, data in enumerate(image.frames):
                name = f"{row['sample_id']}-{frame}.{image.codec}"
                table_rows.append(
                    shared
                    | {"frame": frame, "width": image.width, "height": image.height}
                    | {"image": {"bytes": data, "path": name}}
                )
        return self._write(self.path("images", part), pa.Table.from_pylist(table_rows, IMAGES))

    def write_scores(self, metric: str, part: Part, rows: Sequence[dict[str, Any]]) -> Path:
        """Writes score rows: `sample_id, metric_digest, value, detail, error`; NaN and a missing value are null."""
        table_rows = []
        for row in rows:
            value = row.get("value")
            finite = value is not None and np.isfinite(value)
            table_rows.append(
                row
                | {"metric": metric, "value": float(value) if finite else None}  # type: ignore[arg-type]
                | {"detail": to_json(row.get("detail") or {})}
            )
        return self._write(self.path("scores", part, metric), pa.Table.from_pylist(table_rows, SCORES))

    def write_features(self, shelf: str, part: Part, sample_ids: Sequence[str], features: np.ndarray) -> Path:
        """Writes one feature vector a sample, float32 `[N, D]`."""
        table = feature_table(sample_ids, features)
        return self._write(self.path("features", part, shelf), table)

    def _write(self, path: Path, table: pa.Table) -> Path:
        # Rows of other samples under the same name (a retry of some failed rows) stay.
        if path.exists():
            try:
                old = read_part(path, None)
                others = ~np.isin(old["sample_id"].to_numpy(), table["sample_id"].to_numpy())
                if others.any():
                    table = pa.concat_tables([old.filter(pa.array(others)), table])
            except (PartError, pa.ArrowInvalid):
                self.quarantine(path)
        write_atomic(path, serialised(table))
        return path

    # ---- reading ----

    def read(
        self, stage: Stage, of: str | None = None, *, columns: Sequence[str] | None = None,
        model: str | None = None, method: str | None = None, prompts: str | None = None, lenient: bool = False,
    ) -> pd.DataFrame:
        """Rows of a stage, with their labels `model, method, prompts`; images come without the image column
        unless it is named. A sample found twice in a cell counts once, the row without an error first.

        Raises:
            PartError: a file cannot be read; `lenient` leaves it out instead.
        """
        if columns is None:
            columns = [name for name in IMAGES.names if name != "image"] if stage == "images" else None
        key = KEYS[stage]
        wanted = None if columns is None else sorted({*columns, *key, *(["error"] if stage != "features" else [])})
        frames = []
        for part in self.parts(stage, of, model=model, method=method, prompts=prompts):
            try:
                frame = read_part(self.path(stage, part, of), wanted).to_pandas()
            except PartError:
                if lenient:
                    continue
                raise
            frames.append(frame.assign(model=part.model, method=part.method, prompts=part.prompts))
        labels = ["model", "method", "prompts"]
        if not frames:
            names = columns or (SCORES.names if stage == "scores" else ["sample_id", "feature"])
            return pd.DataFrame(columns=[*dict.fromkeys([*labels, *names])])
        rows: pd.DataFrame = pd.concat(frames, ignore_index=True)
        if rows.duplicated([*labels, *key]).any():
            rows = once(rows, [*labels, *key]).reset_index(drop=True)
        kept = rows.columns if columns is None else columns
        return rows.loc[:, [*dict.fromkeys([*labels, *kept])]]

    def read_features(
        self, shelf: str, *, model: str, method: str, prompts: str
    ) -> tuple[list[str], np.ndarray]:
        """The sample ids and features, float32 `[N, D]`, of one cell."""
        rows = self.read("features", shelf, model=model, method=method, prompts=prompts)
        features = np.stack(rows["feature"].to_list()) if len(rows) else np.zeros((0, 0), np.float32)
        return rows["sample_id"].to_list(), features

    def read_part(self, part: Part, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of one part of images."""
        frame: pd.DataFrame = read_part(self.path("images", part), columns).to_pandas()
        return frame

    def read_images(
        self, part: Part, only: Collection[str] | None = None, *, each: Each = map
    ) -> tuple[list[dict[str, Any]], list[np.ndarray | None]]:
        """A part's samples in order: the row of each, and its image, uint8 `[F, H, W, 3]`, or None.

        `damaged` in a row says why an image that is there cannot be decoded (None otherwise).

        Args:
            only: ids of the samples wanted; all without it.
            each: `map`, or that of a pool of threads (decoding frees the interpreter).

        Raises:
            PartError: the file cannot be read.
        """
        path = self.path("images", part)
        samples: dict[str, dict[str, Any]] = {}
        frames: dict[str, list[bytes]] = {}
        table = read_part(path, None)
        if only is not None:
            table = table.filter(pa.array(np.isin(table["sample_id"].to_numpy(), list(only))))
        for row in table.to_pylist():
            image = row.pop("image")
            if row["sample_id"] not in samples or samples[row["sample_id"]]["error"] is not None:
                samples[row["sample_id"]] = row
            if image is not None:
                frames.setdefault(row["sample_id"], []).append(image["bytes"])
        decoded = list(each(_decoded, [frames.get(key, []) for key in samples]))
        for row, image in zip(samples.values(), decoded, strict=True):
            row["damaged"] = None
            if isinstance(image, ValueError):
                row["damaged"] = f"{path}: the image of sample {row['sample_id']} is damaged: {image}"
        return list(samples.values()), [image if isinstance(image, np.ndarray) else None for image in decoded]

    def sample_ids(
        self, stage: Stage, of: str | None = None, *, model: str | None = None, method: str | None = None,
        prompts: str | None = None, digest: str | None = None, with_failed: bool = True,
        corrupt: list[Path] | None = None,
    ) -> set[str]:
        """The samples that a stage holds, read from the part files themselves. Score rows that say `NO_IMAGE`
        do not count: the image may have been made since.

        Args:
            digest: only scores of this metric digest.
            with_failed: False leaves out rows that ended in an error, so that they are tried again.
            corrupt: gets the files that cannot be read; without it the first one raises PartError.
        """
        found: set[str] = set()
        columns = ["sample_id"] + ["metric_digest"] * (digest is not None)
        if stage == "scores" or (stage == "images" and not with_failed):
            columns.append("error")
        for part in self.parts(stage, of, model=model, method=method, prompts=prompts):
            path = self.path(stage, part, of)
            try:
                table = read_part(path, columns)
            except PartError:
                if corrupt is None:
                    raise
                corrupt.append(path)
                continue
            if len(columns) == 1:
                found.update(table["sample_id"].to_pylist())
                continue
            found.update(
                row["sample_id"] for row in table.to_pylist()
                if (digest is None or row["metric_digest"] == digest)
                and (row["error"] is None or (with_failed and row["error"] != NO_IMAGE))
            )
        return found

    def corrupt_parts(self) -> list[Path]:
        """The part files of all stages that cannot be read."""
        corrupt: list[Path] = []
        self.sample_ids("images", corrupt=corrupt)
        for stage in ("scores", "features"):
            for of in self.kept(stage):  # type: ignore[arg-type]
                self.sample_ids(stage, of, corrupt=corrupt)  # type: ignore[arg-type]
        return corrupt

    def quarantine(self, path: Path) -> Path:
        """Moves a damaged part aside, to `<name>.corrupt`, so that its samples are made again."""
        aside = path.with_name(path.name + ".corrupt")
        with writing(path):
            os.replace(path, aside)
        return aside

    # ---- housekeeping ----

    def compact(self, target_bytes: int = COMPACT_BYTES) -> tuple[int, int]:
        """Merges the small parts of every cell into files of about `target_bytes`.

        The merged file is whole before the small ones go; a break in between leaves samples twice, which
        readers count once and the next call removes. Returns the number of files before and after.
        """
        before = after = 0
        shelves: list[tuple[Stage, str | None]] = [("images", None)]
        shelves += [(stage, of) for stage in ("scores", "features") for of in self.kept(stage)]  # type: ignore
        for stage, of in shelves:
            cells: dict[tuple[str, str, str], list[Path]] = {}
            for part in self.parts(stage, of):
                cells.setdefault((part.model, part.method, part.prompts), []).append(self.path(stage, part, of))
            for paths in cells.values():
                before += len(paths)
                for group in _groups(paths, target_bytes):
                    after += 1
                    if len(group) > 1:
                        self._merge(stage, group)
        return before, after

    def _merge(self, stage: Stage, paths: list[Path]) -> None:
        rows = pa.concat_tables([read_part(path, None) for path in paths])
        key = KEYS[stage]
        names = key + (["error"] if stage != "features" else [])
        index = once(rows.select(names).to_pandas(), key).index.to_numpy()
        rows = rows.take(pa.array(index))
        name = sha256("".join(rows["sample_id"].to_pylist()).encode()).hexdigest()[:12]
        merged = paths[0].with_name(f"merged-{name}.parquet")
        write_atomic(merged, serialised(rows))
        for path in paths:
            if path != merged:
                path.unlink(missing_ok=True)

    def drop(
        self, *, model: str | None = None, method: str | None = None, prompts: str | None = None,
        metric: str | None = None,
    ) -> int:
        """Deletes the parts under a label that is to be replaced; returns how many files went."""
        shelves: list[tuple[Stage, str | None]] = [("images", None)] if metric is None else []
        for stage in ("scores", "features"):
            shelves += [(stage, of) for of in self.kept(stage) if metric in (None, of)]  # type: ignore
        paths = [
            self.path(stage, part, of)
            for stage, of in shelves
            for part in self.parts(stage, of, model=model, method=method, prompts=prompts)
        ]
        for path in paths:
            with writing(path):
                path.unlink(missing_ok=True)
        return len(paths)

    def sweep(self, older_than: float = 3600) -> int:
        """Removes temporary files that killed writers left; a young one may belong to a living writer."""
        swept = 0
        for path in self.root.rglob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > older_than:
                    path.unlink()
                    swept += 1
        return swept

    # ---- the files beside the parts ----

    def write_benchmark(self, resolved: dict[str, Any]) -> None:
        """The resolved benchmark, as YAML in the order given."""
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        write_atomic(self.root / "benchmark.yaml", text.encode())

    def read_benchmark(self) -> dict[str, Any] | None:
        """The resolved benchmark; None where the folder has none yet."""
        path = self.root / "benchmark.yaml"
        try:
            loaded = yaml.safe_load(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise PartError(f"{path} cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise PartError(f"{path} is not a benchmark: expected keys and values, found {type(loaded).__name__}")
        return loaded

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Versions, device and commit that this run was made with."""
        write_atomic(self.root / "environment.json", (json.dumps(plain(environment), indent=2) + "\n").encode())

    def read_environment(self) -> dict[str, Any]:
        """What `write_environment` kept, or an empty dict."""
        try:
            loaded: dict[str, Any] = json.loads((self.root / "environment.json").read_text("utf-8"))
            return loaded
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise PartError(f"{self.root / 'environment.json'} cannot be read: {error}") from error

    def log(self, event: str, **facts: Any) -> None:
        """Appends one line to log.jsonl."""
        line = to_json({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        path = self.root / "log.jsonl"
        with writing(path), open(path, "ab", buffering=0) as file:
            file.write(line.encode() + b"\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The log's events; a line torn by a crash is left out."""
        events = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.root / "log.jsonl").read_text("utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    events.append(json.loads(line))
        return events

    def write_table(self, name: str, content: str | bytes) -> Path:
        """Writes `tables/<name>` (the name with its suffix) and returns its path."""
        path = self.root / "tables" / name
        write_atomic(path, content.encode() if isinstance(content, str) else content)
        return path

    @property
    def report(self) -> Path:
        """Where the report's files go."""
        return self.root / "report"

    def remove(self) -> None:
        """Deletes the whole run folder."""
        with writing(self.root):
            shutil.rmtree(self.root)


def _decoded(frames: list[bytes]) -> np.ndarray | ValueError | None:
    """A sample's frames, or what is wrong with them; None where there are none."""
    try:
        return np.stack([decode(data) for data in frames]) if frames else None
    except ValueError as error:
        return error


def _folders(folder: Path, label: str | None) -> list[Path]:
    if label is not None:
        return [folder / label]
    return [folder / name for name in listing(folder) if (folder / name).is_dir()]


def _natural(name: str) -> tuple[bool, list[int], str]:
    """Sorts `0-16-31` before `0-128-143`, and merged parts last."""
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return name.startswith("merged-"), numbers, name


def _groups(paths: list[Path], target_bytes: int) -> list[list[Path]]:
    """Neighbours whose sizes add up to about the target; a file that is big enough stays alone."""
    groups: list[list[Path]] = []
    filled = target_bytes
    for path in paths:
        size = path.stat().st_size
        if filled + size > target_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(path)
        filled += size
    return groups
