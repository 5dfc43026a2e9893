"""The cosine of two noises: what inversion stability measures."""

import numpy as np
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> np.ndarray:
    """Cosine of each row of `a` with that of `b`, both flattened, float64 `[B]`.

    In double precision: the squared norm of an SDXL latent alone is more than float16 can hold.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    values: np.ndarray = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).cpu().numpy()
    return values
