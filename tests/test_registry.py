"""Plug-ins by name: built, refused with a sentence, and known to a digest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from harness import registry
from harness.errors import HarnessError
from harness.identity import canonical_json


@dataclass(frozen=True)
class Plug:
    """A plug-in with every kind of parameter in use."""

    amount: float
    count: int = 3
    pick: Literal["most", "least"] = "most"
    pair: tuple[float, float] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


HERE = f"{__name__}:Plug"


def test_parameters_are_filled_in_and_typed() -> None:
    plug = registry.build("noise", HERE, {"amount": 5, "pair": [1, 2]})
    assert plug == Plug(5.0, pair=(1.0, 2.0))
    assert isinstance(plug.amount, float)
    assert isinstance(plug.pair, tuple)
    assert registry.build("noise", HERE, {"amount": "2.5"}).amount == 2.5  # as a sweep's "{w}" gives it


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameter 'amount': .*required"),
        ({"amount": "x"}, "parameter 'amount': .*number.*'x'"),
        ({"amount": None}, "parameter 'amount'"),
        ({"amount": 1, "count": 2.5}, "parameter 'count': .*integer.*2.5"),
        ({"amount": 1, "count": 0}, "count must be at least 1, got 0"),
        ({"amount": 1, "pick": "best"}, "parameter 'pick': .*'most' or 'least'.*'best'"),
        ({"amount": 1, "pair": [1]}, r"parameter 'pair\.1'"),
        ({"amount": 1, "pair": [1, 2, 3]}, "parameter 'pair'"),
        ({"amount": 1, "flag": "perhaps"}, "parameter 'flag'"),
        ({"amount": 1, "cuont": 2}, "no parameter 'cuont': did you mean 'count'"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(HarnessError, match=message) as caught:
        registry.build("noise", HERE, parameters)
    assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(HarnessError, match="unknown guidance 'cgf': did you mean 'cfg'"):
        registry.load("guidance", "cgf")
    with pytest.raises(HarnessError, match="cannot be loaded: No module named 'nowhere'"):
        registry.load("noise", "nowhere.at_all:Stage")
    with pytest.raises(HarnessError, match=r"cannot be loaded: module .* has no attribute 'Plugg'"):
        registry.load("noise", f"{__name__}:Plugg")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ndef broken(:\n", "{file}, line 2: SyntaxError: invalid syntax; correct it there"),
        ("\n\nclass A(Base):\n    pass\n", "{file}, line 3: NameError: name 'Base' is not defined; correct it there"),
        ("import json\njson.loads('')\n", "{file}, line 2: JSONDecodeError: Expecting value"),
        ("import nowhere\n", "{file}, line 1: ModuleNotFoundError: No module named 'nowhere'; install what is missing"),
        ("from json import lods\n", "{file}, line 1: ImportError: cannot import name 'lods'"),
        ("\nraise SystemExit\n", "{file}, line 2: SystemExit; correct it there"),
        ("assert False, 'two\\nlines'\n", "{file}, line 1: AssertionError: two lines; correct it there"),
    ],
)
def test_a_file_that_fails_on_import_is_named_with_its_line(
    source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fails_on_import.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for ask in (registry.load, registry.about):
        with pytest.raises(HarnessError) as caught:
            ask("noise", "fails_on_import:Mine")
        assert f"cannot be loaded: {expected.format(file=file)}" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["model", "noise", "guidance"])
def test_every_builtin_name_loads(kind: str) -> None:
    for name in registry.BUILTIN[kind]:
        assert isinstance(registry.load(kind, name), type)


def test_a_decorator_registers_and_a_taken_name_is_refused() -> None:
    @registry.register("noise", "test-registered")
    @dataclass(frozen=True)
    class Mine:
        x: int = 1

    assert registry.build("noise", "test-registered", {"x": 2}) == Mine(2)
    assert "test-registered" in registry.names("noise")
    for name in ("nlg", "test-registered"):
        with pytest.raises(HarnessError, match="is taken by"):
            registry.register("noise", name)(Plug)


def test_identity_has_every_parameter_and_for_foreign_classes_the_source() -> None:
    identity = registry.identity_of("noise", HERE, Plug(1.0))
    assert identity["parameters"] == {"amount": 1.0, "count": 3, "pick": "most", "pair": None, "flag": False}
    version, sha256 = identity["version"]
    assert version == 1
    assert len(sha256) == 64
    canonical_json(identity)
    ours = registry.identity_of("guidance", "cfg", registry.build("guidance", "cfg", {"scale": 2}))
    assert ours["version"] == 1
    assert registry.digest_of("noise", HERE, Plug(1.0)) != registry.digest_of("noise", HERE, Plug(2.0))


def test_what_a_plug_in_is_about_is_read_without_importing_it() -> None:
    for kind in registry.KINDS:
        for name in registry.names(kind):
            assert registry.about(kind, name) == (registry.load(kind, name).__doc__ or "").strip().splitlines()[0]
    with pytest.raises(HarnessError, match="cannot be loaded"):
        registry.about("metric", "no_such_package.at_all:Metric")
