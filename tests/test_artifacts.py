"""Names of weights to folders here: `harness.artifacts`."""

import json
from pathlib import Path

import pydantic
import pytest

from harness import artifacts
from harness.errors import HarnessError
from harness.weights import is_trained


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for weights."""
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def put(home: Path, name: str) -> Path:
    folder = home / name
    folder.mkdir(parents=True)
    for file in artifacts.catalogue()[name].files:
        (folder / file.path).write_bytes(file.path.encode())
    return folder


def test_a_missing_artifact_is_told_with_its_files_and_its_command() -> None:
    with pytest.raises(HarnessError, match=r"HPS_v2.1_compressed.pt.*harness fetch hpsv2.1"):
        artifacts.find("hpsv2.1")


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(HarnessError, match=r"'hpsv21'.*'hpsv2.1'"):
        artifacts.find("hpsv21")


def test_an_artifact_is_found_where_it_was_put(home: Path) -> None:
    folder = put(home, "hpsv2")
    assert artifacts.find("hpsv2") == folder
    assert artifacts.file_of("hpsv2", ".pt") == folder / "HPS_v2_compressed.pt"


def test_the_content_is_that_of_the_files_and_not_of_the_place(home: Path, tmp_path: Path) -> None:
    folder = put(home, "hpsv2")
    before = artifacts.content("hpsv2")
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    assert artifacts.content(str(elsewhere)) == before
    (elsewhere / "readme.md").write_text("no weights")
    assert artifacts.content(str(elsewhere)) == before
    (elsewhere / "HPS_v2_compressed.pt").write_bytes(b"others")
    assert artifacts.content(str(elsewhere)) != before


def test_weights_that_say_they_are_random(tmp_path: Path) -> None:
    file = tmp_path / "head.pth"
    file.write_bytes(b"")
    assert is_trained(file)
    assert is_trained(tmp_path)
    file.with_name("head.pth.json").write_text(json.dumps({"trained": False}))
    (tmp_path / "trained.json").write_text(json.dumps({"trained": False}))
    assert not is_trained(file)
    assert not is_trained(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.pt", "a/../../x.pt"])
def test_a_file_outside_its_folder_is_refused(path: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        artifacts.File(path=path)
