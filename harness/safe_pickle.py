"""Opens pickles of strangers: plain values, lists, tuples, sets, dicts and numeric numpy arrays, and runs nothing else.

A pickle is a program that may call whatever it names. Here it finds the few names that are written for an array (and
those that a caller adds), and behind them stand functions that check what they are given: none of numpy's own code
that rebuilds objects from raw state sees an unchecked value. Only objects made here take a state, and each checks it.
Python's own reader is used, not the faster one in C, which can be made to reserve memory that the file does not fill.
What is left of such tricks is refused: keys that are not plain (hashing one nested a million deep ends the process),
and programs of more operations than any file of numbers needs.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
import reprlib
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.errors import HarnessError

CODE = re.compile(r"[<>=|]?[biufc][0-9]{1,2}")  # booleans, integers, floats and complex numbers
KEYS = (str, bytes, int, float, type(None))
MOST = 1_000_000  # operations; a network of the largest published size takes some 50,000
short = reprlib.repr  # of bounded length and work, whatever is nested in a value
Names = Mapping[tuple[str, str], Callable[..., Any] | str]  # (module, name) -> what the pickle gets for it


def load(path: Path, further: Names | None = None, kinds: str = "numeric numpy arrays") -> Any:
    """What the file holds. Arrays are instances of `np.ndarray`.

    Args:
        further: more names that the pickle may ask for, and what it gets; a text is only named, never called. What
            is called must check every argument, and raise `Refused`.
        kinds: what else is opened than plain values, for the message.

    Raises:
        HarnessError: the file is no pickle, is cut short, or asks for anything else.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise HarnessError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Unpickler(data, {**_names(), **(further or {})}).load()  # type: ignore[arg-type]
    except Refused as error:
        raise HarnessError(f"{path} is refused: {error}. Only plain values and {kinds} are opened; nothing was run"
                           ) from error
    except Exception as error:  # a damaged file can raise anything
        raise HarnessError(f"{path} is no pickle that can be opened: {type(error).__name__}: {error}") from error


class Refused(Exception):
    """What the pickle asked for and does not get."""


class Stateful:
    """What takes a state from a pickle, by a `__setstate__` of its own that checks it."""


class Unpickler(pickle._Unpickler):
    """Reads one pickle of a file whose `read` gives no more than there is; finds `names` alone."""

    def __init__(self, file: IO[bytes], names: Names) -> None:
        super().__init__(file)
        self.names = names
        self.dispatch = _Counted(OPERATIONS)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy.core.", "numpy._core.")  # as numpy 1 wrote it
        if (place, name) not in self.names:
            raise Refused(f"it asks for {module}.{name}")
        return self.names[place, name]


class _Counted(dict[int, Callable[[Any], None]]):
    """The operations of a pickle, counted as they are looked up."""

    left = MOST

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise Refused(f"it has more than {MOST:,} operations")
        return super().__getitem__(code)


def _with_plain_keys(operation: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """An operation that hashes these parts of the stack, once they are seen to be plain."""

    def run(reader: Any) -> None:
        for key in reader.stack[keys]:
            if not isinstance(key, KEYS):
                raise Refused(f"it has a key of type {type(key).__name__}")
        operation(reader)

    return run


def _bytearray(reader: Any) -> None:
    size, = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(size)))  # Python's own reserves the size first


def _build(reader: Any) -> None:
    state, target = reader.stack.pop(), reader.stack[-1]
    if not isinstance(target, Stateful):
        raise Refused(f"it gives a state to a {type(target).__name__}")
    target.__setstate__(state)  # type: ignore[attr-defined]


def _extension(_: Any) -> None:  # a process may know objects by number, which are not looked up by name again
    raise Refused("it asks for an object by its number in a registry")


OPERATIONS = dict(pickle._Unpickler.dispatch) | {pickle.BYTEARRAY8[0]: _bytearray, pickle.BUILD[0]: _build}
OPERATIONS |= {code[0]: _extension for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4)}
for _opcode, _keys in (
    (pickle.DICT, slice(0, None, 2)), (pickle.SETITEM, slice(-2, -1)), (pickle.SETITEMS, slice(0, None, 2)),
    (pickle.ADDITEMS, slice(None)), (pickle.FROZENSET, slice(None)),
):
    OPERATIONS[_opcode[0]] = _with_plain_keys(OPERATIONS[_opcode[0]], _keys)


class _Type(Stateful):
    """Stands for a numpy dtype: its own state, written by a stranger, never reaches numpy."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not CODE.fullmatch(code):
            raise Refused(f"it holds an array of type {short(code)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or tuple(state[2:5]) != (None, None, None):
            raise Refused(f"it holds an array of a composite type {short(state)}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray, Stateful):
    """An array whose content arrives after it."""

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        _, shape, kind, fortran, data = state
        filled = _filled(data, kind, shape, "F" if fortran else "C")
        super().__setstate__((1, filled.shape, filled.dtype, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def is_shape(shape: Any) -> bool:
    """Whether a stranger's value is the shape of an array (or its strides)."""
    return isinstance(shape, tuple) and len(shape) <= 16 and all(type(n) is int and 0 <= n < 2**63 for n in shape)


def _filled(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise Refused("it holds an array that is not made of a type and its bytes")
    if not is_shape(shape):
        raise Refused(f"it holds an array of shape {short(shape)}")
    if math.prod(shape) * kind.dtype.itemsize != len(data):
        raise Refused(f"it holds an array of shape {shape} and type {kind.dtype} in {len(data)} bytes")
    return np.frombuffer(bytes(data), kind.dtype).reshape(shape, order=order)


def _names() -> Names:
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
            raise Refused(f"it encodes {short(text)} as {short(encoding)}")
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
