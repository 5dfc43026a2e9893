"""The three calls of a notebook, without Ray, as the README shows them."""

import subprocess
import sys

import numpy as np
import pytest

import harness
from harness.errors import HarnessError

PROMPTS = ["a red circle", "a blue square above a green star"]


def test_the_readme_snippet() -> None:
    model = harness.load_model("stable_diffusion", "builtin:shapes-sd")
    method = harness.load_method(
        noise={"nlg": {"steps": 2}}, guidance={"cfg": {"scale": 3}}, sampler={"name": "ddim", "steps": 4}
    )
    result = method(model, PROMPTS, seeds=0)
    assert result.images.shape == (2, 1, 64, 64, 3)
    assert result.images.dtype == np.uint8
    assert result.nfe.tolist() == [2 * 2 + 2 * 4] * 2
    assert all(len(record["norms"]) == 2 for record in result.records)
    scores = harness.load_metric("clipscore-shapes").score(result.images, PROMPTS)
    assert scores.values.shape == (2,)
    assert np.isfinite(scores.values).all()


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import sys, harness; print({'torch', 'ray', 'diffusers'} & set(sys.modules))"],
        capture_output=True, text=True, check=True,
    )
    assert said.stdout.strip() == "set()"


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(HarnessError, match="did you mean 'clipscore-shapes'"):
        harness.load_metric("clipscore-shape")
    with pytest.raises(HarnessError, match="did you mean 'stable_diffusion'"):
        harness.load_model("stable_difusion", "builtin:shapes-sd")
