"""What time tells the velocity network, kept from call to call: one table for each schedule that was used last.

Knows neither prompts nor tokens. What a table is: guidance.py; what it is made for: follow.py.
"""

from typing import Any

from flowtok.flow.follow import Schedule, table_for
from flowtok.flow.guidance import FlaggedVelocity
from flowtok.flow.transformer import VelocityTransformer

MOST_TABLES = 4


class Tables:
    """The tables of one network; each is made anew once the weights behind it have changed or moved."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], FlaggedVelocity] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, network: VelocityTransformer, schedule: Schedule) -> FlaggedVelocity:
        """The table of a schedule, made if it is not kept."""
        key = (schedule, *_state(network))
        table = self._kept.pop(key, None)
        if table is None:
            table = table_for(network, schedule)
        for oldest in list(self._kept)[: 1 - MOST_TABLES]:
            self._kept.pop(oldest, None)
        self._kept[key] = table
        return table

    def fix(self, network: VelocityTransformer, schedules: list[Schedule]) -> int:
        """Makes the tables of some schedules, then drops the weights behind them from the network.

        Returns:
            Bytes of weights that were dropped.
        """
        made = [self.of(network, schedule) for schedule in schedules]
        dropped = network.forget_time()
        state = _state(network)
        self._kept = {(schedule, *state): table for schedule, table in zip(schedules, made, strict=True)}
        return dropped


def _state(network: VelocityTransformer) -> tuple[Any, ...]:
    """Differs once the weights that make modulations were changed, replaced or moved."""
    behind = [weight for layer in network.time_layers() for weight in layer.parameters()]
    versions = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in behind]
    return (next(network.parameters()).device, *versions)
