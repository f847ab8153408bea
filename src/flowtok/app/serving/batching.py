"""Many callers, one model: a bounded queue, batches of jobs that fit together, and no work for nobody.

Knows neither HTTP nor pictures nor deadlines: a job has a key, and jobs of one key may be computed together. What a job
is to the model: drawing.py.
"""

import asyncio
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

LOG = logging.getLogger("flowtok.serving")
_MEMORY = 0.8  # share of the past in the running mean of a job's seconds


class Busy(Exception):
    """The queue is full; `retry_after` is when, in whole seconds, there should be room again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full for about {retry_after} s")
        self.retry_after = retry_after


class Closing(Exception):
    """Nothing new is taken: what was accepted is being finished."""


class Dropped(Exception):
    """Nobody waits for any job of this batch any more: `Run` may raise it to stop."""


@dataclass(kw_only=True, eq=False)
class Job:
    """One thing to compute.

    Attributes:
        key: Jobs with equal keys may be computed together.
        payload: What is computed.
        future: Its result.
        dropped: Nobody waits for it any more.
    """

    key: Hashable
    payload: Any
    future: "Future[Any]" = field(default_factory=Future)
    dropped: bool = False


Run = Callable[[Any, list[Job]], list[Any]]
"""Computes jobs of one key, at most batch_size of them, in order; in the scheduler's thread."""
Observe = Callable[[Any, int, float], None]
"""Told the key, the number of jobs and the seconds of each batch that was computed."""


class Batches(ABC):
    """What stands between those who ask and the model."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Jobs in the queue."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether jobs are taken and computed."""

    @abstractmethod
    def check_room(self, number: int) -> None:
        """Looks whether so many jobs could be queued now.

        Raises:
            Busy: There is no room.
            Closing: Nothing new is taken.
        """

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none.

        Raises:
            Busy: There is no room.
            Closing: Nothing new is taken.
        """

    @abstractmethod
    def drop(self, jobs: Sequence[Job]) -> None:
        """Takes jobs that are not done out of the queue; what is being computed learns it by `Job.dropped`."""

    @abstractmethod
    def close(self) -> None:
        """Takes nothing new and finishes what was accepted."""

    async def wait(self, jobs: Sequence[Job]) -> list[Any]:
        """Waits for jobs that were submitted, all of them; the first error is raised.

        Whoever stops waiting (is cancelled) drops them.
        """
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs)))
        finally:
            self.drop(jobs)


class Scheduler(Batches):
    """One thread that owns the model, and the queue before it.

    The oldest job chooses what is computed next; younger ones of the same key join it. So nothing waits for ever, and
    what arrives together is computed together.
    """

    def __init__(
        self,
        run: Run,
        *,
        batch_size: int,
        capacity: int,
        gather_seconds: float = 0.0,
        observe: Observe | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            run: Computes a batch.
            batch_size: Most jobs of a batch.
            capacity: Most jobs that wait; those being computed do not count.
            gather_seconds: How long an idle model waits for company before it begins with less than a full batch.
            observe: Told of each batch.
        """
        self._run, self._batch_size, self._capacity = run, batch_size, capacity
        self._gather_seconds, self._observe = gather_seconds, observe
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_job = 0.0
        self._thread = threading.Thread(target=self._work, name="flowtok-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def check_room(self, number: int) -> None:
        with self._changed:
            if self._closing:
                raise Closing("the server is shutting down")
            if len(self._waiting) + number > self._capacity:
                raise Busy(max(1, math.ceil(len(self._waiting) * self._seconds_per_job)))

    def submit(self, jobs: Sequence[Job]) -> None:
        assert len(jobs) <= self._capacity, (len(jobs), self._capacity)
        with self._changed:
            self.check_room(len(jobs))
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def drop(self, jobs: Sequence[Job]) -> None:
        with self._changed:
            leave(jobs)
            self._waiting = deque(job for job in self._waiting if not job.future.cancelled())

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # The thread

    def _work(self) -> None:
        while batch := self._next():
            self._compute(batch)

    def _next(self) -> list[Job]:
        """Waits for the next batch; empty when everything is done and the scheduler closes."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                if len(self._waiting) < self._batch_size and not self._closing:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= self._batch_size or self._closing, self._gather_seconds
                    )
                if batch := self._take():
                    return batch

    def _take(self) -> list[Job]:
        """The oldest job and those of its key, out of the queue; called with the lock held."""
        batch: list[Job] = []
        left: deque[Job] = deque()
        for job in self._waiting:
            fits = len(batch) < self._batch_size and (not batch or job.key == batch[0].key)
            if not fits:
                left.append(job)
            elif job.future.set_running_or_notify_cancel():
                batch.append(job)
        self._waiting = left
        return batch

    def _compute(self, batch: list[Job]) -> None:
        began = time.monotonic()
        try:
            results = list(zip(batch, self._run(batch[0].key, batch), strict=True))
        except Dropped as error:
            fail(batch, error)
            return
        except Exception as error:  # whatever it is, it belongs to those who wait, and the next batch may be fine
            LOG.exception("a batch failed")
            fail(batch, error)
            return
        seconds = time.monotonic() - began
        with self._changed:
            past = self._seconds_per_job or seconds / len(batch)
            self._seconds_per_job = _MEMORY * past + (1 - _MEMORY) * seconds / len(batch)
        # Counted before it is delivered: whoever has an answer finds it in the figures.
        if self._observe is not None:
            self._observe(batch[0].key, len(batch), seconds)
        for job, result in results:
            job.future.set_result(result)


def leave(jobs: Sequence[Job]) -> None:
    """Notes of jobs that are not done that nobody waits for them."""
    for job in jobs:
        if job.future.cancel() or not job.future.done():
            job.dropped = True


def fail(batch: list[Job], error: BaseException) -> None:
    """Gives all jobs of a batch that are not done the error that ended it."""
    for job in batch:
        if not job.future.done():
            job.future.set_exception(error)
