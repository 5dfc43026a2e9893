"""Runs the official networks and samplers on small random weights and keeps what comes out (see README.md).

python -m tests.vectors.edm2.make EDM2 INTERVAL    # folders of NVlabs/edm2 and kynkaat/guidance-interval
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from tests.vectors.edm2 import networks

HERE = Path(__file__).parent
STEPS = 8
SEEDS = [1, 2, 3]  # the classes drawn are 1, 0 and 3
FIXED = 0  # a class given
# By name: scale, interval of the interval repository's sampler; None is no guidance, then no interval.
INTERVAL: dict[str, tuple[float | None, list[int] | None]] = {
    "interval-none": (None, None), "interval-cfg": (1.5, None), "interval-steps": (2.0, [2, 5]),
    "interval-last": (2.0, [6, 7]),
}
# By name: scale and guiding network of NVlabs' sampler, rho and noise levels where they are not its own.
EDM2: dict[str, tuple[float, str | None, dict[str, float]]] = {
    "edm2-none": (1.0, None, {}), "edm2-guided": (1.4, "guide", {}), "edm2-auto": (2.1, "cond-weak", {}),
    "edm2-grid": (1.0, None, {"rho": 3, "sigma_min": 0.03, "sigma_max": 14.6146}),
}


def small_vae() -> AutoencoderKL:
    """Latents of 4 channels to images twice as large; the weights drawn as those of the networks, times 0.15."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )
    networks.fill(vae, 4)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(0.15)
        vae.decoder.conv_out.bias.fill_(0.5)
    return vae.eval().requires_grad_(False)  # type: ignore[no-any-return]


def load(place: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(edm2: str, interval: str) -> None:
    sys.path.insert(0, edm2)
    from training.encoders import StabilityVAEEncoder, StandardRGBEncoder  # type: ignore[import-not-found]
    from training.networks_edm2 import Precond  # type: ignore[import-not-found]

    generate = load(f"{edm2}/generate_images.py", "generate_images")
    sampler = load(f"{interval}/sampling/edm_sampler.py", "edm_sampler")
    torch.set_num_threads(1)

    def official(name: str) -> Any:
        config = networks.CONFIGS[name]
        made = Precond(
            config.resolution, config.channels, config.classes, sigma_data=config.sigma_data,
            logvar_channels=config.uncertainty_width, model_channels=config.width,
            channel_mult=list(config.multipliers), num_blocks=config.blocks, attn_resolutions=list(config.attention),
            channels_per_head=config.head_width,
        )
        networks.fill(made, networks.SEEDS[name])
        # What the interval repository's sampler asks of a network (there from an older class).
        made.sigma_min, made.sigma_max, made.round_sigma = 0, float("inf"), lambda sigma: sigma
        return made.eval().requires_grad_(False)

    tensors: dict[str, torch.Tensor] = {}
    for name in networks.CONFIGS:
        x, sigma, labels = networks.inputs(name)
        given = labels if networks.CONFIGS[name].classes else None
        tensors[f"{name}.denoised"], logvar = official(name)(x, sigma, given, return_logvar=True)
        tensors[f"{name}.uncertainty"] = logvar.flatten()
    x, sigma, labels = networks.inputs("cond")
    tensors["half.denoised"] = official("cond").to(torch.float16)(x, sigma, labels)

    cond, guide, weak = official("cond"), official("guide"), official("cond")
    networks.fill(weak, networks.SEEDS["cond-weak"])
    drawn = generate.StackedRandomGenerator("cpu", SEEDS)
    noise = drawn.randn([len(SEEDS), 4, 8, 8])
    classes = drawn.randint(5, size=[len(SEEDS)])
    labels = torch.eye(5)[classes]
    for key, (scale, steps) in INTERVAL.items():
        tensors[key] = sampler.edm_sampler(
            cond, noise, None if scale is None else guide, labels, G=scale, guidance_interval=steps, num_steps=STEPS
        )
    guides = {"guide": guide, "cond-weak": weak, None: None}
    for key, (scale, name, grid) in EDM2.items():
        tensors[key] = generate.edm_sampler(
            cond, noise, labels, guides[name], num_steps=STEPS, guidance=scale, **grid
        )
    tensors["edm2-fixed"] = generate.edm_sampler(cond, noise, torch.eye(5)[[FIXED] * len(SEEDS)], num_steps=STEPS)

    encoder = StabilityVAEEncoder()
    encoder._vae = small_vae()
    tensors["pixels"] = encoder.decode(tensors["interval-cfg"])
    tensors["pixels.rgb"] = StandardRGBEncoder().decode(tensors["interval-cfg"][:, :3])
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / "outputs.safetensors")
    (HERE / "outputs.json").write_text(json.dumps({"classes": classes.tolist(), "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
