"""The `harness` command in this process, and a metric of a user's own for it."""

import sys
from typing import Any

import pytest

from harness import cli

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
