"""The same application as a Ray Serve deployment: replicas on one machine or many, Ray's batching before each model.

`application` is what a cluster file names; `run_on_ray` is what `flowtok serve --engine ray` does; docs/serving.md
shows both.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.context import _get_global_client

from flowtok.app import output
from flowtok.app.serving.batching import Batches, Busy, Closing, Dropped, Job, Observe, Run, fail, leave
from flowtok.app.serving.launch import listen, set_logging
from flowtok.app.serving.limits import ServingConfig
from flowtok.app.serving.service import Service
from flowtok.config import apply_overrides, from_dict, to_dict
from flowtok.errors import FlowTokError

LOG = logging.getLogger("flowtok.serving")
API_KEY = "FLOWTOK_API_KEY"
NAME = "flowtok"
# Requests that Ray hands to a replica before it refuses by itself, in units of max_requests: what is more than
# max_requests the replica answers at once, with a 429 in OpenAI's shape, which Ray's own is not.
SPARE = 4


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """What a cluster file may give as args.

    Attributes:
        model: A shipped model, a folder that all nodes have, or a Hub id.
        limits: Of each replica, such as ["batch_size=8"].
        replicas: Copies of the model.
        device: auto is a GPU for each replica where the cluster has any.
        dtype: What the networks compute in.
        cpus: Cores of each replica; it computes with as many threads.
    """

    model: str = "emoji"
    limits: tuple[str, ...] = ()
    replicas: int = 1
    device: str = "auto"
    dtype: str = "auto"
    cpus: int = 1

    def __post_init__(self) -> None:
        if min(self.replicas, self.cpus) < 1:
            raise FlowTokError(f"replicas and cpus must be at least 1, not {self.replicas} and {self.cpus}")
        self.serving()  # limits that clash are said before anything starts

    def serving(self) -> ServingConfig:
        """The limits of a replica."""
        return apply_overrides(ServingConfig(), self.limits)


class RayBatches(Batches):
    """Ray Serve's batching in the place of `Scheduler`; it lives in a replica's event loop.

    Ray makes batches of what it has, whether or not the model is busy. So it is given no more than the next batch, and
    that when the model is free: what waits here can still be dropped, and batches are full when there is enough.
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
        """Prepares the batching; see `Scheduler`."""
        self._run, self._batch_size, self._capacity, self._observe = run, batch_size, capacity, observe
        self._waiting: deque[Job] = deque()
        self._given: dict[Job, asyncio.Task[None]] = {}  # to Ray; all of one key
        self._computing = self._closing = False

        @serve.batch(max_batch_size=batch_size, batch_wait_timeout_s=gather_seconds)
        async def computed(jobs: list[Job]) -> list[None]:
            await self._compute(jobs)
            return [None] * len(jobs)

        self._computed: Any = computed

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return not self._closing

    def check_room(self, number: int) -> None:
        if self._closing:
            raise Closing("the replica is shutting down")
        if len(self._waiting) + number > self._capacity:
            raise Busy(1)

    def submit(self, jobs: Sequence[Job]) -> None:
        self.check_room(len(jobs))
        self._waiting.extend(jobs)
        self._give()

    def drop(self, jobs: Sequence[Job]) -> None:
        leave(jobs)
        self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
        for job in jobs:
            if job.future.cancelled() and job in self._given:
                self._given[job].cancel()

    def close(self) -> None:
        # Ray sends a replica that stops nothing new, and waits for its requests before this is called.
        self._closing = True

    def _give(self) -> None:
        """Gives Ray the oldest job and those of its key, as many as fit into the batch that it makes now."""
        if self._computing:
            return
        for job in list(self._waiting):
            if len(self._given) < self._batch_size and job.key == next(iter(self._given), job).key:
                self._waiting.remove(job)
                self._given[job] = task = asyncio.ensure_future(self._computed(job))
                task.add_done_callback(lambda task, job=job: self._taken_back(job, task))

    def _taken_back(self, job: Job, task: "asyncio.Task[None]") -> None:
        del self._given[job]
        if not task.cancelled() and (error := task.exception()) is not None:  # Ray failed, not the model
            LOG.error("Ray computed nothing", exc_info=error)
            fail([job], error)
        if not self._given:
            self._give()

    async def _compute(self, jobs: list[Job]) -> None:
        """Computes what Ray put together."""
        batch = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not batch:
            return
        self._computing, began = True, time.monotonic()
        try:
            results = await asyncio.to_thread(self._run, batch[0].key, batch)
        except Dropped as error:
            fail(batch, error)
            return
        except Exception as error:  # whatever it is, it belongs to those who wait
            LOG.exception("a batch failed")
            fail(batch, error)
            return
        finally:
            self._computing = False
        if self._observe is not None:
            self._observe(batch[0].key, len(batch), time.monotonic() - began)
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)


def application(arguments: Mapping[str, Any]) -> Any:
    """The deployment that a cluster file names as import_path; FLOWTOK_API_KEY is its key, where it is set.

    Args:
        arguments: As in `RayConfig`.

    Raises:
        FlowTokError: An unknown argument, limits that clash, or more replicas than GPUs.
    """
    given = from_dict(RayConfig, arguments)
    limits, key = given.serving(), os.environ.get(API_KEY) or None

    def made_in_the_replica() -> Any:
        from flowtok.app.options import open_model
        from flowtok.app.serving.application import make_application
        from flowtok.app.threads import aside

        set_logging()
        model = aside(open_model, given.model, given.device, given.dtype)
        # Ray's proxy sends the request's id, and gives one to requests that have none.
        return make_application(Service(model, limits, RayBatches), key, sends_id=False)

    deployment: Any = serve.deployment(
        name=NAME,
        num_replicas=given.replicas,
        max_ongoing_requests=SPARE * limits.max_requests,
        max_queued_requests=limits.max_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=_seconds_to_stop(limits),
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": _gpus(given)},
    )(serve.ingress(made_in_the_replica)())
    return deployment.bind()


def _seconds_to_stop(limits: ServingConfig) -> float:
    """In which all that a replica has accepted is answered."""
    return limits.upload_seconds + limits.deadline_seconds + limits.write_seconds


def _gpus(given: RayConfig) -> int:
    """GPUs of each replica. One that is given none sees none, whatever its machine has."""
    if given.device != "auto":
        return int(given.device.startswith("cuda"))
    there = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
    if 0 < there < given.replicas:
        raise FlowTokError(
            f"{given.replicas} replicas take a GPU each and the cluster has {there:g}; ask for fewer replicas, or for "
            "device cpu, or for device cuda if more GPUs will come"
        )
    return int(there > 0)


def run_on_ray(arguments: Mapping[str, Any], *, host: str, port: int) -> None:
    """Deploys on the cluster that RAY_ADDRESS names, or on a Ray of this machine, and serves until it is stopped.

    Args:
        arguments: As for `application`.
        host: Address to listen at.
        port: Port.

    Raises:
        FlowTokError: Arguments that cannot work, a port that is taken, no Ray, one that serves elsewhere, or replicas
            that do not start.
    """
    if port == 0:
        raise FlowTokError("--engine ray needs a --port of its own, not 0")
    given = from_dict(RayConfig, arguments)
    ours = os.environ.get("RAY_ADDRESS", "local") in ("", "local")
    if ours:
        with listen(host, port):
            pass
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to another host
    os.environ.setdefault("RAY_worker_niceness", "0")  # its replicas would yield to whatever else this machine does
    cores, own = os.cpu_count() or 1, {}
    if ours:
        own = {"address": "local", "include_dashboard": False, "num_cpus": max(cores, given.replicas)}
        given = replace(given, cpus=max(1, cores // given.replicas))
    try:
        ray.init(logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises a bare Exception where its processes do not start
        reason = " ".join(str(error).split())[:200]
        raise FlowTokError(f"Ray cannot be started or reached: {reason}; see RAY_ADDRESS, or try again") from error
    try:
        bound = application(to_dict(given))
    except FlowTokError:
        ray.shutdown()
        raise
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        _check_address(host, port)
        try:
            _serve(bound, f"http://{host}:{port}")
        finally:
            _finish(_seconds_to_stop(given.serving()))
    finally:
        if ours:  # else other applications may be served there
            serve.shutdown()
        ray.shutdown()


def _check_address(host: str, port: int) -> None:
    """Raises FlowTokError where Serve listens elsewhere: one that runs already keeps its address, whatever is asked."""
    client = _get_global_client()
    assert client is not None  # since Serve was started
    there = client.http_config
    if (there.host, there.port) != (host, port):
        raise FlowTokError(
            f"Ray Serve listens at {there.host}:{there.port} on this cluster already; give --host {there.host} --port "
            f"{there.port}"
        )


def _serve(bound: Any, address: str) -> None:
    """Deploys the application and waits for SIGTERM or Ctrl-C."""
    stopped = threading.Event()
    try:
        serve.run(bound, name=NAME, route_prefix="/")
    except RuntimeError as error:  # as Ray raises it: behind a replica's own trace stands what went wrong there
        reason = str(error).strip().splitlines()[-1][:300]
        raise FlowTokError(f"Ray cannot start the replicas: {reason}") from error
    for number in (signal.SIGTERM, signal.SIGINT):  # until now they leave at once: there is nothing to finish
        signal.signal(number, lambda *_: stopped.set())
    output.note(f"serving on Ray at {address}/v1, docs at {address}/docs")
    stopped.wait()


def _finish(seconds: float) -> None:
    """Deletes the application, which lets its replicas finish first.

    Args:
        seconds: What they may take. Ray itself waits for a minute, whatever they were allowed.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            serve.delete(NAME)
            return
        except TimeoutError:
            if time.monotonic() > end:
                output.note("some requests were not finished in time")
                return
