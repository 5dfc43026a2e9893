"""Small real runs for tests: a tiny Stable Diffusion that passes for trained, plug-ins, prompts, in one folder."""

import json
from pathlib import Path
from typing import Any

import yaml

from harness import run
from harness.display import Display
from tests.tiny import tiny_stable_diffusion

PLUGINS = '''
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.guidance.cfg import CFG
from harness.metrics.base import DistributionMetric, Reference, SampleMetric, Scores
from harness.noise.base import NoiseContext, Refined
from harness.registry import HOW


@dataclass(frozen=True)
class Brightness(SampleMetric):
    """The mean of all pixels, 0 to 255."""

    name = "brightness"
    offset: float = 0.0

    def score(self, images: np.ndarray, prompts: object) -> Scores:
        return Scores(images.mean(axis=(1, 2, 3, 4), dtype=np.float64) + self.offset)


@dataclass(frozen=True)
class Shift(DistributionMetric):
    """The distance of the mean colour from a grey."""

    name = "shift"
    extractor = "colour"
    preprocessing = "none"
    grey: float = field(default=100.0, metadata=HOW)

    def extractor_content(self) -> dict[str, Any]:
        return {"preprocessing": self.preprocessing}

    def features(self, images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)

    def reference(self) -> Reference:
        return Reference(np.full(3, self.grey), np.eye(3), 5, None, "none", f"grey {self.grey}")

    def distance(self, features: np.ndarray, reference: Reference) -> float:
        return float(np.linalg.norm(features.mean(axis=0, dtype=np.float64) - reference.mean))


@dataclass(frozen=True)
class Shrink:
    """Multiplies the noise by `strength`."""

    strength: float = 0.9

    def __call__(self, ctx: NoiseContext) -> Refined:
        return Refined(ctx.noise * self.strength, [{} for _ in ctx.prompts])


@dataclass(frozen=True)
class Strong(CFG):
    """Guidance of one's own."""


class Neither:
    """No dataclass."""
'''


def small_folder(folder: Path) -> Path:
    """Prompts, plug-ins (small_plugins.py) and two checkpoints (sd, other), marked as trained."""
    for name, seed in (("sd", 0), ("other", 1)):
        index = tiny_stable_diffusion(folder / name, seed=seed) / "model_index.json"
        index.write_text(json.dumps({key: value for key, value in json.loads(index.read_text()).items()
                                     if key != "trained"}))
    (folder / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(6)))
    (folder / "changed.txt").write_text("".join(f"{'other ' * (i == 1)}thing {i}\n" for i in range(6)))
    classes = [{"prompt": f"thing {i}", "class_label": 7 if i == 1 else None} for i in range(6)]
    (folder / "classes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in classes))
    (folder / "small_plugins.py").write_text(PLUGINS)
    return folder


def small_benchmark(folder: Path, name: str, **change: Any) -> Path:
    """Writes `<name>.yaml`; `change` replaces keys. Two methods, 6 prompts, 2 seeds, a metric of each kind."""
    content = {
        "name": name,
        "models": {"sd": {"family": "stable_diffusion", "weights": str(folder / "sd"), "batch": 8, "size": 64}},
        "prompts": {"things": {"set": "things", "path": "prompts.txt"}},
        "seeds": [0, 1],
        "sampler": {"name": "ddim", "steps": 2},
        "methods": {"plain": {}, "cfg": {"guidance": {"cfg": {"scale": 3}}}},
        "metrics": ["small_plugins:Brightness", "small_plugins:Shift"],
        "tables": [{"baseline": "cfg"}],
    } | change
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def small_run(folder: Path, name: str, **change: Any) -> run.Outcome:
    """Runs it in this process, into `folder`/results."""
    path = small_benchmark(folder, name, **change)
    with Display(quiet=True) as display:
        outcome = run.run(str(path), results=folder / "results", display=display, workers=0)
    assert outcome.failures == []
    return outcome
