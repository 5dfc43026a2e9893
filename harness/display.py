"""What a person sees while a run is at work: a live bar on a terminal, a line now and then in a log file."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Progress of the stages of a run, on standard error, so that standard output holds results alone."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._total = self._done = self._failed = 0
        self._started: float | None = None
        self._said = 0.0

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, markup=False)

    def start(self, stage: str, total: int, finished_before: int = 0) -> None:
        """Begins a stage of `total` samples still to do; `finished_before` were done by earlier runs."""
        self._stage, self._total, self._done, self._failed, self._started = stage, total, 0, 0, None
        if finished_before:
            self.say(f"{stage}: {finished_before:,} done before, {total:,} to do")
        if self.live:
            self._progress = Progress(
                TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), console=self.console,
            )
            self._task = self._progress.add_task(stage, total=total, rate="starting")
            self._progress.start()
        else:
            self._said = time.monotonic()
            self.say(f"{stage}: {total:,} samples")

    def advance(self, samples: int, failed: int = 0) -> None:
        """`samples` more are done; `failed` of them could not be made or scored."""
        now = time.monotonic()
        self._done += samples
        self._failed += failed
        if self._started is None:  # start-up is told apart: the rate counts from the first finished shard
            self._started, self._before = now, self._done
        rate = self._rate(now)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, rate=rate)
        elif now - self._said >= SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._said = now
            self.say(f"{self._stage}: {self._done:,}/{self._total:,} {rate}")

    def _rate(self, now: float) -> str:
        elapsed = now - (self._started or now)
        failed = f", {self._failed} failed" if self._failed else ""
        if elapsed <= 0 or self._done == self._before:
            return failed.lstrip(", ")
        per_second = (self._done - self._before) / elapsed
        left = (self._total - self._done) / per_second
        return f"{per_second:.1f} images/s, {_clock(left)} left{failed}"

    def finish(self) -> None:
        """Ends the stage at hand."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


class Steps:
    """Progress of a training on standard error: a live bar on a terminal, else a line now and then.

    Called with what `harness.shapes.loop` reports; it may be sent to another process, and draws in that one.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = float("-inf")

    def __call__(self, event: dict[str, Any]) -> None:
        step, steps = event["step"], event["steps"]
        known = ("stage", "step", "steps", "loss", "samples_per_s", "eta_s")
        figures = "".join(f", {name} {value:.4g}" for name, value in event.items() if name not in known)
        text = (f"loss {event['loss']:.4f}{figures}, {event['samples_per_s']:.1f} samples/s, "
                f"{_clock(event['eta_s'])} left")
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        if console.is_terminal:
            if self._progress is None:
                self._progress = Progress(
                    TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(),
                    TextColumn("{task.fields[text]}"), console=console,
                )
                self._task = self._progress.add_task(event["stage"], total=steps, text="")
                self._progress.start()
            if self._task is not None:
                self._progress.update(self._task, completed=step, text=text)
            if step == steps:
                self._progress.stop()
        elif time.monotonic() - self._said >= SECONDS_BETWEEN_LINES or step == steps:
            self._said = time.monotonic()
            console.print(f"{event['stage']}: {step:,}/{steps:,} {text}", markup=False)


class Transfers:
    """Progress of downloads on standard error: a live bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._progress: Progress | None = None
        self._name, self._total, self._done, self._said = "", 0, 0, 0.0

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, markup=False)

    def start(self, name: str, total: int | None, done: int) -> None:
        """Begins the file `name` of `total` bytes, `done` of which are here; anew after a cut."""
        self.finish()
        self._name, self._total, self._done, self._said = name, total or 0, done, time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                TimeRemainingColumn(), console=self.console,
            )
            self._progress.add_task(name, total=total, completed=done)
            self._progress.start()
        elif self._total >= 1e6:
            self.say(f"{name}: {self._amount()}")

    def advance(self, size: int) -> None:
        """`size` more bytes are here."""
        self._done += size
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done)
        elif time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self.say(f"{self._name}: {self._amount()}")

    def _amount(self) -> str:
        whole = f" of {self._total / 1e6:,.1f}" if self._total else ""
        return f"{self._done / 1e6:,.1f}{whole} MB"

    def finish(self) -> None:
        """Ends the file at hand."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def is_terminal() -> bool:
    """Whether results go to a person rather than into a file or a pipe."""
    return sys.stdout.isatty()
