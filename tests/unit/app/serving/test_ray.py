"""What Ray is told of a deployment, and its batching; a whole Ray runs in tests/e2e/test_serving_ray.py."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flowtok.app.serving.batching import Busy, Job
from flowtok.errors import FlowTokError

ray = pytest.importorskip("ray", reason="the extra ray is not installed: pip install -e '.[ray]'")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, of pydantic
    from ray.serve.schema import ServeDeploySchema

    from flowtok.app.serving import on_ray

SECONDS = 60.0


def options(**arguments: Any) -> Any:
    """What Ray is told of the deployment that these arguments make."""
    return on_ray.application(arguments)._bound_deployment


def test_the_cluster_file_of_the_docs_can_be_deployed(repository: Path) -> None:
    """Whoever copies it must not find out on a cluster that a name in it is wrong."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (repository / "docs" / "serving.md").read_text(), re.DOTALL)
    (described,) = ServeDeploySchema.model_validate(yaml.safe_load(block)).applications
    module, _, name = described.import_path.partition(":")
    assert getattr(on_ray, name) and module == on_ray.__name__
    assert len(inspect.signature(on_ray.application).parameters) == 1, "Ray calls it with args"
    made = options(**described.args)
    assert made.num_replicas == described.args["replicas"] and made.ray_actor_options["num_gpus"] == 1
    assert set(described.runtime_env["env_vars"]) == {on_ray.API_KEY}


def test_what_ray_itself_refuses_is_a_429_too() -> None:
    """A client waits and comes again after 429 and Retry-After; Ray's 503 would tell it that the server is broken."""
    made = options(limits=["max_requests=16"])
    answer = made._deployment_config.backpressure_config
    assert (answer.status_code, answer.retry_after_s) == (429, 1)
    assert made.max_ongoing_requests > 16, "the replica refuses first, in OpenAI's shape"


@pytest.mark.parametrize(
    ("device", "there", "gpus"), [("auto", 0, 0), ("auto", 4, 1), ("cpu", 4, 0), ("cuda", 0, 1), ("cuda:0", 4, 1)]
)
def test_each_replica_gets_a_gpu_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, device: str, there: int, gpus: int
) -> None:
    """Ray hides the GPUs of a machine from a replica that has not asked for one."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8, **({"GPU": there} if there else {})})
    made = options(device=device, replicas=2, cpus=3)
    assert made.ray_actor_options["num_gpus"] == gpus and made.ray_actor_options["num_cpus"] == 3
    if device == "auto" and there:
        with pytest.raises(FlowTokError, match="5 replicas take a GPU each and the cluster has 4"):
            options(device=device, replicas=5)


def test_a_replica_computes_in_what_the_other_commands_compute_in() -> None:
    assert on_ray.RayConfig().dtype == "auto"


def test_arguments_of_a_cluster_file_that_cannot_work_are_said() -> None:
    with pytest.raises(FlowTokError, match="did you mean replicas"):
        options(replica=2)
    with pytest.raises(FlowTokError, match="a queue of 4 has no room"):
        options(limits=["queue=4"])
    with pytest.raises(FlowTokError, match="at least 1, not 0"):
        options(replicas=0)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("port", [8000, 8001])
def test_a_cluster_of_others_keeps_its_serve_and_its_address(
    monkeypatch: pytest.MonkeyPatch, ours: bool, port: int
) -> None:
    """Whoever ends their server must not end the applications of others; a Serve that runs listens where it listens."""
    done: list[str] = []

    def noted(name: str) -> Any:
        return lambda *_, **__: done.append(name)

    def run(*_: Any, **__: Any) -> None:
        raise RuntimeError("the replica's trace\nno such model")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if not ours:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "0")
    for module, names in ((ray, ("init", "shutdown")), (ray.serve, ("start", "shutdown", "delete"))):
        for name in names:
            monkeypatch.setattr(module, name, noted(f"{module.__name__}.{name}"))
    monkeypatch.setattr(ray.serve, "run", run)
    monkeypatch.setattr(on_ray, "listen", lambda *_: contextlib.nullcontext())
    there = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1", port=8000))
    monkeypatch.setattr(on_ray, "_get_global_client", lambda: there)
    words = "no such model" if port == 8000 else "listens at 127.0.0.1:8000 .* --port 8000"
    with pytest.raises(FlowTokError, match=words):
        on_ray.run_on_ray({"device": "cpu"}, host="127.0.0.1", port=port)
    deleted = ["ray.serve.delete"] if port == 8000 else []
    ended = ["ray.serve.shutdown", "ray.shutdown"] if ours else ["ray.shutdown"]
    assert done == ["ray.init", "ray.serve.start", *deleted, *ended]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's batching asks for the replica that it is in."""
    settings = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=100))
    monkeypatch.setattr(ray.serve, "get_replica_context", lambda: settings)


def jobs(key: str, *payloads: int) -> list[Job]:
    return [Job(key=key, payload=payload) for payload in payloads]


@pytest.mark.usefixtures("replica")
def test_rays_batches_are_full_and_hold_nobody_who_has_left() -> None:
    """Ray batches whatever it is given at once: with a busy model, singles and what clients have left behind."""
    computed: list[list[int]] = []
    let = threading.Event()

    def run(key: str, batch: list[Job]) -> list[str]:
        computed.append([job.payload for job in batch])
        assert let.wait(SECONDS)
        return [f"{key}{job.payload}" for job in batch]

    async def use() -> None:
        batches = on_ray.RayBatches(run, batch_size=2, capacity=5, gather_seconds=0.01)
        first = asyncio.ensure_future(submitted(batches, jobs("a", 0)))
        while not computed:
            await asyncio.sleep(0.01)
        leaving = asyncio.ensure_future(submitted(batches, jobs("a", 1)))
        later = [asyncio.ensure_future(submitted(batches, jobs(key, i))) for key, i in (("a", 2), ("b", 3), ("a", 4))]
        await asyncio.sleep(0.05)  # longer than Ray gathers
        assert batches.waiting == 4
        with pytest.raises(Busy):
            batches.check_room(2)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert batches.waiting == 3
        let.set()
        assert await asyncio.gather(first, *later) == [["a0"], ["a2"], ["b3"], ["a4"]]
        assert computed == [[0], [2, 4], [3]] and not batches.waiting
        batches.close()
        assert not batches.alive

    asyncio.run(asyncio.wait_for(use(), SECONDS))


async def submitted(batches: on_ray.RayBatches, some: list[Job]) -> list[Any]:
    batches.submit(some)
    return await batches.wait(some)


@pytest.mark.usefixtures("replica")
def test_a_failing_model_on_ray_fails_its_batch_and_no_other() -> None:
    def run(key: str, batch: list[Job]) -> list[str]:
        return [str(1 // job.payload) for job in batch]

    async def use() -> None:
        batches = on_ray.RayBatches(run, batch_size=1, capacity=5)
        with pytest.raises(ZeroDivisionError):
            await submitted(batches, jobs("a", 0))
        assert await submitted(batches, jobs("a", 1)) == ["1"]

    asyncio.run(asyncio.wait_for(use(), SECONDS))


def test_a_ray_that_fails_is_said_at_once() -> None:
    """Outside a replica its batching raises: whoever waits must not wait until the deadline."""

    async def use() -> None:
        batches = on_ray.RayBatches(lambda key, batch: [], batch_size=1, capacity=5)
        with pytest.raises(ray.serve.exceptions.RayServeException):
            await submitted(batches, jobs("a", 0))

    asyncio.run(asyncio.wait_for(use(), SECONDS))
