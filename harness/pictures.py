"""The pictures that a prompt names: its own, which conditions a model or is what an image is compared with, and those
of an orbit around the same object (`truth: {frames: [...]}`), in order from its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.prompt_files import Prompt


def placed(prompt: Prompt, folder: Path) -> Prompt:
    """The prompt with the paths of its pictures made absolute. They begin at `folder`, the set's own, and are known to
    lie below it (`harness.prompt_files`); symbolic links there are followed."""
    truth, frames = prompt.truth, orbit_of(prompt)
    if truth is not None and frames:
        truth = truth | {"frames": [str(folder / path) for path in frames]}
    image = None if prompt.image is None else str(folder / prompt.image)
    return prompt if image is None and truth is prompt.truth else replace(prompt, image=image, truth=truth)


def orbit_of(prompt: Prompt) -> Sequence[Any]:
    """The paths of the orbit's pictures; none where the prompt has no orbit."""
    frames = (prompt.truth or {}).get("frames")
    return frames if isinstance(frames, list) else ()


def to_compare(prompt: Prompt, frames: int) -> tuple[str, ...]:
    """The files that a sample of so many frames is compared with, one for each frame.

    A still is compared with the prompt's own picture. Frame i = 0 ... F-1 of a clip shows the object from the azimuth
    360 (i + 1) / F degrees, so of an orbit of N pictures it is compared with number (i + 1) N / F, counted from 0 and
    round the circle: the last frame is the prompt's own view again.

    Raises:
        HarnessError: the prompt names no such pictures, or their number is no multiple of the frames'.
    """
    if frames == 1 and prompt.image is not None:
        return (prompt.image,)
    orbit = orbit_of(prompt)
    if frames == 1 or (not orbit and prompt.image is None):
        raise HarnessError(f"prompt {prompt.id!r} names no image to compare with")
    if not orbit:
        raise HarnessError(
            f"prompt {prompt.id!r} names one picture and no orbit to compare {frames} frames with: its truth must hold "
            f"the pictures' paths under 'frames', as the sets of orbits do (docs/prompt-sets.md)"
        )
    if len(orbit) % frames:
        raise HarnessError(
            f"prompt {prompt.id!r} has an orbit of {len(orbit)} pictures, which {frames} frames do not divide: render "
            f"a multiple of {frames}, evenly around the object (84 for SV3D's 21)"
        )
    every = len(orbit) // frames
    return tuple(orbit[(i + 1) * every % len(orbit)] for i in range(frames))
