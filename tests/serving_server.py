"""A real server on a free port of this machine, in a thread of the test's process, and plain requests to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flowtok.app.serving.batching import Job, Scheduler
from flowtok.app.serving.launch import Server, listen
from flowtok.app.serving.limits import ServingConfig
from flowtok.app.serving.service import Service
from flowtok.pipeline import FlowTok

SECONDS = 300.0  # far more than anything here takes; a test that hangs fails


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


@dataclass
class Running:
    """A server that runs."""

    port: int
    service: Service
    server: Server
    thread: threading.Thread

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        connection = self.connect()
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if body is None or isinstance(body, bytes) else {"content-type": "application/json"}
        try:
            connection.request(method, path, content, {**kind, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def draw(self, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/images/generations", {"prompt": "a red cat", **fields})

    def figure(self, name: str, *labels: str) -> float:
        """A figure of /metrics, summed over the lines that have these labels."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        named = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in named if all(label in line for label in labels))

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(
    model: FlowTok, *, api_key: str | None = None, batches: Any = Scheduler, **limits: Any
) -> Iterator[Running]:
    """Runs a server while the block lasts."""
    service = Service(model, ServingConfig(**limits), batches)
    server = Server(service, api_key)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        run = Running(bound.getsockname()[1], service, server, thread)
        until(lambda: server.started or not thread.is_alive())
        try:
            yield run
        finally:
            run.stop()


def until(true: Callable[[], Any]) -> None:
    """Waits for something that must happen."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@dataclass
class Held:
    """A scheduler whose model computes only while it is let; for what happens when a server is busy."""

    let: threading.Event = field(default_factory=threading.Event)
    begun: list[int] = field(default_factory=list)

    def __call__(self, run: Callable[[Any, list[Job]], list[Any]], **how: Any) -> Scheduler:
        def held(key: Any, jobs: list[Job]) -> list[Any]:
            self.begun.append(len(jobs))
            assert self.let.wait(SECONDS)
            return run(key, jobs)

        return Scheduler(held, **how)
