import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.diffusion.base import Step
from harness.errors import HarnessError
from harness.guidance.base import COND, UNCOND
from harness.guidance.cfg import CFG
from harness.guidance.frame_cfg import FrameCFG

OFFICIAL = Path(__file__).parent.parent / "vectors" / "sv3d_sampling" / "outputs.json"
STEP = Step(0, 4, sigma=3.0, timestep=3.0)


@pytest.mark.parametrize("shape", ["triangle", "linear"])
@pytest.mark.parametrize(("scale", "least"), [(2.5, 1.0), (6.0, 1.5)])
def test_the_weights_are_the_authors(shape: Literal["triangle", "linear"], scale: float, least: float) -> None:
    theirs = json.loads(OFFICIAL.read_text())["guiders"][f"{shape}-{scale}-{least}"]
    assert len(theirs) == 5
    for frames, weights in theirs.items():  # in float32 there
        assert FrameCFG(scale=scale, shape=shape, least=least).weights(int(frames)) == pytest.approx(weights, abs=2e-6)


@given(st.integers(1, 30), st.floats(0, 4), st.floats(0, 4))
def test_weights_lie_between_least_and_scale_and_a_triangle_is_symmetric(
    frames: int, least: float, more: float
) -> None:
    triangle = FrameCFG(scale=least + more, shape="triangle", least=least).weights(frames)
    line = FrameCFG(scale=least + more, shape="linear", least=least).weights(frames)
    assert len(triangle) == len(line) == frames
    for weights in (triangle, line):
        assert weights[0] == pytest.approx(least)
        assert all(least - 1e-9 <= weight <= least + more + 1e-9 for weight in weights)
    assert triangle == pytest.approx(triangle[::-1], abs=1e-9)
    assert line == sorted(line)


def test_every_frame_is_guided_by_its_own_weight() -> None:
    g = torch.Generator().manual_seed(0)
    x, cond, uncond = (torch.randn((2, 5, 4, 3, 3), generator=g) for _ in range(3))
    guidance = FrameCFG(scale=3.0)
    assert guidance.requests(STEP, STEP.sigma) == (UNCOND, COND)
    made = guidance.combine({COND: cond, UNCOND: uncond}, x, STEP).prediction
    for frame, weight in enumerate(guidance.weights(5)):
        alone = CFG(weight).combine({COND: cond[:, frame], UNCOND: uncond[:, frame]}, x[:, frame], STEP).prediction
        torch.testing.assert_close(made[:, frame], alone)


def test_outside_its_interval_and_at_weight_one_the_conditional_prediction_stands_alone() -> None:
    cond = torch.ones(1, 3, 1, 2, 2)
    for guidance in (FrameCFG(scale=2.5, sigma=(4.0, None)), FrameCFG(scale=1.0)):
        assert guidance.requests(STEP, STEP.sigma) == (COND,)
        assert guidance.combine({COND: cond}, cond, STEP).prediction is cond
    assert FrameCFG(scale=1.0).needs == frozenset()
    assert FrameCFG(scale=1.0, least=0.5).requests(STEP, STEP.sigma) == (UNCOND, COND)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"least: 3\.0 is above scale: 2\.5"):
        FrameCFG(scale=2.5, least=3.0)
    with pytest.raises(ValueError, match="finite"):
        FrameCFG(scale=float("inf"))
    still = torch.ones(1, 4, 2, 2)
    with pytest.raises(HarnessError, match="this model makes stills: take cfg"):
        FrameCFG(scale=2.5).combine({COND: still, UNCOND: still}, still, STEP)
