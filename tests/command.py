"""The `harness` command in this process, and a metric of a user's own for it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import cli
from harness.store import Store

BRIGHTNESS = '''
from dataclasses import dataclass

import numpy as np

from harness.metrics.base import SampleMetric, Scores


@dataclass(frozen=True)
class Brightness(SampleMetric):
    """The mean of all pixels, 0 to 255."""

    name = "brightness"

    def score(self, images: np.ndarray, prompts: object) -> Scores:
        return Scores(images.mean(axis=(1, 2, 3, 4), dtype=np.float64))
'''


def harness(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    before = sys.argv
    sys.argv = ["harness", *arguments]
    try:
        cli.main()
        code: Any = 0
    except SystemExit as left:
        code = left.code or 0
    finally:
        sys.argv = before
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return int(code), said.out, said.err


def generated(
    capsys: pytest.CaptureFixture[str], benchmark: Path
) -> tuple[list[dict[str, Any]], list[np.ndarray | None]]:
    """Rows and images of a benchmark's only part, run without workers, its results beside the file."""
    results = benchmark.parent / "runs"
    code, _, err = harness(capsys, "run", str(benchmark), "--workers", "0", "--results", str(results))
    assert code == 0, err
    store = Store(results / benchmark.stem)
    (part,) = store.parts("images")
    return store.read_images(part)
