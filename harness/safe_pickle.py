"""Opens pickles of strangers: plain values, lists, tuples, dicts and numeric numpy arrays, and runs nothing else.

A pickle is a program that may call whatever it names. Here it finds the few names that are written for an array, and
behind them stand functions of this file that check what they are given: none of numpy's own code that rebuilds objects
from raw state sees an unchecked value. The functions are made anew for each file, since a pickle may set attributes of
what it finds. Python's own reader is used, not the faster one in C, which can be made to reserve memory that the
file does not fill.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError

CODE = re.compile(r"[<>=|]?[biufc][0-9]{1,2}")  # booleans, integers, floats and complex numbers


def load(path: Path) -> Any:
    """What the file holds. Arrays are instances of `np.ndarray`.

    Raises:
        HarnessError: the file is no pickle, is cut short, or asks for anything but plain values and numeric arrays.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HarnessError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except _Refused as error:
        raise HarnessError(
            f"{path} is refused: {error}. Only plain values and numeric numpy arrays are opened; nothing was run"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise HarnessError(f"{path} is no pickle that can be opened: {type(error).__name__}: {error}") from error


class _Refused(Exception):
    """What the pickle asked for and does not get."""


class _Type:
    """Stands for a numpy dtype: its own state, written by a stranger, never reaches numpy."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not CODE.fullmatch(code):
            raise _Refused(f"it holds an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or tuple(state[2:5]) != (None, None, None):
            raise _Refused(f"it holds an array of a composite type {state!r:.80}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose content arrives after it."""

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        _, shape, kind, fortran, data = state
        filled = _filled(data, kind, shape, "F" if fortran else "C")
        super().__setstate__((1, filled.shape, filled.dtype, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _filled(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise _Refused("it holds an array that is not made of a type and its bytes")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused(f"it holds an array of shape {shape!r:.80}")
    if math.prod(shape) * kind.dtype.itemsize != len(data):
        raise _Refused(f"it holds an array of shape {shape} and type {kind.dtype} in {len(data)} bytes")
    return np.frombuffer(bytes(data), kind.dtype).reshape(shape, order=order)


class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _names()
        place = module.replace("numpy.core.", "numpy._core.")  # as numpy 1 wrote it
        if (place, name) not in known:
            raise _Refused(f"it asks for {module}.{name}")
        return known[place, name]


def _names() -> dict[tuple[str, str], Callable[..., Any] | str]:
    """What a pickled array names, and what it gets."""

    def reconstruct(*_: Any) -> _Array:
        return _Array((0,), np.float64)

    def dtype(code: Any, *_: Any) -> _Type:
        return _Type(code)

    def scalar(kind: Any, data: Any) -> Any:
        return _filled(data, kind, (), "C").item()

    def from_buffer(data: Any, kind: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
        return _filled(data, kind, shape, order)

    def encode(text: Any, encoding: Any) -> bytes:  # bytes as older protocols write them
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refused(f"it encodes {text!r:.80} as {encoding!r:.80}")
        return text.encode("latin1")

    def no_bytes() -> bytes:  # b"" as older protocols write it: a call without arguments
        return b""

    return {
        ("__builtin__", "bytes"): no_bytes,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "scalar"): scalar,
        ("numpy._core.numeric", "_frombuffer"): from_buffer,
        ("numpy", "dtype"): dtype,
        ("numpy", "ndarray"): "ndarray",  # only named, as an argument of `_reconstruct`
        ("_codecs", "encode"): encode,
    }
