"""What can be seen of a run while it lasts: metrics.jsonl, previews, pace, and TensorBoard where it is installed.

Only the main rank watches. The page at the end is made in page.py, TensorBoard's files in board.py; whoever shows
figures on a screen gets a report.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically
from flowtok.train.board import board_of

METRICS_FILE = "metrics.jsonl"

Report = Callable[[int, dict[str, float]], None]


class Watch:
    """Notes the figures of one run; silent on all ranks but one."""

    def __init__(
        self, folder: Path, stage: str, *, step: int, num_steps: int, report: Report | None, silent: bool = False
    ) -> None:
        """Goes on with the notes of an earlier start; what they say of later steps is taken out.

        Args:
            folder: The run's folder.
            stage: Name of the stage.
            step: The run's first step.
            num_steps: Its last one.
            report: Called with step and figures at every logged step.
            silent: Notes nothing.
        """
        self.folder, self.stage, self.num_steps, self.report, self.silent = folder, stage, num_steps, report, silent
        if not silent:
            forget_after(folder / METRICS_FILE, step)
        with _said(folder / "tensorboard") as place:
            self.board = None if silent else board_of(place, step)
        self._began, self._first_step = time.perf_counter(), step
        self._restart_window(0.0)
        self._waited_before = 0.0

    def log(
        self, step: int, figures: dict[str, float], samples: int, waited: float, *, num_steps: float | None = None
    ) -> None:
        """Notes a step.

        Args:
            step: Updates so far.
            figures: Losses and whatever else the stage says.
            samples: Samples since the last call.
            waited: Seconds that the run has waited for data, from its start.
            num_steps: The run's last step as it looks now, if that is not the one it was begun with.
        """
        if self.silent:
            return
        seconds = max(time.perf_counter() - self._window, 1e-9)
        figures = figures | {
            "samples_per_second": samples / seconds,
            "data_wait": min(1.0, (waited - self._waited_before) / seconds),
        }
        self._note(step, figures)
        if self.report is not None:
            per_step = (time.perf_counter() - self._began) / (step - self._first_step)
            self.report(step, figures | {"seconds_left": per_step * max(0.0, (num_steps or self.num_steps) - step)})
        self._restart_window(waited)

    def preview(self, step: int, draw: Callable[[Path], dict[str, float]]) -> None:
        """Lets the stage draw its picture and notes its figures; the time is not counted as training.

        Raises:
            FlowTokError: If the disk is full.
        """
        if self.silent:
            return
        started = time.perf_counter()
        with _said(self.folder / f"preview-{step:07d}.png") as path:
            figures = draw(path)
        self._note(step, figures)
        if self.board is not None and path.exists():
            with _said(self.folder / "tensorboard"):
                self.board.picture(step, f"{self.stage}/preview", path)
        self._window += time.perf_counter() - started

    def close(self) -> None:
        """Ends what TensorBoard is told."""
        if self.board is not None:
            self.board.close()

    def _note(self, step: int, figures: dict[str, float]) -> None:
        # The mean over no samples, say of a batch in which all are null, is no number; JSON knows no other word for it.
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        line = json.dumps({"stage": self.stage, "step": step, "time": time.time(), **known}, allow_nan=False)
        with _said(self.folder / METRICS_FILE) as path, path.open("a") as lines:
            lines.write(line + "\n")
        if self.board is not None:
            named = {f"{self.stage}/{name}": value for name, value in known.items() if value is not None}
            with _said(self.folder / "tensorboard"):
                self.board.figures(step, named)

    def _restart_window(self, waited: float) -> None:
        self._window, self._waited_before = time.perf_counter(), waited


def forget_after(path: Path, step: int) -> None:
    """Takes out the lines of steps that a run will do again, and a last line that a crash cut short."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines(keepends=True) if _step_of(line) <= step]
        write_file_atomically(path, "".join(kept))


def _step_of(line: str) -> float:
    """The step of a line; one that was cut short counts as one of the future."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextlib.contextmanager
def _said(path: Path) -> Iterator[Path]:
    """Says in one line what cannot be written, and why."""
    try:
        yield path
    except OSError as error:
        raise FlowTokError(f"cannot write {path}: {error.strerror or error}") from error
