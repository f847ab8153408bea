"""What time tells the velocity network, kept from call to call: tables of the schedules that were used last.

Knows neither prompts nor tokens. What a table is: guidance.py; what it is made for: follow.py.
"""

from typing import Any

from flowtok.flow.follow import Schedule, table_for
from flowtok.flow.guidance import Tabled
from flowtok.flow.transformer import VelocityTransformer

MOST_BYTES = 256 * 2**20
"""A table of 20 steps of XL has 33 MB in float32."""


class Tables:
    """The tables of one network; each is made anew once the weights behind it have changed or moved.

    Together they hold at most MOST_BYTES: those that were used longest ago go first, and a table that is larger by
    itself is used once, as then its steps cost far more than the table.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tabled] = {}
        self._fixed = False

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Memory that all tables take."""
        return sum(one.table.nbytes for one in self._kept.values())

    def of(self, network: VelocityTransformer, schedule: Schedule) -> Tabled:
        """The table of a schedule, made if it is not kept."""
        key = (schedule, *_state(network))
        table = self._kept.pop(key, None)
        if table is None:
            table = table_for(network, schedule)
        self._kept[key] = table
        for oldest in list(self._kept):
            if self.nbytes > MOST_BYTES and not self._fixed:
                del self._kept[oldest]
        return table

    def fix(self, network: VelocityTransformer, schedules: list[Schedule]) -> int:
        """Makes the tables of some schedules, then drops the weights behind them from the network.

        Returns:
            Bytes of weights that were dropped.
        """
        made = [self.of(network, schedule) for schedule in schedules]
        dropped = network.forget_time()
        self._fixed = True
        state = _state(network)
        self._kept = {(schedule, *state): table for schedule, table in zip(schedules, made, strict=True)}
        return dropped


def _state(network: VelocityTransformer) -> tuple[Any, ...]:
    """Differs once the weights that make modulations were changed, replaced or moved."""
    behind = [weight for layer in network.time_layers() for weight in layer.parameters()]
    versions = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in behind]
    return (next(network.parameters()).device, *versions)
