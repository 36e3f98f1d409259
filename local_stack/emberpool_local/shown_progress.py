"""Progress on the terminal: lines for the steps of a start, a bar for each way of a burst. All on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from emberpool_local.burst.fire import BurstProgress

# Without a terminal (CI, a pipe) a bar cannot move: a line now and then shows that the work goes on.
LINE_EACH_SHARE = 0.25


class ShownProgress:
    """Shows what a long command does: with ShownProgress(console) as progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="red"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_share: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, text: str) -> None:
        """Show one step of a start."""
        self._console.print(text, style="dim", highlight=False)

    def burst(self, progress: BurstProgress) -> None:
        """Show how far a burst is."""
        name = f"{progress.title}: " + ("starting environments" if progress.is_starting else "invocations")
        note = f"{progress.failures} failed" if progress.failures else ""
        if not self._console.is_terminal:
            self._line(name, progress, note)
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=progress.total, note=note)
        self._bars.update(self._tasks[name], completed=progress.done, note=note)

    def _line(self, name: str, progress: BurstProgress, note: str) -> None:
        share = progress.done / progress.total if progress.total else 1.0
        if share < 1.0 and share - self._last_share.get(name, 0.0) < LINE_EACH_SHARE:
            return
        self._last_share[name] = share
        self._console.print(f"{name}: {progress.done} of {progress.total} {note}".rstrip(), highlight=False)
