"""Many clients, slow ones, ones that go away, and a server that stops: nobody else may notice."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_server import SECONDS, Answer, Held, Running, until
from starlette.testclient import TestClient

from flowtok.app.serving import gate
from flowtok.app.serving.batching import Job, Scheduler
from flowtok.pipeline import FlowTok

Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.let.set()


def picture_of(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json["data"][0]["b64_json"]))))


def test_pictures_of_one_batch_are_the_same_as_alone(
    start: Start, held: Held, pool: ThreadPoolExecutor, tiny: FlowTok
) -> None:
    """Company must not change a single byte, whatever its prompts and settings; equal settings share a batch."""
    wanted = [("a red cat", 1, 2), ("king", 2, 2), ("queen", 3, 3), ("a blue dog", 4, 2), ("woman", 5, 2)]
    with start(batch_size=4, batches=held) as server:
        first = pool.submit(server.draw, steps=1)
        until(lambda: held.begun == [1])
        asked = [pool.submit(server.draw, prompt=prompt, seed=seed, steps=steps) for prompt, seed, steps in wanted]
        until(lambda: server.service.batches.waiting == 5)
        held.let.set()
        together = [picture_of(future.result()) for future in asked]
        assert first.result().status == 200 and sorted(held.begun) == [1, 1, 4]
        alone = [picture_of(server.draw(prompt=prompt, seed=seed, steps=steps)) for prompt, seed, steps in wanted]
    plain = [np.asarray(tiny.generate(prompt, steps, seed=seed)[0]) for prompt, seed, steps in wanted]
    for got, here, there in zip(together, alone, plain, strict=True):
        assert (got == here).all() and (got == there).all()


def test_a_full_queue_is_a_clean_429_and_the_others_are_served(
    start: Start, held: Held, pool: ThreadPoolExecutor
) -> None:
    with start(batch_size=1, queue=3, max_pictures=3, batches=held) as server:
        accepted = [pool.submit(server.draw, steps=1)]
        until(lambda: held.begun == [1])
        accepted.append(pool.submit(server.draw, steps=1, n=3))
        until(lambda: server.service.batches.waiting == 3)
        refused = server.draw(steps=1)
        assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.error["code"] == "rate_limit_exceeded" and refused.error["type"] == "rate_limit_error"
        streamed = server.draw(steps=1, stream=True)
        assert streamed.status == 429, "a stream is refused before it begins"
        assert server.ask("GET", "/healthz").status == 200 and server.figure("flowtok_refused_total") == 2
        held.let.set()
        assert [future.result().status for future in accepted] == [200, 200]
        assert server.draw(steps=1).status == 200


def test_what_is_not_ready_in_time_is_given_up(start: Start, held: Held) -> None:
    with start(batches=held, deadline_seconds=0.2) as server:
        late = server.draw(steps=1)
        assert late.status == 503 and late.error["code"] == "deadline_exceeded" and "retry-after" in late.headers
        events = server.draw(steps=1, stream=True)
        assert events.status == 200 and events.body.startswith(b"event: error\ndata: ")
        assert json.loads(events.body.partition(b"data: ")[2])["error"]["code"] == "deadline_exceeded"
        until(lambda: server.service.batches.waiting == 0)
        held.let.set()


@pytest.mark.parametrize("stream", [False, True])
def test_the_work_of_a_client_that_has_gone_is_dropped(
    start: Start, held: Held, pool: ThreadPoolExecutor, stream: bool
) -> None:
    """Closed browsers must not fill the queue."""
    with start(batches=held, batch_size=1) as server:
        first = pool.submit(server.draw, steps=1)
        until(lambda: held.begun == [1])
        killed = server.connect()
        body = json.dumps({"prompt": "a red cat", "n": 1 if stream else 4, "stream": stream})
        killed.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
        until(lambda: server.service.batches.waiting == (1 if stream else 4))
        assert killed.sock is not None
        killed.sock.close()
        killed.close()
        until(lambda: server.service.batches.waiting == 0)
        held.let.set()
        assert first.result().status == 200
        assert server.draw(steps=1).status == 200 and held.begun == [1, 1]
        until(lambda: server.figure("flowtok_requests_total", 'status="499"') == 1)
        assert server.figure("flowtok_requests_total", 'status="200"', "generations") == 2


def trickled(slow: socket.socket) -> bytes:
    """Sends byte after byte until the server closes the connection; what it said before."""
    said, end = b"", time.monotonic() + SECONDS
    slow.settimeout(0.05)
    while time.monotonic() < end:
        try:
            slow.send(b" ")
            more = slow.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return said
        if not more:
            return said
        said += more
    raise AssertionError("the connection stays open")


def test_a_slow_upload_is_ended_and_holds_up_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends on after the refusal must not keep the connection for ever."""
    monkeypatch.setattr(gate, "LINGER_SECONDS", 0.3)
    with start(upload_seconds=1.0) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000000\r\n\r\n{"prompt": '
        )
        assert server.draw(steps=1).status == 200
        head, _, body = trickled(slow).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408") and b"connection: close" in head.lower()
        assert json.loads(body)["error"]["code"] == "upload_timeout"
        until(lambda: server.figure("flowtok_requests_in_flight") == 0)


def test_more_requests_than_allowed_are_refused_unread(start: Start, held: Held, pool: ThreadPoolExecutor) -> None:
    """Bodies take memory before the queue is asked."""
    with start(batches=held, max_requests=2) as server:
        accepted = [pool.submit(server.draw, steps=1) for _ in range(2)]
        until(lambda: server.figure("flowtok_requests_in_flight") == 2)
        assert server.draw(steps=1).status == 429
        held.let.set()
        assert [future.result().status for future in accepted] == [200, 200]


def test_a_server_that_stops_finishes_what_it_accepted(start: Start, held: Held, pool: ThreadPoolExecutor) -> None:
    with start(batches=held, batch_size=1) as server:
        accepted = [pool.submit(server.draw, steps=1, n=2) for _ in range(3)]
        until(lambda: held.begun == [1] and server.service.batches.waiting == 5)
        server.server.handle_exit(signal.SIGTERM, None)
        ready = TestClient(server.server.config.app).get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "stopping"}), "while it still finishes"
        until(lambda: not server.server.servers or not server.server.servers[0].is_serving())
        with pytest.raises(OSError):
            server.draw(steps=1)
        held.let.set()
        answers = [future.result() for future in accepted]
    assert [(answer.status, len(answer.json["data"])) for answer in answers] == [(200, 2)] * 3


def test_a_failing_model_tells_its_clients_nothing(start: Start) -> None:
    """No trace, no path and no prompt leaves the server, and it goes on."""
    failing = [True]

    def batches(run: Callable[[Any, list[Job]], list[Any]], **how: Any) -> Scheduler:
        def sometimes(key: Any, jobs: list[Job]) -> list[Any]:
            if failing:
                raise RuntimeError(f"{__file__}: {jobs[0].payload}")
            return run(key, jobs)

        return Scheduler(sometimes, **how)

    with start(batches=batches) as server:
        failed = server.draw(prompt="zanzibar cat", steps=1)
        assert failed.status == 500 and failed.error["type"] == "server_error"
        streamed = server.draw(prompt="zanzibar cat", steps=1, stream=True)
        for body in (failed.body, streamed.body):
            assert not any(word in body for word in (b"zanzibar", b"Traceback", b".py", b"RuntimeError"))
        failing.clear()
        assert server.draw(steps=1).status == 200
