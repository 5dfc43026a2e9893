"""Makes pickles with the official code, loads each once with ours, and keeps what came out (see README.md).

python -m tests.vectors.edm2_pickle.make FOLDER    # FOLDER is a copy of github.com/NVlabs/edm2
"""

import hashlib
import json
import pickle
import pickletools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from harness import edm2_pickle
from tests.edm2_pickles import NETWORKS, tensors

HERE = Path(__file__).parent
SIGMAS = [0.05, 0.7, 20.0]


def sha256(state: dict[str, np.ndarray]) -> str:
    """Of all tensors, by name."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return total.hexdigest()


def inputs(channels: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Noisy images of the noise levels `SIGMAS`, those, and labels 0, 1, ... in turn."""
    rng = np.random.default_rng(1)
    sigma = torch.tensor(SIGMAS)
    x = torch.from_numpy(rng.standard_normal((3, channels, 8, 8)).astype(np.float32)) * (1 + sigma)[:, None, None, None]
    labels = torch.nn.functional.one_hot(torch.arange(3) % classes, classes).float() if classes else None
    return x, sigma, labels


def main(official: str) -> None:
    sys.path.insert(0, official)
    import dnnlib  # type: ignore[import-not-found]
    from training.encoders import StabilityVAEEncoder, StandardRGBEncoder  # type: ignore[import-not-found]
    from training.networks_edm2 import Precond  # type: ignore[import-not-found]
    from training.training_loop import EDM2Loss  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    told, outputs = {}, {}
    for name, settings in NETWORKS.items():
        network = Precond(**settings)
        network.load_state_dict({
            key if key.startswith("logvar_") else f"unet.{key}": value.float()
            for key, value in tensors(settings).items()
        })
        network = network.eval().requires_grad_(False).to(torch.float16)
        encoder = StandardRGBEncoder() if settings["img_channels"] == 3 else StabilityVAEEncoder()
        kwargs = dict(class_name="training.dataset.ImageFolderDataset", path="images.zip", use_labels=True)
        data = pickle.dumps(dnnlib.EasyDict(
            encoder=encoder, dataset_kwargs=dnnlib.EasyDict(kwargs), loss_fn=EDM2Loss(), ema=network,
        ))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "official.pkl"
            path.write_bytes(data)
            ours = edm2_pickle.read(path)
        x, sigma, labels = inputs(settings["img_channels"], settings["label_dim"])
        loaded = pickle.loads(data)["ema"].float()
        outputs[name] = loaded(x, sigma, labels).contiguous()
        found: list[str] = []
        texts: list[str] = []
        for operation, argument, _ in pickletools.genops(data):
            if isinstance(argument, str):
                texts.append(argument)
            if operation.name == "STACK_GLOBAL":
                found.append(texts[-1])
        told[name] = {
            "settings": settings, "pickle_sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
            "names": sorted(set(found)), "state_sha256": sha256(ours.tensors), "config": ours.config,
        }
    (HERE / "outputs.json").write_text(json.dumps(told, indent=1) + "\n")
    save_file(outputs, HERE / "outputs.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
