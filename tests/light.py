"""An actor without torch, for what the engine does with actors: it starts at once and obeys its units' names.

A unit is `<number>` or `<number>~<command>~<mark file>`, the file's slashes written as `|`; the command happens
only while the mark does not exist, and makes it: `die`, `sleep`, `always-die`, `full`, `fail`.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import HarnessError
from harness.files import StoreError
from harness.job import Job, Slot
from harness.units import GenerateUnit, Part, Report

T = TypeVar("T")


class LightActor:
    """Writes a line with its process id for every unit that it does."""

    def __init__(self, job: Job, slot: Slot) -> None:
        self.job, self.slot = job, slot

    def ready(self) -> dict[str, Any]:
        if self.job.codec == "cannot-start":
            raise HarnessError("the weights of this worker are made of cheese")
        if self.job.codec == "dies-at-start":
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def run(self, unit: GenerateUnit) -> Report:
        _, _, command = unit.part.name.partition("~")
        command, _, place = command.partition("~")
        mark = Path(place.replace("|", "/"))
        failed = [{"error": "broken", "unit": True}] if command == "fail" else []
        if command == "always-die" or (command == "die" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "sleep" and not mark.exists():
            mark.write_text(str(os.getpid()))
            time.sleep(600)
        if command == "full":
            raise StoreError("cannot write /run/x.parquet: the disk is full")
        if command == "bug":
            raise RuntimeError("first line\nlast line")
        time.sleep(0.01)
        with open(Path(self.job.root) / "done", "a") as file:
            file.write(f"{os.getpid()} {unit.part.model} {unit.part.name}\n")
        return Report(unit.part, "generate", 1, 0.01, failed)


def patiently(start: Callable[[], T], after: Callable[[], object] = lambda: None) -> T:
    """What `start` gives, tried three times, `after` each failure: on a very busy machine Ray loses patience with its
    own processes after half a minute."""
    for _ in range(2):
        try:
            return start()
        except Exception:
            after()
    return start()


def light_unit(name: str, model: str = "model", **marked: Path) -> GenerateUnit:
    """`light_unit("3", die=path)` dies once, leaving its mark at the path."""
    for command, path in marked.items():
        name += f"~{command.replace('_', '-')}~{str(path).replace('/', '|')}"
    return GenerateUnit(Part(model, "method", "prompts", name), "set", 0, "identity", 1, ())


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
