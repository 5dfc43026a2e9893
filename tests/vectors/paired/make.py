"""Writes outputs.json with the packages that README.md names; none of them is needed by this project.

    python -m tests.vectors.paired.make
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import lpips  # type: ignore[import-not-found]
import numpy as np
import piq  # type: ignore[import-not-found]
import torch
from skimage.metrics import structural_similarity  # type: ignore[import-not-found]
from torchmetrics.functional.image.lpips import _LPIPS

from tests.metrics.tiny_alexnet import CASES, pair, write

NAMED = {"slice1": (0,), "slice2": (3,), "slice3": (6,), "slice4": (8,), "slice5": (10,)}


def with_trunk(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """An LPIPS network with the convolutions of a checkpoint."""
    own = network.net.state_dict()
    for slice_, places in NAMED.items():
        for place in places:
            for kind in ("weight", "bias"):
                assert own[f"{slice_}.{place}.{kind}"].shape == state[f"features.{place}.{kind}"].shape
                own[f"{slice_}.{place}.{kind}"] = state[f"features.{place}.{kind}"]
    network.net.load_state_dict(own)
    return network.eval()


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        state = torch.load(write(Path(folder)), weights_only=True)
    official = with_trunk(lpips.LPIPS(net="alex", pnet_rand=True, verbose=False), state)
    torchmetrics = with_trunk(_LPIPS(net="alex", pnet_rand=True), state)
    found = []
    for kind, height, width in CASES:
        a, b = pair(kind, height, width)
        values = {
            "case": [kind, height, width],
            "ssim": {
                "skimage": float(structural_similarity(
                    a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                    data_range=255,
                )),
                "piq": float(piq.ssim(
                    tensor(a).double(), tensor(b).double(), data_range=255, downsample=False, reduction="none"
                )[0]),
            },
        }
        if min(height, width) >= 31:
            x, y = (tensor(image).float() / 127.5 - 1 for image in (a, b))
            values["lpips"] = {"lpips": float(official(x, y)), "torchmetrics": float(torchmetrics(x, y))}
        found.append(values)
    packages = ("lpips", "torchmetrics", "piq", "scikit-image", "torch", "numpy")
    out = {"versions": {name: version(name) for name in packages}, "values": found}
    Path(__file__).with_name("outputs.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
