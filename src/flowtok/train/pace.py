"""How many steps a stage takes: those that are planned, or as many as fit into the time that it is given.

Knows a clock and numbers of steps, nothing of what is trained. The loop asks at every step.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

FEWEST_STEPS = 10
# Steps after which their speed is believed.
_TRIED = 3

SecondsLeft = Callable[[], float]


class Pace:
    """The steps of one stage on a clock."""

    def __init__(self, step: int, num_steps: int, seconds_left: SecondsLeft) -> None:
        """Starts now.

        Args:
            step: Steps that lie behind.
            num_steps: Steps that are planned.
            seconds_left: Tells the seconds that the stage still has.
        """
        self.first_step, self.num_steps, self.seconds_left = step, num_steps, seconds_left
        self._began = time.perf_counter()

    def expected(self, step: int) -> float:
        """The number of steps that the stage will have taken in the end; `step` of them lie behind.

        It is what is planned as long as there is time for that. When the time is up it is `step`, but never less than
        `FEWEST_STEPS` of the planned ones: a stage that begins late leaves something all the same.
        """
        left, done = self.seconds_left(), step - self.first_step
        if left <= 0:
            possible = float(step)
        elif done < _TRIED:
            possible = float(self.num_steps)
        else:
            possible = step + left * done / max(time.perf_counter() - self._began, 1e-9)
        return min(float(self.num_steps), max(possible, float(FEWEST_STEPS)))

    def figure(self, step: int) -> dict[str, Tensor]:
        """`expected` as a figure of which ranks take the mean: all end at the same step."""
        return {"steps": torch.tensor(self.expected(step))}
