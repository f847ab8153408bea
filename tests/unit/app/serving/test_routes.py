"""Captions, limits, errors, figures and health of a server, over plain HTTP."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving_server import Answer, Running, running, until
from starlette.testclient import TestClient

from flowtok.app.serving.application import make_application
from flowtok.app.serving.gate import JsonLines
from flowtok.app.serving.limits import ServingConfig
from flowtok.app.serving.service import Service
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok

SECRET = "zanzibar"


@pytest.fixture(scope="module")
def server(tiny: FlowTok) -> Iterator[Running]:
    limits = {"max_pictures": 3, "max_body_bytes": 60_000, "max_pixels": 10_000, "max_prompt_characters": 40}
    with running(tiny, batch_size=2, max_steps=9, max_side=64, queue=6, **limits) as run:
        yield run
    tiny.batch_size = 1


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(file, kind)
    return file.getvalue()


def form(*files: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """A multipart body as curl and browsers send it."""
    parts = [f'name="{name}"\r\n\r\n'.encode() + value.encode() for name, value in fields.items()]
    parts += [b'name="image"; filename="x"\r\nContent-Type: image/png\r\n\r\n' + content for content in files]
    body = b"".join(b"--frontier\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return body + b"--frontier--\r\n", {"content-type": "multipart/form-data; boundary=frontier"}


def captions(server: Running, *files: bytes, **fields: str) -> Answer:
    return server.ask("POST", "/v1/images/captions", *form(*files, **fields))


def test_captions_are_those_of_caption(server: Running, tiny: FlowTok) -> None:
    """A form and JSON, one picture and several, must all give what the command line gives."""
    files = [picture(kind) for kind in ("PNG", "JPEG", "WEBP")]
    expected = [{"caption": words} for words in tiny.caption(files, 2)]
    got = captions(server, *files, steps="2")
    assert got.status == 200 and got.json["data"] == expected and got.json["model"] == "tiny", got.body
    texts = [base64.b64encode(file).decode() for file in files]
    texts[1] = f"data:image/jpeg;base64,{texts[1]}"
    assert server.ask("POST", "/v1/images/captions", {"image": texts, "steps": 2}).json["data"] == expected
    one = server.ask("POST", "/v1/images/captions", {"image": texts[0], "steps": 2})
    assert one.json["data"] == expected[:1]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_exif(exif: bytes) -> bytes:
    """A picture whose EXIF block holds these bytes."""
    plain = picture()
    head, rest = plain[:33], plain[33:]  # behind the header chunk
    chunk = b"eXIf" + exif
    return head + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest


def bomb(side: int) -> bytes:
    """A PNG whose head promises side x side pixels and whose data holds none."""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
    )


BROKEN = {
    "nothing": b"",
    "text": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "cut": picture()[:60],
    "a head and no more": b"\x89PNG\r\n\x1a\n",
    "noise after a head": b"\xff\xd8\xff\xe0" + bytes(range(256)),
    "EXIF that ends too early": with_exif(b"MM\0*"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_refused(server: Running, kind: str) -> None:
    """PostScript above all: PIL would start another program to read it."""
    got = captions(server, picture(), BROKEN[kind])
    assert got.status == 422 and got.error["code"] == "invalid_image" and got.error["param"] == "image"


@pytest.mark.parametrize("side", [101, 30_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_decoded(server: Running, side: int) -> None:
    """It has no data: a decoder would have said so instead."""
    got = captions(server, bomb(side))
    assert got.status == 413 and got.error["code"] == "image_too_large" and "10,000" in got.error["message"]


REFUSED: list[tuple[dict[str, Any], int, str | None]] = [
    ({"prompt": " \n"}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": SECRET * 6}, 400, "prompt"),
    ({"prompt": 7}, 400, "prompt"),
    ({"n": 4}, 400, "n"),
    ({"n": 0}, 400, "n"),
    ({"n": "2"}, 400, "n"),
    ({"steps": 10}, 400, "steps"),
    ({"guidance": -1}, 400, "guidance"),
    ({"seed": 2**63}, 400, "seed"),
    ({"size": "80x80"}, 400, "size"),
    ({"size": "16x32"}, 400, "size"),
    ({"size": "big"}, 400, "size"),
    ({"output_format": "gif"}, 400, "output_format"),
    ({"output_compression": 50}, 400, "output_compression"),
    ({"response_format": "url"}, 400, "response_format"),
    ({"quality": "hd"}, 400, "quality"),
    ({"partial_images": 2}, 400, "partial_images"),
    ({"stream": True, "n": 2}, 400, "n"),
    ({"sede": 7}, 400, "sede"),
    ({"model": "dall-e-9"}, 404, "model"),
]


@pytest.mark.parametrize(("fields", "status", "param"), REFUSED)
def test_what_cannot_be_drawn_is_refused_with_its_field(
    server: Running, fields: dict[str, Any], status: int, param: str | None
) -> None:
    got = server.draw(**{"prompt": f"{SECRET} cat", **fields})
    assert (got.status, got.error["param"]) == (status, param), got.body
    assert SECRET not in got.body.decode() and got.error["type"] == "invalid_request_error"
    if "sede" in fields:
        assert "did you mean seed?" in got.error["message"]


BODIES: list[tuple[bytes, str, int]] = [
    (b"{", "application/json", 400),
    (b"[1]", "application/json", 400),
    (b"[" * 50_000, "application/json", 400),
    (b'{"prompt": "\\ud800 cat", "\\ud800": 1}', "application/json", 400),
    (b'{"prompt": "cat", "guidance": NaN}', "application/json", 400),
    (b"\xff\xfe", "application/json", 400),
    (b'{"prompt": "cat"}', "text/plain", 400),
    (b"x" * 60_001, "application/json", 413),
]


@pytest.mark.parametrize(("body", "kind", "status"), BODIES)
@pytest.mark.parametrize("route", ["generations", "captions"])
def test_bodies_that_are_no_requests(server: Running, route: str, body: bytes, kind: str, status: int) -> None:
    got = server.ask("POST", f"/v1/images/{route}", body, {"content-type": kind})
    if route == "captions" and kind == "text/plain":
        status = 415
    assert got.status == status and got.error["message"], got.body


@pytest.mark.parametrize("charset", ["undefined", "idna", "nothing", "utf-7"])
def test_a_charset_that_is_none_is_no_failure_of_the_server(server: Running, charset: str) -> None:
    """Python knows codecs that decode nothing; a form may name them."""
    body, headers = form(picture(), steps="1")
    kind = f"{headers['content-type']}; charset={charset}"
    assert server.ask("POST", "/v1/images/captions", body, {"content-type": kind}).status in (200, 400)


def test_a_body_of_unknown_length_is_cut_off_too(server: Running) -> None:
    """Without Content-Length the bytes must be counted as they come."""
    connection = server.connect()
    connection.request(
        "POST", "/v1/images/generations", iter([b" " * 20_000] * 4), {"content-type": "application/json"},
        encode_chunked=True,
    )  # fmt: skip
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("files", [0, 4])
def test_too_few_and_too_many_pictures(server: Running, files: int) -> None:
    assert captions(server, *[picture()] * files).status == 400
    assert captions(server, picture(), sede="1").error["param"] == "sede"


def test_a_form_that_is_refused_is_told_why(server: Running, tiny: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgets a filename, or sends a folder, must read what to mend."""
    many = captions(server, *[picture()] * 9)
    assert (many.status, many.error["param"]) == (400, "image") and "1 to 3 pictures" in many.error["message"]
    assert "too many fields" in captions(server, picture(), **{f"x{i}": "1" for i in range(9)}).error["message"]
    cut = server.ask("POST", "/v1/images/captions", b"x" * 99, form()[1])
    assert "it is damaged" in cut.error["message"] and cut.error["code"] == "invalid_body"
    monkeypatch.setattr(tiny, "batch_size", tiny.batch_size)  # which a service changes
    client = TestClient(make_application(Service(tiny, ServingConfig())))
    body, headers = form(picture(), steps="1" * 1_100_000)
    long = client.post("/v1/images/captions", content=body, headers=headers)
    assert long.status_code == 400 and "a field is too long" in long.json()["error"]["message"]


def test_a_refusal_before_the_body_has_ended_closes_the_connection(server: Running) -> None:
    """What still comes of the body would pass for the next request; and the refusal itself must arrive."""
    large = server.ask("POST", "/v1/images/generations", b"x" * 3_000_000, {"content-type": "application/json"})
    assert large.status == 413 and large.headers["connection"] == "close"
    connection = server.connect()
    for path in ("/v1/nothing", "/v1/models"):  # no body: the connection goes on
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.read() and response.getheader("connection") is None
    connection.request("POST", "/v1/images/generations", b"{", {"content-type": "application/json"})
    assert connection.getresponse().getheader("connection") is None, "it was read to its end"
    connection.close()


def test_unknown_routes_and_methods_keep_the_shape(server: Running) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/images/generations", 405)):
        got = server.ask(method, path)
        assert got.status == status and got.error["code"] and got.headers["content-type"] == "application/json"


def test_every_answer_has_an_id_and_a_client_may_choose_it(server: Running) -> None:
    assert server.ask("GET", "/healthz").headers["x-request-id"]
    assert server.ask("GET", "/v1/x", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    odd = server.ask("GET", "/v1/x", headers={"x-request-id": "a b" * 99}).headers["x-request-id"]
    assert odd.isalnum()


def test_behind_a_proxy_that_sends_ids_an_answer_has_one(tiny: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's proxy gives each request an id and sends it back; clients would read a second one into the same header."""
    monkeypatch.setattr(tiny, "batch_size", tiny.batch_size)  # which a service changes
    client = TestClient(make_application(Service(tiny, ServingConfig()), sends_id=False))
    got = client.get("/healthz", headers={"x-request-id": "mine-7"})
    assert got.status_code == 200 and "x-request-id" not in got.headers


def test_health_figures_and_docs(server: Running) -> None:
    """Operators see that it works and how much; the docs ask no other host for anything."""
    assert server.ask("GET", "/readyz").json == {"status": "ok"} == server.ask("GET", "/healthz").json
    before = server.figure("flowtok_results_total")
    assert server.draw(n=2, steps=1).status == 200
    assert server.figure("flowtok_results_total") == before + 2
    until(lambda: server.figure("flowtok_queue") == 0)
    page = server.ask("GET", "/docs").body.decode()
    assert "POST /v1/images/generations" in page and "partial_images" in page and "<script" not in page
    assert "src=" not in page and "https://" not in page
    assert f"http://127.0.0.1:{server.port}/v1/images/captions" in page and ":8000" not in page, "examples to copy"
    described = server.ask("GET", "/openapi.json").json
    assert {"/v1/images/generations", "/v1/images/captions", "/metrics"} <= set(described["paths"])


def test_the_log_has_no_prompt_and_no_picture(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == "flowtok.serving"]
        return [json.loads(JsonLines().format(record)) for record in records]

    with caplog.at_level(logging.INFO, logger="flowtok.serving"):
        server.ask(
            "POST", "/v1/images/generations", {"prompt": f"{SECRET} cat", "steps": 1}, {"x-request-id": "logged"}
        )
        until(lambda: any(line.get("request") == "logged" for line in lines()))
    (line,) = [line for line in lines() if line.get("request") == "logged"]
    assert line["route"] == "/v1/images/generations" and line["status"] == 200 and line["level"] == "info"
    assert SECRET not in json.dumps(lines())


def test_limits_that_clash_are_said_before_anything_is_served() -> None:
    with pytest.raises(FlowTokError, match="a queue of 4 has no room .* max_pictures 10"):
        ServingConfig(queue=4)
    with pytest.raises(FlowTokError, match="batch_size must be at least 1, not 0"):
        ServingConfig(batch_size=0)
    with pytest.raises(FlowTokError, match="max_bytes_in_flight 9 has no room .* max_body_bytes 10000000"):
        ServingConfig(max_bytes_in_flight=9)
    with pytest.raises(FlowTokError, match="at most 10000, not 20000"):
        ServingConfig(max_prompt_characters=20_000)


def test_the_limits_of_the_docs_are_those_of_the_code(repository: Path) -> None:
    """Whoever plans memory or time with the table must find what it says."""
    text = (repository / "docs" / "serving.md").read_text()
    named = re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", text, re.MULTILINE)
    assert {name: float(value.replace(",", "")) for name, value in named} == vars(ServingConfig())


def test_the_key_is_asked_for_under_a_prefix_too(tiny: FlowTok) -> None:
    """Ray and other gateways put a prefix before every path, and leave it there."""
    service = Service(tiny, ServingConfig())
    client = TestClient(make_application(service, "secret"), root_path="/flowtok")
    assert client.get("/flowtok/v1/models").status_code == 401
    assert client.get("/flowtok/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
