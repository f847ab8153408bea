"""What can be seen of a run while it lasts: metrics.jsonl, previews, pace, and TensorBoard where it is installed.

Only the main rank watches. The page at the end is made in page.py; whoever shows figures on a screen gets a report.
"""

import json
import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically

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
        self.board = None if silent else _board(folder / "tensorboard", step)
        self._began, self._first_step = time.perf_counter(), step
        self._restart_window(0.0)
        self._waited_before = 0.0

    def log(self, step: int, figures: dict[str, float], samples: int, waited: float) -> None:
        """Notes a step.

        Args:
            step: Updates so far.
            figures: Losses and whatever else the stage says.
            samples: Samples since the last call.
            waited: Seconds that the run has waited for data, from its start.
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
            self.report(step, figures | {"seconds_left": per_step * (self.num_steps - step)})
        self._restart_window(waited)

    def preview(self, step: int, draw: Callable[[Path], dict[str, float]]) -> None:
        """Lets the stage draw its picture and notes its figures; the time is not counted as training.

        Raises:
            FlowTokError: If the disk is full.
        """
        if self.silent:
            return
        started, path = time.perf_counter(), self.folder / f"preview-{step:07d}.png"
        try:
            figures = draw(path)
        except OSError as error:
            raise FlowTokError(f"cannot write {path}: {error.strerror or error}") from error
        self._note(step, figures)
        if self.board is not None and path.exists():
            _show(self.board, f"{self.stage}/preview", path, step)
        self._window += time.perf_counter() - started

    def close(self) -> None:
        """Writes out what TensorBoard holds back."""
        if self.board is not None:
            self.board.close()

    def _note(self, step: int, figures: dict[str, float]) -> None:
        path = self.folder / METRICS_FILE
        # The mean over no samples, say of a batch in which all are null, is no number; JSON knows no other word for it.
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        line = json.dumps({"stage": self.stage, "step": step, "time": time.time(), **known}, allow_nan=False)
        try:
            with path.open("a") as lines:
                lines.write(line + "\n")
        except OSError as error:
            raise FlowTokError(f"cannot write {path}: {error.strerror or error}") from error
        if self.board is not None:
            for name, value in known.items():
                if value is not None:
                    self.board.add_scalar(f"{self.stage}/{name}", value, step)

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


def _board(folder: Path, step: int) -> Any | None:
    """A writer for TensorBoard, which is an extra; later steps of an earlier start are taken out there too."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def _show(board: Any, name: str, path: Path, step: int) -> None:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
