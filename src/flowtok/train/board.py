"""Figures and pictures of a run for TensorBoard, which is an extra.

Written at once and by whoever asks, not in a thread as torch's own writer does: the run itself hears of a full disk,
and knows what to say. What is noted is decided in watch.py.
"""

import contextlib
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Board:
    """One file of events in a run's folder; all its methods raise OSError where the disk is full."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begins a file; what earlier ones say of later steps than `step` is not shown any more."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time():.6f}").open("wb")  # read in the order of the names
        self._records, self._event = RecordWriter(self._file), Event
        try:
            self._add(step + 1, file_version="brain.Event:2")
            self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
        except OSError:
            self.close()
            raise

    def figures(self, step: int, named: dict[str, float]) -> None:
        """Notes some numbers."""
        from torch.utils.tensorboard.summary import scalar

        for name, value in named.items():
            self._add(step, summary=scalar(name, value))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Notes a picture that lies in a file."""
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard.summary import image

        with Image.open(path) as picture:
            self._add(step, summary=image(name, np.asarray(picture.convert("RGB")), dataformats="HWC"))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # nothing is held back but what could not be written before
            self._file.close()

    def _add(self, step: int, **what: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), step=step, **what).SerializeToString())
        self._file.flush()


def board_of(folder: Path, step: int) -> Board | None:
    """A board for what follows on `step`; None where TensorBoard is not installed."""
    return None if find_spec("tensorboard") is None else Board(folder, step)
