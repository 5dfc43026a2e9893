"""The same numbers every time, as far as a device can give them."""

import torch


def exact_float32() -> None:
    """For this process: float32 is float32 on a GPU too (convolutions there default to TF32), by the same kernels."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
