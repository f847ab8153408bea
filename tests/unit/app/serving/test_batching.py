"""The queue before a model: what is computed together, what waits, what is refused, and what is not computed at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flowtok.app.serving.batching import Busy, Closing, Dropped, Job, Scheduler

SECONDS = 30.0


class Model:
    """Computes when it is let, and remembers what."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.batches: list[list[Any]] = []

    def __call__(self, key: str, jobs: list[Job]) -> list[Any]:
        self.batches.append([job.payload for job in jobs])
        self.begun.release()
        assert self.let.acquire(timeout=SECONDS)
        if key == "broken":
            raise ZeroDivisionError
        if key == "dropped" and all(job.dropped for job in jobs):
            raise Dropped
        return [f"{key}{job.payload}" for job in jobs]

    def go(self, batches: int) -> None:
        for _ in range(batches):
            self.let.release()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    made = Scheduler(model, batch_size=3, capacity=6)
    yield made
    model.go(100)
    made.close()


def jobs(key: str, *payloads: int) -> list[Job]:
    return [Job(key=key, payload=payload) for payload in payloads]


def submitted(scheduler: Scheduler, model: Model, *groups: list[Job]) -> None:
    """Keeps the model busy with a first job, so that the groups meet in the queue."""
    scheduler.submit(jobs("a", 0))
    assert model.begun.acquire(timeout=SECONDS)
    for group in groups:
        scheduler.submit(group)


def test_what_fits_together_is_computed_together_and_the_oldest_goes_first(scheduler: Scheduler, model: Model) -> None:
    """Other settings must not share a batch, and must not wait for ever behind those that come later."""
    groups = jobs("a", 1, 2), jobs("b", 3), jobs("a", 4, 5)
    submitted(scheduler, model, *groups)
    model.go(4)
    results = [[job.future.result(SECONDS) for job in group] for group in groups]
    assert results == [["a1", "a2"], ["b3"], ["a4", "a5"]]
    assert model.batches == [[0], [1, 2, 4], [3], [5]]


def test_a_full_queue_takes_all_of_a_request_or_nothing(scheduler: Scheduler, model: Model) -> None:
    """Half a request is work for nothing."""
    submitted(scheduler, model, jobs("a", 1, 2, 3, 4))
    with pytest.raises(Busy) as busy:
        scheduler.submit(jobs("a", 5, 6, 7))
    assert busy.value.retry_after >= 1 and scheduler.waiting == 4
    scheduler.submit(jobs("a", 8, 9))
    assert scheduler.waiting == 6


def test_closing_finishes_what_was_accepted_and_takes_nothing_new(model: Model) -> None:
    scheduler = Scheduler(model, batch_size=3, capacity=6)
    group = jobs("a", 1, 2, 3, 4, 5)
    submitted(scheduler, model, group)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while scheduler.alive:
        pass
    with pytest.raises(Closing):
        scheduler.submit(jobs("a", 6))
    model.go(3)
    closing.join(SECONDS)
    assert [job.future.result(0) for job in group] == ["a1", "a2", "a3", "a4", "a5"]


def test_whoever_leaves_takes_their_work_along(scheduler: Scheduler, model: Model) -> None:
    """A client that has gone must not cost the others time, in the queue or, if it was alone, at the model."""
    leaving, staying = jobs("a", 1, 2), jobs("a", 3)
    submitted(scheduler, model, leaving, staying)

    async def leave() -> None:
        waiting = asyncio.ensure_future(scheduler.wait(leaving))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())
    assert scheduler.waiting == 1 and all(job.dropped for job in leaving)
    model.go(2)
    assert staying[0].future.result(SECONDS) == "a3"
    assert model.batches == [[0], [3]]


def test_a_batch_that_nobody_waits_for_learns_it(scheduler: Scheduler, model: Model) -> None:
    (alone,) = jobs("dropped", 1)
    scheduler.submit([alone])
    assert model.begun.acquire(timeout=SECONDS)
    scheduler.drop([alone])
    assert alone.dropped
    model.go(1)
    assert isinstance(alone.future.exception(SECONDS), Dropped)


def test_one_broken_batch_does_not_end_the_service(scheduler: Scheduler, model: Model) -> None:
    """The thread that owns the model must outlive any error."""
    submitted(scheduler, model, broken := jobs("broken", 1), fine := jobs("a", 2))
    model.go(3)
    assert isinstance(broken[0].future.exception(SECONDS), ZeroDivisionError)
    assert fine[0].future.result(SECONDS) == "a2" and scheduler.alive


def test_an_idle_model_waits_a_moment_for_company(model: Model) -> None:
    """Requests of one moment share a batch although the first of them finds the model idle."""
    scheduler = Scheduler(model, batch_size=2, capacity=4, gather_seconds=SECONDS)
    first, second = jobs("a", 1), jobs("a", 2)
    scheduler.submit(first)
    scheduler.submit(second)
    model.go(1)
    assert second[0].future.result(SECONDS) == "a2" and model.batches == [[1, 2]]
    scheduler.close()
