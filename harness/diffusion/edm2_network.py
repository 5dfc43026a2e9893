"""The magnitude-preserving U-Net of EDM2, with its preconditioning.

Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696; the
equations named below are theirs. Parameters are called as in the published networks, so that their values need no
map; the code is our own.

Every layer keeps the magnitude (root mean square) of what goes through it: there are no biases and no group
normalisation, weights are used at unit norm whatever their stored length, and sums and concatenations are re-weighted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASS, WEIGHTS = "EDM2Network", "diffusion_pytorch_model.safetensors"  # what a folder calls it, and its parameters
EPSILON = 1e-4
SILU = 1 / 0.596  # undoes what SiLU does to the magnitude of normal values (Eq. 81); lies in the weights that follow
RESIDUAL = 0.3  # share of a block's residual branch, and of its attention
LARGEST = 256.0  # activations are clipped there
WIDTHS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}  # base channels of the published sizes
DROPOUT = {"xs": 0.0, "s": 0.0, "m": 0.1, "l": 0.1, "xl": 0.1, "xxl": 0.1}  # with which they were trained (512 px)


@dataclass(frozen=True)
class EDM2Config:
    """What a network is made of.

    Attributes:
        resolution: side of its input, in latent pixels (or pixels).
        channels: of its input.
        classes: labels it knows; 0 is an unconditional network.
        width: base channels; the sizes are in `WIDTHS`.
        multipliers: channels of each level in multiples of `width`; every level halves the side.
        blocks: encoder blocks a level; the decoder has one more.
        attention: sides at which blocks attend.
        head_width: channels of an attention head.
        sigma_data: standard deviation of the training data.
        uncertainty_width: of the head that weighs the training loss by noise level (Eq. 21); sampling ignores it.
    """

    resolution: int
    channels: int
    classes: int
    width: int
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    head_width: int = 64
    dropout: float = 0.0
    sigma_data: float = 0.5
    uncertainty_width: int = 128


def normalize(x: Tensor, dim: int | Sequence[int]) -> Tensor:
    """`x` at unit root mean square along `dim` (unit length times sqrt of the count), the norm in float32."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    rms = length * math.sqrt(length.numel() / x.numel())
    return x / (rms + EPSILON).to(x.dtype)


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """`(1 - share) * a + share * b`, re-weighted to keep the magnitude (Eq. 88)."""
    whole = math.hypot(1 - share, share)
    return torch.add(a * ((1 - share) / whole), b, alpha=share / whole)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channels of both, each side with the same part in the whole, whatever its width (Eq. 103 with t = 0.5)."""
    both = a.shape[1] + b.shape[1]
    return torch.cat([a * math.sqrt(both / 2 / a.shape[1]), b * math.sqrt(both / 2 / b.shape[1])], dim=1)


class Fourier(nn.Module):
    """Random cosine features of a number (Eq. 75), float32 `[B]` to `[B, width]`."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        """sqrt(2) * cos(freqs * x + phases)."""
        return (x[:, None] * self.freqs.float() + self.phases.float()).cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution (or, without a kernel, a linear layer) whose weights have unit norm a row in use (Eqs. 47, 66).

    `gain` is a constant factor. In training the stored weights are kept at unit root mean square as well. After
    `bake` they are stored as they are used, which spares the normalisation at every call.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel, kernel][: 2 * bool(kernel)]))
        self.gain = gain
        self.baked = False

    def effective(self, gain: Tensor | None = None) -> Tensor:
        """The weights as they are used, float32."""
        rest = list(range(1, self.weight.ndim))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight.float(), rest))
        length = math.sqrt(self.weight[0].numel())
        # A published gain is of half precision, and is divided in it.
        scale = 1 / length if gain is None else (gain / length).float()
        return normalize(self.weight.float(), rest) * (scale * self.gain)

    def bake(self, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        """Stores the weights as they are used, for inference alone."""
        self.weight = nn.Parameter(self.effective(gain).to(dtype), requires_grad=False)
        self.baked = True

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """The layer's output in the dtype of `x`; `gain` is a learned factor."""
        weight = self.weight if self.baked else self.effective(gain).to(x.dtype)
        if weight.ndim == 2:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """One block of encoder or decoder, with attention where `heads` is not 0 (Figure 21 of the paper).

    `resample` is "down" (2x2 means), "up" (2x2 copies) or ""; it comes first.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int, *, decoder: bool, resample: str = "", heads: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.decoder, self.resample, self.heads, self.dropout = decoder, resample, heads, dropout
        self.outputs = outputs
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(inputs if decoder else outputs, outputs, 3, SILU)
        self.emb_linear = MPConv(embedding, outputs)
        self.conv_res1 = MPConv(outputs, outputs, 3, SILU)
        self.conv_skip = MPConv(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = MPConv(outputs, 3 * outputs, 1) if heads else None
        self.attn_proj = MPConv(outputs, outputs, 1) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H', W']`; `embedding` float32 `[B, E]`."""
        if self.resample == "down":
            x = functional.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if not self.decoder:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), 1)
        y = self.conv_res0(functional.silu(x))
        scale = self.emb_linear(embedding, self.emb_gain) + 1
        y = functional.silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(functional.dropout(y, self.dropout, self.training and self.dropout > 0))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, RESIDUAL)
        if self.attn_qkv is not None:
            x = mp_sum(x, self._attention(x), RESIDUAL)
        return x.clamp(-LARGEST, LARGEST)

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention over all places; query, key and value vary fastest among the channels of `attn_qkv`."""
        assert self.attn_qkv is not None
        assert self.attn_proj is not None
        rows, channels = x.shape[:2]
        together = self.attn_qkv(x).reshape(rows, self.heads, channels // self.heads, 3, -1)
        q, k, v = normalize(together.permute(3, 0, 1, 4, 2).contiguous(), -1)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(y.transpose(2, 3).reshape(x.shape))  # type: ignore[no-any-return]


class EDM2Network(nn.Module):
    """The denoiser D(x; sigma), of latents or pixels, for labels or without."""

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32  # inside; what goes in and comes out is float32
        widths = [config.width * multiple for multiple in config.multipliers]
        embedding = max(widths)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = Fourier(widths[0])
        self.emb_noise = MPConv(widths[0], embedding)
        self.emb_label = MPConv(config.classes, embedding) if config.classes else None

        def block(inputs: int, outputs: int, attends: bool = False, **options: Any) -> Block:
            heads = outputs // config.head_width if attends else 0
            return Block(inputs, outputs, embedding, heads=heads, dropout=config.dropout, **options)

        self.enc = nn.ModuleDict()
        skips = []  # channels of every encoder output
        for level, width in enumerate(widths):
            side = config.resolution >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = MPConv(config.channels + 1, width, 3)
                skips.append(width)
            else:
                self.enc[f"{side}x{side}_down"] = block(skips[-1], skips[-1], decoder=False, resample="down")
                skips.append(skips[-1])
            for number in range(config.blocks):
                attends = side in config.attention
                self.enc[f"{side}x{side}_block{number}"] = block(skips[-1], width, attends, decoder=False)
                skips.append(width)
        self.dec = nn.ModuleDict()
        last = skips[-1]
        for level, width in reversed(list(enumerate(widths))):
            side = config.resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = block(last, last, True, decoder=True)
                self.dec[f"{side}x{side}_in1"] = block(last, last, decoder=True)
            else:
                self.dec[f"{side}x{side}_up"] = block(last, last, decoder=True, resample="up")
            for number in range(config.blocks + 1):
                attends = side in config.attention
                self.dec[f"{side}x{side}_block{number}"] = block(last + skips.pop(), width, attends, decoder=True)
                last = width
        self.out_conv = MPConv(last, config.channels, 3)
        self.logvar_fourier = Fourier(config.uncertainty_width)
        self.logvar_linear = MPConv(config.uncertainty_width, 1)

    def bake(self, dtype: torch.dtype = torch.float32) -> EDM2Network:
        """This network for inference: weights stored as they are used, convolutions computed in `dtype`.

        The embeddings of noise level and label stay in float32, as published.
        """
        self.eval().requires_grad_(False)
        for layer in self.modules():
            if isinstance(layer, Block):
                layer.emb_linear.bake(torch.float32, layer.emb_gain)
        self.out_conv.bake(dtype, self.out_gain)
        for name, layer in self.named_modules():
            if isinstance(layer, MPConv) and not layer.baked:
                embeds = name.startswith(("emb_", "logvar_"))
                layer.bake(torch.float32 if embeds else dtype)
        self.dtype = dtype
        return self

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoised `x`, float32 `[B, C, H, W]` as it.

        Args:
            x: clean data plus `sigma` times normal noise, of any float dtype.
            sigma: `[B]` or of one element, above 0.
            labels: one-hot rows `[B, classes]`; None is a row of zeros. A network without classes ignores them.
        """
        x = x.float()
        sigma = sigma.to(x).reshape(-1).expand(len(x))
        s, d = sigma[:, None, None, None], self.config.sigma_data
        both = (s**2 + d**2).sqrt()
        raw = self.raw(x / both, sigma.log() / 4, labels)
        return (d / both) ** 2 * x + (s * d / both) * raw

    def raw(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The U-Net itself at its scaled input `x` and `noise` = ln(sigma) / 4 `[B]`; float32 as `x`."""
        embedding = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            if labels is None:
                labels = x.new_zeros(len(x), self.config.classes)
            embedding = mp_sum(embedding, self.emb_label(labels.to(x) * math.sqrt(self.config.classes)), 0.5)
        embedding = functional.silu(embedding) * SILU
        x = x.to(self.dtype)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(mp_cat(x, skips.pop()) if "block" in name else x, embedding)
        return self.out_conv(x, self.out_gain).float()  # type: ignore[no-any-return]

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """u(sigma) of Eq. 21: the logarithm of the loss that is expected at a noise level; float32 `[B]` as `sigma`."""
        return self.logvar_linear(self.logvar_fourier(sigma.float().log() / 4))[:, 0]  # type: ignore[no-any-return]
