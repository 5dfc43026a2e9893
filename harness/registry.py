"""Names to classes, for the nouns that plug in: models, noise stages, guidances, metrics.

A name is one of ours, one registered by decorator, one that an installed package offers as an entry point of
the group `harness.<kind>`, or `package.module:Class`. Nothing is imported before its name is asked for.
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from harness.errors import HarnessError
from harness.identity import digest

T = TypeVar("T")

KINDS = ("model", "noise", "guidance", "metric")
HOW = {"how": True}  # metadata of a parameter that changes how a result is computed and not the result

BUILTIN: dict[str, dict[str, str]] = {
    "model": {
        "stable_diffusion": "harness.diffusion.stable_diffusion:StableDiffusion",
        "stable_diffusion_xl": "harness.diffusion.stable_diffusion_xl:StableDiffusionXL",
        "edm2": "harness.diffusion.edm2:EDM2",
        "sv3d": "harness.diffusion.sv3d:SV3D",
    },
    "noise": {
        "gaussian": "harness.noise.gaussian:Gaussian",
        "nlg": "harness.noise.nlg:NLG",
        "inversion_stability": "harness.noise.inversion_stability:InversionStability",
        "noise_optimisation": "harness.noise.noise_optimisation:NoiseOptimisation",
        "noise_diffusion": "harness.noise.noise_diffusion:NoiseDiffusion",
        "best_of_n": "harness.noise.best_of_n:BestOfN",
        "zero_order_search": "harness.noise.zero_order_search:ZeroOrderSearch",
        "noise_refine": "harness.noise.noise_refine:NoiseRefine",
    },
    "guidance": {
        "none": "harness.guidance.none:NoGuidance",
        "cfg": "harness.guidance.cfg:CFG",
        "pag": "harness.guidance.pag:PAG",
        "autoguidance": "harness.guidance.autoguidance:Autoguidance",
        "frame_cfg": "harness.guidance.frame_cfg:FrameCFG",
    },
    "metric": {
        "hpsv2": "harness.metrics.hpsv2:HPSv2",
        "hpsv2.1": "harness.metrics.hpsv2:HPSv21",
        "pickscore": "harness.metrics.pickscore:PickScore",
        "clipscore": "harness.metrics.clipscore:CLIPScore",
        "clipscore-b32": "harness.metrics.clipscore:CLIPScoreB32",
        "clipscore-b16": "harness.metrics.clipscore:CLIPScoreB16",
        "clipscore-b16-lowest": "harness.metrics.clipscore:CLIPScoreB16Lowest",
        "clipscore-l14": "harness.metrics.clipscore:CLIPScoreL14",
        "aesthetic": "harness.metrics.aesthetic:Aesthetic",
        "fid": "harness.metrics.fid:FID",
        "fid-torchmetrics": "harness.metrics.fid:FIDTorchmetrics",
        "fid-clean": "harness.metrics.fid:FIDClean",
        "kid": "harness.metrics.kid:KID",
        "inception-score": "harness.metrics.inception_score:InceptionScore",
        "precision": "harness.metrics.prdc:Precision",
        "recall": "harness.metrics.prdc:Recall",
        "density": "harness.metrics.prdc:Density",
        "coverage": "harness.metrics.prdc:Coverage",
        "fd-dinov2": "harness.metrics.dinov2:FDDINOv2",
        "fd-dinov2-edm2": "harness.metrics.dinov2:FDDINOv2EDM2",
        "cmmd": "harness.metrics.cmmd:CMMD",
        "geneval-mask2former-hf": "harness.metrics.geneval:GenEvalMask2Former",
        "imagereward": "harness.metrics.imagereward:ImageReward",
        "vqascore-clip-flant5-xl": "harness.metrics.vqascore:VQAScoreXL",
        "vqascore-clip-flant5-xxl": "harness.metrics.vqascore:VQAScore",
        "geneval-shapes": "harness.metrics.geneval_shapes:GenEvalShapes",
        "clipscore-shapes": "harness.metrics.clipscore_shapes:CLIPScoreShapes",
        "fd-shapes-clip": "harness.metrics.distribution_shapes:FrechetShapesCLIP",
        "cmmd-shapes-clip": "harness.metrics.distribution_shapes:CMMDShapesCLIP",
        "lpips": "harness.metrics.lpips:LPIPS",
        "ssim": "harness.metrics.ssim:SSIM",
        "clip-s": "harness.metrics.clip_s:CLIPSimilarity",
    },
}

_registered: dict[str, dict[str, type]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: makes the class known as `name` among the plug-ins of `kind`."""

    def keep(cls: type[T]) -> type[T]:
        known = _registered[kind].get(name)
        if name in BUILTIN[kind] or (known is not None and known.__qualname__ != cls.__qualname__):
            origin = BUILTIN[kind].get(name) or f"{known.__module__}:{known.__qualname__}"  # type: ignore[union-attr]
            raise HarnessError(f"{kind} {name!r} is taken by {origin}; choose another name for {cls.__module__}")
        _registered[kind][name] = cls
        return cls

    return keep


def look_in(folders: Iterable[str]) -> None:
    """Folders in which users' own plug-ins are looked for, first of all."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def names(kind: str) -> list[str]:
    """All known names of a kind, sorted."""
    offered = {point.name for point in entry_points(group=f"harness.{kind}")}
    return sorted({*BUILTIN[kind], *_registered[kind], *offered})


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the nearest known ones, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known) or 'none'}"


def place(kind: str, name: str) -> str | None:
    """The `package.module:Class` that a name stands for, not imported; None where it is not known by one."""
    if name in BUILTIN[kind]:
        return BUILTIN[kind][name]
    points = {point.name: point.value for point in entry_points(group=f"harness.{kind}")}
    return points.get(name) or (name if ":" in name else None)


def about(kind: str, name: str) -> str:
    """The first line of a plug-in's docstring, read from its source: a list need not wait for what it would import."""
    module, _, attribute = (place(kind, name) or ":").partition(":")
    spec, document = None, None
    if module and name not in _registered[kind]:
        with contextlib.suppress(Exception):  # said by `load`
            spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        with contextlib.suppress(SyntaxError):  # likewise
            tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute]
            document = ast.get_docstring(found[0]) if found else None
    document = document or load(kind, name).__doc__ or ""
    return next(iter(document.strip().splitlines()), "")


def load(kind: str, name: str) -> type:
    """The class behind a name.

    Raises:
        HarnessError: unknown name (the message lists the nearest known ones) or a module that does not import (it names
            the file and line).
    """
    if name in _registered[kind]:
        return _registered[kind][name]
    target = place(kind, name)
    if target is None:
        raise HarnessError(
            f"unknown {kind} {name!r}: {nearest(name, names(kind))} "
            f"(your own: 'package.module:Class')"
        )
    module, _, attribute = target.partition(":")
    searched = (
        "It is looked up as a Python import from the folder of the benchmark file, the current folder and the "
        "installed packages"
    )
    try:
        imported = importlib.import_module(module)
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:  # whatever the code of another's file raises
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise HarnessError(f"{kind} {name!r} cannot be loaded: {error}. {searched}") from error
        todo = "install what is missing" if isinstance(error, ModuleNotFoundError) else "correct it there"
        raise HarnessError(
            f"{kind} {name!r} cannot be loaded: {_failing_place(error)}: {_said(error)}; {todo}, then run the same "
            f"command again"
        ) from error
    try:
        return getattr(imported, attribute)  # type: ignore[no-any-return]
    except AttributeError as error:
        raise HarnessError(f"{kind} {name!r} cannot be loaded: {error}. {searched}") from error


def _failing_place(error: BaseException) -> str:
    """File and line at which an import failed: the innermost ones that are neither Python's nor a library's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if not f.filename.startswith("<frozen")]
    others = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    found = (own or frames)[-1:]
    return f"{found[0].filename}, line {found[0].lineno}" if found else "while it was imported"


def _said(error: BaseException) -> str:
    """What was raised, in one line."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def build(kind: str, name: str, parameters: dict[str, Any]) -> Any:
    """An instance of the plug-in `name` with `parameters` (defaults filled in, types checked).

    Plug-ins are dataclasses: a field is a parameter; `__post_init__` may raise ValueError for a value that
    makes no sense. An unknown, missing or ill-typed parameter is a HarnessError naming it.
    """
    cls = load(kind, name)
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in parameters:
        if key not in known:
            raise HarnessError(f"{kind} {name!r} has no parameter {key!r}: {nearest(str(key), known)}")
    try:
        return pydantic.TypeAdapter(cls).validate_python(parameters)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        given = f", got {first['input']!r}" if place else ""
        message = first["msg"].removeprefix("Value error, ")
        raise HarnessError(
            f"{kind} {name!r}{': parameter ' + repr(place) if place else ''}: {message}{given}"
        ) from error


def identity_of(kind: str, name: str, instance: Any) -> dict[str, Any]:
    """What a digest needs of a plug-in: its name, its parameters, and its version.

    A class of this package carries a `version` number that is raised whenever its results change. One from
    elsewhere is known by the SHA-256 of its source file as well, so that an edit makes new samples. A field with
    `metadata=HOW` says how to compute, not what: like the size of a micro-batch, it has no part in the identity.
    """
    cls = type(instance)
    version: Any = getattr(cls, "version", 1)
    if not cls.__module__.startswith("harness."):
        source = inspect.getsourcefile(cls)
        version = [version, hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else cls.__qualname__]
    how = {field.name for field in dataclasses.fields(instance) if field.metadata.get("how")}
    parameters = {key: value for key, value in dataclasses.asdict(instance).items() if key not in how}
    return {"name": name, "parameters": parameters, "version": version}


def digest_of(kind: str, name: str, instance: Any) -> str:
    """The digest of `identity_of`."""
    return digest(identity_of(kind, name, instance))
