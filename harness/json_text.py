"""JSON as text, read so that nothing is lost or taken for a number."""

import json
from typing import Any

from harness.errors import HarnessError


def json_value(text: str, place: str) -> Any:
    """The value of a JSON text without repeated keys, NaN and Infinity; `place` is what an error calls the text.

    Raises:
        HarnessError: it is not that, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise HarnessError(f"{place} is nested too deeply") from error
    except ValueError as error:
        raise HarnessError(f"{place} is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys; a value must not be lost that way."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object: {str(pairs)[:80]}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
