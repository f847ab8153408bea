"""What ends a run before its last step: Ctrl-C, SIGTERM, and a loss or gradient that is not finite.

Knows neither the loop nor checkpoints: it notices, describes, and keeps the batch that is to blame.
"""

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically
from flowtok.train.feed import Feed
from flowtok.train.runtime import Runtime

LOG = logging.getLogger("flowtok")
_SHOWN = 8


class TrainingStopped(FlowTokError):
    """The user or the machine asked a run to stop; it has saved and can go on.

    Attributes:
        exit_code: What a process that is stopped so ends with: 128 and the number of the signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LeftAtOnce(KeyboardInterrupt):
    """A second Ctrl-C: whoever presses it does not want to wait for anything to be saved."""


@contextlib.contextmanager
def told_of_sigterm() -> Iterator[None]:
    """Lets SIGTERM end what is done meanwhile by TrainingStopped, and so with a line; a StopWish hears it before."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may
        yield
        return
    owner = os.getpid()

    def stop(number: int, _frame: object) -> None:
        if os.getpid() != owner:  # a process that was forked for reading
            os._exit(128 + number)
        raise TrainingStopped("stopped by SIGTERM; the same command goes on from what is saved", 128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopWish:
    """Hears Ctrl-C and SIGTERM while it is entered, and only notes them; a second one ends the process at once."""

    def __init__(self, *, again: bool = False) -> None:
        """Prepares.

        Args:
            again: One has come before: the next one is the second.
        """
        self.signal: signal.Signals | None = None
        self._again = again
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopWish":
        if threading.current_thread() is threading.main_thread():  # no other thread may
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self._again or self.signal is not None:
            raise LeftAtOnce
        self.signal = signal.Signals(number)
        LOG.warning("stopping: this step is finished and saved first; once more leaves at once, without saving")

    @property
    def flag(self) -> Tensor:
        """1 if a signal came, else 0; ranks add theirs up, since all must leave at the same step."""
        return torch.tensor(0.0 if self.signal is None else 1.0)

    def error(self, stage: str, step: int, num_steps: int, folder: Path) -> TrainingStopped:
        """What is said when the run has saved."""
        names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", None: "another rank"}
        return TrainingStopped(
            f"stage {stage}: stopped by {names[self.signal]} at step {step} of {num_steps} and saved in {folder}; "
            "the same command goes on from there",
            128 + (self.signal or signal.SIGTERM),
        )


def not_finite(
    what: str, value: float, losses: dict[int, Tensor], *, stage: str, step: int, feed: Feed, folder: Path
) -> FlowTokError:
    """Saves the batch that broke the run, and says which one it was. Every rank must come here.

    Args:
        what: What is not finite: the loss or a gradient.
        value: Its value.
        losses: The losses of this rank's parts by their numbers.
        stage: Name of the stage.
        step: Number of the step, from 0.
        feed: Has the batches.
        folder: The run's folder.

    Returns:
        The error to raise.
    """
    runtime: Runtime = feed.runtime
    broken = [number for number, loss in losses.items() if not math.isfinite(loss.item())]
    if not any(runtime.gather(broken)):
        broken = list(losses)  # each loss is finite, its gradient is not: any part may be to blame
    mine: list[str] = []
    path = folder / f"not-finite-step-{step:07d}-rank{runtime.rank}.pt"
    if broken:
        parts = [feed.given(number) for number in broken]
        mine = [name for part in parts for name in part.names]
        content = {
            "stage": stage,
            "step": step,
            "parts": [
                {
                    "samples": part.indices_B,
                    "names": list(part.names),
                    "loss": losses[part.number].item(),
                    "seed": part.seed,
                    "batch": part.batch,
                }
                for part in parts
            ],
        }
        write_file_atomically(path, lambda file: torch.save(content, file))
    samples = [sample for of_rank in runtime.gather(mine) for sample in of_rank]
    kept = [str(each) for each in runtime.gather(str(path) if broken else None) if each]
    more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    what = what.replace("_", " ")
    return FlowTokError(
        f"stage {stage}: the {what} is {value} at step {step}, with samples {', '.join(samples[:_SHOWN])}{more}; "
        f"stopped at the last checkpoint, the batch is saved in {', '.join(kept)}; "
        "look at these samples or train with a lower learning rate"
    )
