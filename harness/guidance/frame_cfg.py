"""Classifier-free guidance with a scale of its own for every frame of a clip.

Source: the prediction guiders of Stable Video Diffusion (Blattmann et al., arXiv 2311.15127, `linear`) and SV3D
(Voleti et al., arXiv 2403.12008, `triangle`: least at the frames beside the conditioning view, full at the back).
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from harness.diffusion.base import Step
from harness.errors import HarnessError
from harness.guidance.base import COND, UNCOND, Guided, Request
from harness.guidance.interval import Interval, must_be_finite


@dataclass(frozen=True)
class FrameCFG(Interval):
    """`u + w_f * (c - u)` with a weight w_f of its own for every frame f of a clip, in an interval or everywhere.

    Attributes:
        scale: the greatest weight.
        shape: "triangle" climbs from `least` at the first frame to `scale` in the middle and back to `least` at the
            last; "linear" climbs from the first frame to the last.
        least: the least weight; 1 is the conditional prediction alone.
    """

    scale: float
    shape: Literal["triangle", "linear"] = "triangle"
    least: float = 1.0

    version = 1
    needs_frames = True

    @property
    def needs(self) -> frozenset[str]:
        """The unconditional prediction, but where every weight is 1."""
        return frozenset() if self.scale == self.least == 1 else frozenset({"uncond"})

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_finite("scale", self.scale)
        must_be_finite("least", self.least)
        if self.least > self.scale:
            raise ValueError(f"least: {self.least} is above scale: {self.scale}")

    def weights(self, frames: int) -> list[float]:
        """The weight of every frame."""
        places = [frame / (frames - 1) if frames > 1 else 0.0 for frame in range(frames)]
        if self.shape == "triangle":
            places = [2 * abs(place - math.floor(place + 0.5)) for place in places]
        return [self.least + place * (self.scale - self.least) for place in places]

    def requests(self, step: Step, sigma: float) -> tuple[Request, ...]:
        """Both predictions in the interval, the conditional one alone outside it or where every weight is 1."""
        return (UNCOND, COND) if self.active(step) and self.needs else (COND,)

    def combine(self, predictions: dict[Request, Tensor], x: Tensor, step: Step) -> Guided:
        """The guided prediction of clips `[B, F, C, H, W]` in the network's native space.

        Raises:
            HarnessError: the predictions are those of stills, `[B, C, H, W]`.
        """
        if len(predictions) == 1:
            return Guided(predictions[COND])
        unconditional, conditional = predictions[UNCOND], predictions[COND]
        if conditional.ndim != 5:
            raise HarnessError("frame_cfg weighs the frames of a clip, but this model makes stills: take cfg")
        scale = conditional.new_tensor(self.weights(conditional.shape[1])).view(1, -1, 1, 1, 1)
        return Guided(unconditional + scale * (conditional - unconditional))
