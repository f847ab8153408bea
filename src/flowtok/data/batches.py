"""Items in batches of exactly one size, so that a result does not depend on how many others were asked for.

Knows neither what the items are nor what becomes of them; pipeline.py says both.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

Progress = Callable[[int, int], None]
"""Called with the number of results that are ready and the number that will be."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    function: Callable[[list[Item]], list[Result]],
    items: Sequence[Item],
    batch_size: int,
    progress: Progress | None = None,
) -> list[Result]:
    """Applies a function to batches of exactly batch_size items; the last is filled up, the surplus dropped."""
    results: list[Result] = []
    for start in range(0, len(items), batch_size):
        batch = list(items[start : start + batch_size])
        full = batch + batch[-1:] * (batch_size - len(batch))
        results += function(full)[: len(batch)]
        if progress is not None:
            progress(len(results), len(items))
    return results
