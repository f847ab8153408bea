"""A server of the tiny model, and clients that ask at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from serving_server import Running, running

from flowtok.pipeline import FlowTok


@pytest.fixture
def start(tiny: FlowTok) -> Iterator[Callable[..., AbstractContextManager[Running]]]:
    """Starts a server with the given limits."""
    yield lambda **how: running(tiny, **how)
    tiny.batch_size = 1


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made
