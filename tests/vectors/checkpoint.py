"""The random Stable Diffusions that the vectors were made with, and the hash that says they are still the same."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.tiny import tiny_stable_diffusion

# What the scheduler's file of Stable Diffusion 2.1 holds; what it leaves out, each scheduler fills in for itself.
PUBLISHED_KEYS = (
    "_class_name", "beta_start", "beta_end", "beta_schedule", "clip_sample", "set_alpha_to_one", "steps_offset",
    "prediction_type", "num_train_timesteps", "skip_prk_steps", "trained_betas",
)


def make(folder: str | Path, prediction_type: str, contrast: float = 1.0) -> Path:
    """Writes the checkpoint, its scheduler's configuration as short as a published one, and returns its folder.

    `contrast` multiplies what the decoder makes; at 1 many pixels lie beyond black and white.
    """
    made = tiny_stable_diffusion(folder, prediction_type)
    if contrast != 1:
        weights = made / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
            tensors[name] *= contrast
        save_file(tensors, weights, metadata={"format": "pt"})
    path = made / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in PUBLISHED_KEYS if key in config}))
    return made


def sha256(folder: Path) -> str:
    """Of all weights, by name: other versions of the libraries may draw other ones from the same seed."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()
