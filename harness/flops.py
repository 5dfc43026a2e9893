"""Floating-point operations, counted where they happen: convolutions, products of matrices, attention.

1 multiply-add = 2. Element-wise operations, normalisation, resizing and what runs outside of torch count nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Attention as plain products of matrices: fused kernels differ between devices, and with them what their backward
# pass computes a second time.
PLAIN = SDPBackend.MATH


@torch.no_grad()
def of_forward(call: Callable[[], Any]) -> float:
    """Operations of a call."""
    with sdpa_kernel(PLAIN), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


@torch.enable_grad()
def of_backward(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Operations of the way back alone, from the sum of `call(x)` to the gradient for `x`."""
    x = x.detach().requires_grad_()
    with sdpa_kernel(PLAIN):
        value = call(x).sum()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(value, x)
    return float(counter.get_total_flops())
