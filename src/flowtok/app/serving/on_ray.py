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
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve

from flowtok.app import output
from flowtok.app.serving.batching import Batches, Busy, Closing, Dropped, Job, Observe, Run, fail, leave
from flowtok.app.serving.launch import listen, set_logging
from flowtok.app.serving.service import Service, ServingConfig
from flowtok.config import apply_overrides
from flowtok.errors import FlowTokError

LOG = logging.getLogger("flowtok.serving")
API_KEY = "FLOWTOK_API_KEY"
NAME = "flowtok"
ARGUMENTS = {"model", "limits", "replicas", "device", "dtype"}


class RayBatches(Batches):
    """Ray Serve's batching in the place of `Scheduler`; it lives in a replica's event loop."""

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
        self._run, self._capacity, self._observe = run, capacity, observe
        self._waiting: set[Job] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

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

    def submit(self, jobs: Sequence[Job]) -> None:
        if self._closing:
            raise Closing("the replica is shutting down")
        if len(self._waiting) + len(jobs) > self._capacity:
            raise Busy(1)
        for job in jobs:
            self._waiting.add(job)
            task = asyncio.ensure_future(self._computed(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def drop(self, jobs: Sequence[Job]) -> None:
        leave(jobs)
        self._waiting -= {job for job in jobs if job.future.cancelled()}

    def close(self) -> None:
        # Ray sends a replica that stops nothing new, and waits for its requests before this is called.
        self._closing = True

    async def _compute(self, jobs: list[Job]) -> None:
        """Computes what Ray put together: those that somebody still waits for, equal keys at a time."""
        self._waiting -= set(jobs)
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                groups.setdefault(job.key, []).append(job)
        for key, group in groups.items():
            began = time.monotonic()
            try:
                results = await asyncio.to_thread(self._run, key, group)
            except Dropped as error:
                fail(group, error)
                continue
            except Exception as error:  # whatever it is, it belongs to those who wait
                LOG.exception("a batch failed")
                fail(group, error)
                continue
            for job, result in zip(group, results, strict=True):
                job.future.set_result(result)
            if self._observe is not None:
                self._observe(key, len(group), time.monotonic() - began)


def application(arguments: Mapping[str, Any]) -> Any:
    """The deployment that a cluster file names as import_path; FLOWTOK_API_KEY is its key, where it is set.

    Args:
        arguments: model (a name, folder or Hub id), limits (a list such as ["batch_size=8"]), replicas, device, dtype;
            all may be left out.

    Raises:
        FlowTokError: An unknown argument, or limits that clash.
    """
    if unknown := set(arguments) - ARGUMENTS:
        raise FlowTokError(f"unknown argument {sorted(unknown)[0]!r}; known: {', '.join(sorted(ARGUMENTS))}")
    model, device = str(arguments.get("model", "emoji")), str(arguments.get("device", "auto"))
    dtype, key = str(arguments.get("dtype", "float32")), os.environ.get(API_KEY) or None
    config = apply_overrides(ServingConfig(), list(arguments.get("limits", [])))

    def made_in_the_replica() -> Any:
        from flowtok.app.options import open_model
        from flowtok.app.serving.application import make_application

        set_logging()
        return make_application(Service(open_model(model, device, dtype), config, RayBatches), key)

    # A replica refuses by itself, with 429; what Ray queues before it only bridges a moment.
    deployment: Any = serve.deployment(
        name=NAME,
        num_replicas=int(arguments.get("replicas", 1)),
        max_ongoing_requests=config.max_requests + 8,
        max_queued_requests=config.max_requests,
        graceful_shutdown_timeout_s=config.deadline_seconds + config.upload_seconds,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if device.startswith("cuda") else 0},
    )(serve.ingress(made_in_the_replica)())
    return deployment.bind()


def run_on_ray(arguments: Mapping[str, Any], *, host: str, port: int) -> None:
    """Deploys on the cluster that RAY_ADDRESS names, or on a Ray of this machine, and serves until it is stopped.

    Args:
        arguments: As for `application`.
        host: Address to listen at.
        port: Port.

    Raises:
        FlowTokError: A port that is taken, or no Ray.
    """
    if port == 0:
        raise FlowTokError("--engine ray needs a --port of its own, not 0")
    with listen(host, port):
        pass
    bound = application(arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to another host
    cores = max(os.cpu_count() or 1, int(arguments.get("replicas", 1)))
    own: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False, "num_cpus": cores}
    try:
        ray.init(logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises a bare Exception where its processes do not start
        reason = " ".join(str(error).split())[:200]
        raise FlowTokError(f"Ray cannot be started or reached: {reason}; see RAY_ADDRESS, or try again") from error
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray sets its own, which leave at once
        signal.signal(number, lambda *_: stopped.set())
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        serve.run(bound, name=NAME, route_prefix="/")
        output.note(f"serving on Ray at http://{host}:{port}/v1, docs at http://{host}:{port}/docs")
        stopped.wait()
        # Deleting the application lets its replicas finish first.
        serve.delete(NAME)
    finally:
        serve.shutdown()
        ray.shutdown()
