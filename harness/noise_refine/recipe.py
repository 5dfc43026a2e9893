"""The recipe of a training as typed models, from a YAML file; those that ship lie beside this file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from harness.benchmark import ModelSpec, PromptSpec, Strict
from harness.errors import HarnessError
from harness.registry import nearest


class TeacherSpec(Strict):
    """Images of a guided teacher: `generate` of them, prompt after prompt, then again with the next seed."""

    prompts: Literal["shapes-training"] | PromptSpec  # the latter: captions of the shapes world, never held-out ones
    generate: int = Field(ge=1)
    guidance: Any  # as a method's
    sampler: dict[str, Any] = Field(default_factory=lambda: {"name": "ddim", "steps": 20})


class KeepSpec(Strict):
    """Only images that a metric puts on the better side of a threshold are learned from."""

    metric: str | dict[str, dict[str, Any]]
    threshold: float


class LoraSpec(Strict):
    """The trainable part."""

    rank: int = Field(default=128, ge=1)
    layers: tuple[Literal["attention", "convolution", "feed-forward"], ...] = (
        "attention", "convolution", "feed-forward",
    )


class TrainingSpec(Strict):
    """AdamW with warm-up, a linear fall over the last 40 % of the steps, and an average of the weights."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)  # of all processes together
    lr: float = Field(gt=0)
    warmup: int = Field(100, ge=1)
    average: float = Field(0.998, ge=0, lt=1)


class Recipe(Strict):
    """All that decides what comes out."""

    model: ModelSpec
    teacher: Annotated[list[TeacherSpec], Field(min_length=1)]
    keep: KeepSpec | None = None
    student: dict[str, Any] = Field(default_factory=lambda: {"name": "ddim", "steps": 10})
    lora: LoraSpec = Field(default_factory=LoraSpec)
    training: TrainingSpec


FOLDER = Path(__file__).parent


def known() -> list[str]:
    """The recipes that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> tuple[Recipe, Path]:
    """A recipe by name or path, and the folder where its relative paths start (for one that ships: the current).

    Raises:
        HarnessError: no such recipe, not YAML, an unknown key, a value that makes no sense.
    """
    path = Path(name)
    if not name.endswith((".yaml", ".yml")) and os.sep not in name:
        if name not in known():
            raise HarnessError(f"unknown recipe {name!r}: {nearest(name, known())} (or give a path to a .yaml)")
        path = FOLDER / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HarnessError(f"recipe {name}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HarnessError(f"{path}: not a readable YAML file: {error}") from error
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise HarnessError("\n".join(_explain(path, problem) for problem in error.errors())) from error
    return recipe, Path.cwd() if path.parent == FOLDER else path.parent


def _explain(path: Path, problem: Any) -> str:
    where = f"{path}: {'.'.join(map(str, problem['loc']))}"
    if problem["type"] == "extra_forbidden":
        blocks: dict[Any, type[Strict]] = {
            "model": ModelSpec, "teacher": TeacherSpec, "keep": KeepSpec, "lora": LoraSpec, "training": TrainingSpec,
        }
        block = blocks.get(problem["loc"][0], Recipe) if len(problem["loc"]) > 1 else Recipe
        return f"{where}: unknown key: {nearest(str(problem['loc'][-1]), sorted(block.model_fields))}"
    if problem["type"] == "missing":
        return f"{where}: this key is required"
    given = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}"
