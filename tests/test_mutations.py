"""The list of mutations is in step with the code (`tests/mutations.py` runs them)."""

from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{Path(m.file).stem}: {m.old[:40]}")
def test_the_text_to_be_changed_stands_there_once(mutation: Mutation) -> None:
    assert (ROOT / "harness" / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert (ROOT / mutation.test).is_file()

