"""Who a sample is: seeds and digests. Pure Python, so that planning needs neither torch nor ray."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any


def seed64(text: str) -> int:
    """The 63-bit seed that belongs to `text`: SHA-256, first 8 bytes, little-endian, top bit cleared."""
    first = hashlib.sha256(text.encode("utf-8")).digest()[:8]
    return int.from_bytes(first, "little") & 0x7FFF_FFFF_FFFF_FFFF


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def unequal(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two structures differ: (where, the one, the other), keys joined by dots.

    None stands for a key that is not there. A tuple is the list that JSON makes of it.
    """
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from unequal(one.get(key), other.get(key), f"{place}.{key}".lstrip("."))
    elif one != other:
        yield place, one, other


def sample_id(
    model_digest: str, method_digest: str, prompt_set: str, prompt_id: str, seed: int, seeding: str,
    class_label: int | None = None,
) -> str:
    """The 32 hex digits that name one sample.

    Labels, devices, workers, batches and paths have no part in it, so that the same sample has the same id
    wherever it is made; an edited method or retrained model has another digest and so another id. The class
    that the prompt gives, where it gives one, decides the image as much as they do.
    """
    given = [] if class_label is None else [class_label]
    return digest([model_digest, method_digest, prompt_set, prompt_id, seed, seeding, *given])[:32]
