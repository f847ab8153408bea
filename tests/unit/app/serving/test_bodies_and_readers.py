"""Uploads and answers beside the model: in time, in bounded memory, and nothing opened for nothing."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image
from serving_server import SECONDS, Answer, Held, Running, until

from flowtok.app.serving import service

Start = Callable[..., AbstractContextManager[Running]]
KIND = {"content-type": "multipart/form-data; boundary=frontier"}


@dataclass
class Stuck:
    """A function that goes on only when it is let."""

    real: Callable[..., Any]
    let: threading.Event = field(default_factory=threading.Event)
    begun: list[None] = field(default_factory=list)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.begun.append(None)
        assert self.let.wait(SECONDS)
        return self.real(*arguments, **options)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Stuck]]:
    """Makes the opening of uploads, or the packing of answers, take as long as a test wants."""
    made: list[Stuck] = []

    def make(name: str) -> Stuck:
        made.append(Stuck(getattr(service, name)))
        monkeypatch.setattr(service, name, made[-1])
        return made[-1]

    yield make
    for one in made:
        one.let.set()


def form(number: int = 1) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 30, 60)).save(file, "PNG")
    head = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return (head + file.getvalue() + b"\r\n") * number + b"--frontier--\r\n"


def caption(server: Running, number: int = 1) -> Answer:
    return server.ask("POST", "/v1/images/captions", form(number), KIND)


def test_a_picture_that_takes_long_to_open_is_given_up_in_time(start: Start, stuck: Callable[[str], Stuck]) -> None:
    """The deadline is the client's: what its time went to does not matter to it."""
    opening = stuck("open_upload")
    with start(deadline_seconds=0.3) as server:
        late = caption(server)
        assert late.status == 503 and late.error["code"] == "deadline_exceeded" and opening.begun
        opening.let.set()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_long_to_pack_is_given_up_in_time(
    start: Start, stuck: Callable[[str], Stuck], stream: bool
) -> None:
    packing = stuck("encode")
    with start(deadline_seconds=4.0) as server:
        late = server.draw(steps=1, stream=stream)
        assert packing.begun, "it was drawn in time"
        assert b"deadline_exceeded" in late.body and late.status == (200 if stream else 503)
        packing.let.set()


def test_answers_do_not_wait_behind_uploads(
    start: Start, stuck: Callable[[str], Stuck], pool: ThreadPoolExecutor
) -> None:
    """Large uploads must not hold up those who only want a picture."""
    opening = stuck("open_upload")
    with start() as server:
        reading = [pool.submit(caption, server) for _ in range(4)]
        until(lambda: len(opening.begun) == 2)
        assert server.draw(steps=1).status == 200
        opening.let.set()
        assert [one.result().status for one in reading] == [200] * 4


def test_nothing_is_opened_that_has_no_room(
    start: Start, stuck: Callable[[str], Stuck], pool: ThreadPoolExecutor
) -> None:
    """Opening costs more than refusing: a full server must not do it for those it sends away."""
    opening, held = stuck("open_upload"), Held()
    with start(batches=held, batch_size=1, queue=3, max_pictures=3) as server:
        first = pool.submit(server.draw, steps=1)
        until(lambda: held.begun == [1])
        drawing = pool.submit(server.draw, steps=1, n=2)
        until(lambda: server.service.batches.waiting == 2)
        refused = caption(server, 2)
        assert refused.status == 429 and "retry-after" in refused.headers and not opening.begun
        reading = pool.submit(caption, server, 1)
        until(lambda: len(opening.begun) == 1)
        assert caption(server).status == 429 and server.draw(steps=1).status == 429, "the last place is taken"
        assert len(opening.begun) == 1
        opening.let.set()
        until(lambda: server.service.batches.waiting == 3)
        held.let.set()
        assert {first.result().status, drawing.result().status, reading.result().status} == {200}
        assert caption(server, 3).status == 200, "places are given back"


def begun(server: Running, length: int, sent: bytes, kind: str = "application/json") -> Any:
    """A request whose body has begun and does not end."""
    connection = server.connect()
    connection.putrequest("POST", "/v1/images/captions")
    connection.putheader("content-type", kind)
    connection.putheader("content-length", str(length))
    connection.endheaders(sent)
    return connection


def test_all_bodies_together_are_bounded(start: Start) -> None:
    """Each within its own limit, hundreds of bodies would still fill the memory."""
    with start(max_body_bytes=20_000, max_bytes_in_flight=30_000) as server:
        slow = [begun(server, 20_000, b" " * 14_000) for _ in range(2)]
        until(lambda: server.figure("flowtok_bytes_in_flight") == 28_000)
        body = json.dumps({"prompt": "a red cat" + " " * 3_000}).encode()
        refused = server.ask("POST", "/v1/images/generations", body, {"content-type": "application/json"})
        assert refused.status == 429 and "retry-after" in refused.headers
        assert server.draw(steps=1).status == 200, "what still has room is served"
        for one in slow:
            one.close()
        until(lambda: server.figure("flowtok_bytes_in_flight") == 0)


def test_a_client_that_leaves_while_it_sends_is_no_failure(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """It happens all day; a trace for each would hide the one that matters."""
    with caplog.at_level(logging.INFO, logger="flowtok.serving"), start() as server:
        for kind in (KIND["content-type"], "application/json"):
            begun(server, 10_000, form()[:60], kind).close()
        until(lambda: sum(getattr(record, "status", None) == 499 for record in caplog.records) == 2)
        assert server.figure("flowtok_requests_total", 'status="499"') == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_is_let_go_of(start: Start, stream: bool) -> None:
    """Its answer, its place among the requests and its connection would be held for ever; a slow reader is served."""
    body = json.dumps({"prompt": "a red cat", "size": "256x256", "steps": 3, "stream": stream, "seed": 1,
                       **({"partial_images": 2} if stream else {"n": 3})}).encode()  # fmt: skip
    head = (
        b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )

    def asked(server: Running) -> socket.socket:
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", server.port))
        reader.settimeout(SECONDS)
        reader.sendall(head + body)
        return reader

    def read(reader: socket.socket) -> bytes:
        return b"".join(iter(lambda: reader.recv(4096), b""))

    def small_buffers(server: Running) -> None:
        """So that the system holds little between the server and its client."""
        for listening in server.server.servers[0].sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    with start() as server:
        small_buffers(server)
        with asked(server) as slow:
            until(lambda: server.figure("flowtok_results_total") == (1 if stream else 3))
            time.sleep(0.3)  # longer than packing takes
            assert server.figure("flowtok_requests_in_flight") == 1, "an answer that is not taken is no answer yet"
            whole = read(slow)
        until(lambda: server.figure("flowtok_requests_in_flight") == 0)
        assert len(whole) > 50_000 and whole.rstrip().endswith(b"0" if stream else b"}")
    with start(write_seconds=0.5) as server:
        small_buffers(server)
        open_here = server.server.server_state.connections
        with asked(server) as stalled:
            until(lambda: open_here)
            until(lambda: not open_here)
            until(lambda: server.figure("flowtok_requests_in_flight") == 0)
            assert len(read(stalled)) < len(whole), "what it was not sent is gone"
        assert server.draw(steps=1).status == 200 and server.service.batches.waiting == 0
