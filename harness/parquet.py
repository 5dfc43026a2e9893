"""The tables of a run folder: their columns, and how they become Parquet bytes and rows again."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import PartError

IMAGES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("frame", pa.int32()),
        ("model", pa.string()),
        ("method", pa.string()),
        ("prompts", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("nfe", pa.int64()),
        ("nfe_by_network", pa.string()),
        ("grad_evals", pa.int64()),
        ("flops", pa.float64()),
        ("record", pa.string()),
        ("error", pa.string()),
        # From here on measured: two writers of one shard may differ.
        ("seconds", pa.float64()),
        ("batch", pa.int32()),
        ("retried", pa.bool_()),
        ("device", pa.string()),
        ("dtype", pa.string()),
        ("versions", pa.string()),
        ("created", pa.timestamp("us", tz="UTC")),
    ],
    # `datasets` decodes the struct to a PIL image only where the schema says so.
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)
MEASURED = ("seconds", "batch", "retried", "device", "dtype", "versions", "created")
DETERMINISTIC = tuple(name for name in IMAGES.names if name not in MEASURED)

SCORES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("metric", pa.string()),
        ("metric_digest", pa.string()),
        ("value", pa.float64()),
        ("detail", pa.string()),
        ("error", pa.string()),
    ]
)

IMAGE_ROW_GROUP = 16  # one image can be fetched without reading many neighbours' megabytes
ROW_GROUP = 65536


def to_json(value: Any) -> str:
    """Compact JSON with sorted keys of what methods and metrics report: arrays become lists, NaN null."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "tolist"):  # numpy and torch, scalars as well
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, int):
        return value
    return [plain(item) for item in value] if isinstance(value, Iterable) else str(value)


def feature_table(sample_ids: Sequence[str], features: np.ndarray) -> pa.Table:
    """`sample_id, feature` from float32 `[N, D]`."""
    features = np.ascontiguousarray(features, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    return pa.table({"sample_id": pa.array(sample_ids, pa.string()), "feature": vectors})


def serialised(table: pa.Table) -> pa.Buffer:
    """The table as a Parquet file in memory.

    The image column goes in as it is (a dictionary costs six to nine times in writing speed and finds
    nothing in compressed pixels); checksums tell a damaged page from a sound one.
    """
    leaves = [name for name in table.column_names if name not in ("image", "feature")]
    compression = {name: "zstd" for name in leaves} | {"feature.list.element": "zstd"}
    if "image" in table.column_names:
        compression |= {"image.bytes": "none", "image.path": "zstd"}
    if "feature" not in table.column_names:
        del compression["feature.list.element"]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=IMAGE_ROW_GROUP if "image" in table.column_names else ROW_GROUP,
        compression=compression, use_dictionary=leaves, write_statistics=leaves, write_page_checksum=True,
    )
    return sink.getvalue()


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a part file, all columns or some.

    Raises:
        PartError: the file is damaged, or is no part file.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = {*(columns or ["sample_id"])} - {*file.schema_arrow.names}
            if missing:
                raise PartError(f"{path} is no part file of this project: no column {', '.join(sorted(missing))}")
            return file.read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, PermissionError):
            raise PartError(f"{path} cannot be read: no permission") from error
        raise PartError(f"{path} is damaged and cannot be read: {str(error).splitlines()[0]}") from error


def once(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Every key once, in order of first appearance; a row without an error goes before one with."""
    order = rows.index.to_series().groupby([rows[name] for name in key], sort=False).transform("min")
    bad = rows["error"].notna() if "error" in rows else pd.Series(False, index=rows.index)
    ranked = rows.assign(_order=order, _bad=bad).sort_values(["_order", "_bad"], kind="stable")
    return ranked.drop_duplicates(key).drop(columns=["_order", "_bad"])
