"""Perturbed-attention guidance, with or without classifier-free guidance.

Source: Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv 2403.17377.
"""

from dataclasses import dataclass

from torch import Tensor

from harness.diffusion.base import Step
from harness.guidance.base import COND, UNCOND, Guided, Request
from harness.guidance.interval import Interval, must_be_finite


@dataclass(frozen=True)
class PAG(Interval):
    """`c + scale * (c - p)`, where p is c with the self-attention of some layers made the identity.

    With `cfg_scale` w it is `u + w * (c - u) + scale * (c - p)`: classifier-free guidance to its full scale,
    and PAG on top, neither scaled by the other. This is what the PAG pipelines of `diffusers` compute with
    `guidance_scale` w and `pag_scale`, except that they take every w up to 1 for "no classifier-free guidance".
    Around c, as "A Noise is Worth Diffusion Guidance" (arXiv 2412.03895) writes it, the same sum is
    `c + w' * (c - u) + scale * (c - p)` with w' = w - 1.

    A prediction of weight 0 is not made: `cfg_scale` 1 and `scale` 0 save an evaluation each.

    Attributes:
        scale: s of the paper; the pipelines' default is 3.
        cfg_scale: w; 1 is PAG alone.
        layers: layers of the UNet as the pipelines name them: "mid", "down_blocks.1", "up_blocks.1.attentions.0"
            (or "down.block_1", "up.block_1.attentions_0"), each with all that lies below it.
    """

    scale: float
    cfg_scale: float = 1.0
    layers: tuple[str, ...] = ("mid",)

    version = 1

    @property
    def needs(self) -> frozenset[str]:
        """What the formula asks for."""
        return frozenset({"perturbed"} if self.cfg_scale == 1 else {"perturbed", "uncond"})

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_finite("scale", self.scale)
        must_be_finite("cfg_scale", self.cfg_scale)
        if not self.layers:
            raise ValueError("layers: name at least one, such as 'mid'")

    @property
    def needs_layers(self) -> tuple[str, ...]:
        """The perturbed layers."""
        return self.layers

    @property
    def _perturbed(self) -> Request:
        return Request("perturbed", layers=self.layers)

    def requests(self, step: Step, sigma: float) -> tuple[Request, ...]:
        """What the formula needs; outside the interval the conditional prediction alone."""
        if not self.active(step):
            return (COND,)
        unconditional = () if self.cfg_scale == 1 else (UNCOND,)
        perturbed = () if self.scale == 0 else (self._perturbed,)
        return (*unconditional, COND, *perturbed)

    def combine(self, predictions: dict[Request, Tensor], x: Tensor, step: Step) -> Guided:
        """The guided prediction in the network's native space (the formula is the same in all linear spaces)."""
        conditional = predictions[COND]
        guided = conditional
        if UNCOND in predictions:
            guided = predictions[UNCOND] + self.cfg_scale * (conditional - predictions[UNCOND])
        if self._perturbed in predictions:
            guided = guided + self.scale * (conditional - predictions[self._perturbed])
        return Guided(guided)
