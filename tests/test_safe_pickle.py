"""Pickles of arrays open; pickles that do anything else are refused, with nothing run."""

import collections
import contextlib
import functools
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import safe_pickle
from harness.errors import HarnessError

RAN: list[str] = []
DEEP = 1000  # a million would end a process that hashes it


def ran(*what: object) -> None:
    """What a malicious pickle would call."""
    RAN.append(str(what))


class Calls:
    """Pickled as the call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.made


def _open(folder: Path, data: bytes):
    path = folder / "file.pkl"
    path.write_bytes(data)
    return safe_pickle.load(path)


@pytest.mark.parametrize("protocol", range(6))
def test_statistics_open_in_every_protocol(tmp_path, protocol):
    rng = np.random.default_rng(0)
    sigma = rng.normal(size=(5, 5))
    content = {
        "num_images": 50000, "fid": {"mu": rng.normal(size=5), "sigma": sigma}, "fortran": np.asfortranarray(sigma),
        "big": sigma.astype(">f4"), "strided": sigma[::2, 1::2], "scalar": np.float64(0.1), "count": np.int64(7),
        "empty": np.zeros((0, 3)), "plain": [1, 2.5, "text", b"bytes\xff", None, True, (1, 2), {"a": [1]}],
        "flags": np.array([True, False]), "nought": np.array(3.0),
    }
    data = pickle.dumps(content, protocol=protocol)
    for written in (data, data.replace(b"numpy._core.", b"numpy.core.") if protocol < 4 else data):
        opened = _open(tmp_path, written)
        assert opened["plain"] == content["plain"]
        assert (opened["num_images"], opened["scalar"], opened["count"]) == (50000, 0.1, 7)
        for name in ("fortran", "big", "strided", "empty", "flags", "nought"):
            assert isinstance(opened[name], np.ndarray)
            assert opened[name].dtype.newbyteorder("=") == content[name].dtype.newbyteorder("=")
            assert np.array_equal(opened[name], content[name])
        assert np.array_equal(opened["fid"]["sigma"], sigma)


def _global(module: str, name: str, *arguments: str) -> bytes:
    """Protocol 0 by hand: the call of a name with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(f"V{a}\n".encode() for a in arguments) + b"tR."


ATTACKS = {
    "os.system": lambda f: pickle.dumps(Calls(os.system, f"touch {f}")),
    "posix.system": lambda f: _global("posix", "system", f"touch {f}"),
    "eval": lambda f: pickle.dumps(Calls(eval, f"open({str(f)!r}, 'w')")),
    "exec": lambda f: _global("builtins", "exec", f"open({str(f)!r}, 'w')"),
    "own module": lambda f: pickle.dumps(Calls(ran, 1)),
    "nested": lambda f: pickle.dumps({"fid": {"mu": np.zeros(2), "sigma": [(Calls(os.system, f"touch {f}"),)]}}),
    "as a key": lambda f: pickle.dumps({Calls(ran): 1}),
    "inside an object array": lambda f: pickle.dumps(np.array([Calls(ran)], dtype=object)),
    "numpy.load": lambda f: pickle.dumps(Calls(np.load, str(f), None, True)),
    "numpy.save": lambda f: pickle.dumps(Calls(np.save, str(f), 1)),
    "numpy's own runner": lambda f: _global("numpy.testing._private.utils", "runstring", f"open({str(f)!r}, 'w')"),
    "a path through numpy": lambda f: b"\x80\x04\x8c\x05numpy\x8c\x0dctypeslib.os.\x93.",
    "dotted": lambda f: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "partial": lambda f: pickle.dumps(functools.partial(os.system, f"touch {f}")),
    "partial called": lambda f: pickle.dumps(Calls(functools.partial(ran, 1))),
    "getattr": lambda f: pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
    "getattr on what is allowed": lambda f: pickle.dumps(Calls(getattr, np.ndarray, "tofile")),
    "methodcaller": lambda f: _global("operator", "methodcaller", "system"),
    "import": lambda f: pickle.dumps(Calls(__import__, "antigravity")),
    "builtins through a type": lambda f: pickle.dumps(Calls(type, "x", (), {})),
    "old instance": lambda f: f"(S'touch {f}'\nios\nsystem\n.".encode(),
    "reconstruct of another class": lambda f: pickle.dumps(
        Calls(np._core.multiarray._reconstruct, collections.OrderedDict, (0,), b"b")
    ),
    "codec": lambda f: _global("_codecs", "encode", "text", "rot13"),
    "codecs": lambda f: _global("codecs", "open", str(f), "w"),
    "object dtype": lambda f: pickle.dumps(np.dtype("O")),
    "composite dtype": lambda f: pickle.dumps(np.zeros(2, dtype=[("a", "f8"), ("b", "i4")])),
    "text dtype": lambda f: pickle.dumps(np.array(["a"])),
    "dates": lambda f: pickle.dumps(np.array(["2000-01-01"], dtype="M8[D]")),
    "masked array": lambda f: pickle.dumps(np.ma.array([1.0, 2.0])),
    "set": lambda f: pickle.dumps({1, 2}, protocol=2),
    "persistent": lambda f: b"Pfile\n.",
    "extension": lambda f: b"\x80\x02\x82\x01.",
    "cut": lambda f: pickle.dumps(np.zeros(9))[:-20],
    "empty": lambda f: b"",
    "text": lambda f: b"this is no pickle",
    "huge text": lambda f: b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "huge memo": lambda f: b"\x80\x04Nr\xff\xff\xff\xff",
    "huge bytearray": lambda f: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a key nested deeply": lambda f: b"\x80\x04})" + b"\x85" * DEEP + b"Ns.",
    "keys nested deeply": lambda f: b"\x80\x04}()" + b"\x85" * DEEP + b"Nu.",
    "a member nested deeply": lambda f: b"\x80\x04\x8f()" + b"\x85" * DEEP + b"\x90.",
    "a frozen member nested deeply": lambda f: b"\x80\x04()" + b"\x85" * DEEP + b"\x91.",
    "a dict of keys nested deeply": lambda f: b"\x80\x04()" + b"\x85" * DEEP + b"Nd.",
    "a shape that doubles 60 times": lambda f: _array_state((1, ("doubled",), "type", False, b"")).replace(
        b"\x8c\x07doubled\x94", b")" + b"2\x86" * 60
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_no_plain_data_is_refused_and_nothing_runs(tmp_path, name):
    touched = tmp_path / "touched"
    data = ATTACKS[name](touched)
    RAN.clear()
    with pytest.raises(HarnessError, match=r"is refused|is no pickle") as caught:
        _open(tmp_path, data)
    assert str(tmp_path / "file.pkl") in str(caught.value)
    assert not RAN
    assert not touched.exists()


def _array_state(state: object, code: str = "f8") -> bytes:
    """A pickled array with a state of our own."""
    kind = Calls(np.dtype, code, False, True, state=(3, "<", None, None, None, -1, -1, 0))
    filled = tuple(kind if item == "type" else item for item in state) if isinstance(state, tuple) else state
    return pickle.dumps(Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=filled))


@pytest.mark.parametrize("state", [
    (1, (3,), "type", False, b"\0" * 16),
    (1, (2**62, 2**3), "type", False, b""),
    (1, (-1,), "type", False, b"\0" * 8),
    (1, [2], "type", False, b"\0" * 16),
    (1, (2,), "type", False, [1, 2]),
    (1, (2,), "f8", False, b"\0" * 16),
    (1, (True,), "type", False, b"\0" * 8),
    (1, 2), "text", {"shape": 1},
])
def test_arrays_that_lie_about_themselves_are_refused(tmp_path, state):
    assert np.array_equal(_open(tmp_path, _array_state((1, (2,), "type", False, b"\0" * 16))), np.zeros(2))
    with pytest.raises(HarnessError, match=r"is refused|is no pickle"):
        _open(tmp_path, _array_state(state))


def test_a_type_cannot_be_given_another_inner_state(tmp_path):
    fields = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
    for state in (fields, (3, "|", ("f8", (2,)), None, None, 8, 1, 0)):
        with pytest.raises(HarnessError, match="refused"):
            _open(tmp_path, pickle.dumps(Calls(np.dtype, "f8", False, True, state=state)))


def test_a_pickle_sets_nothing_on_the_names_it_finds(tmp_path):
    """BUILD with slot state sets attributes of the object on the stack."""
    for attribute in ("__defaults__", "__code__", "__setstate__"):
        name = b"X" + struct.pack("<I", len(attribute)) + attribute.encode()
        with pytest.raises(HarnessError, match="gives a state to a function"):
            _open(tmp_path, b"\x80\x02c_codecs\nencode\nN}" + name + b"(K\x01ts\x86b.")


def test_a_program_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle._Counted, "left", 1000)
    assert _open(tmp_path, b"\x80\x04" + b"N0" * 498 + b"N.") is None
    with pytest.raises(HarnessError, match="operations"):
        _open(tmp_path, b"\x80\x04" + b"N0" * 500 + b"N.")


@settings(max_examples=300, deadline=None)
@given(st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([
        b"(", b")", b"t", b"R", b"}", b"]", b"a", b"s", b"b", b"0", b"2", b"N", b"\x81", b"\x93", b"K\x02", b".",
        b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy._core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n",
        b"Vf8\n", b"Vlatin1\n", b"cbuiltins\neval\n", b"\x85", b"\x86", b"\x87", b"o", b"q\x01", b"h\x01",
    ]), max_size=25).map(b"".join),
))
def test_any_bytes_are_plain_data_or_refused(tmp_path_factory, data):
    with contextlib.suppress(HarnessError):
        _open(tmp_path_factory.getbasetemp(), data)


def test_the_attacks_would_have_worked(tmp_path):
    """With Python's own reader, so that the tests above mean something."""
    RAN.clear()
    pickle.loads(ATTACKS["own module"](tmp_path / "x"))
    assert RAN
    for name in ("os.system", "eval", "nested", "old instance"):
        touched = tmp_path / name.replace(" ", "-")
        pickle.loads(ATTACKS[name](touched))
        assert touched.exists(), name
