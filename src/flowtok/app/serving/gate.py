"""What every request passes, whatever its route: an id, a key, limits in number, bytes and time, a log line, a count.

An ASGI middleware that knows no route. It stands outside of all error handling, so nothing leaves without its shape.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect

from flowtok.app.serving.errors import ApiError, busy, internal
from flowtok.app.serving.service import Service

LOG = logging.getLogger("flowtok.serving")
PROTECTED = "/v1/"
# Time to take an answer for who still sends when it comes.
LINGER_SECONDS = 2.0
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate:
    """Around the application."""

    def __init__(self, app: Any, service: Service, api_key: str | None = None, sends_id: bool = True) -> None:
        """Keeps what it needs.

        Args:
            app: The ASGI application.
            service: Its limits and metrics are used.
            api_key: Demanded of routes below /v1; none if left out.
            sends_id: Whether answers get their request's id here.
        """
        self._app, self._service, self._sends_id = app, service, sends_id
        self._key = None if api_key is None else _digest(f"Bearer {api_key}".encode())
        self._in_flight = 0
        self._bytes_in_flight = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, receive, send, self._service, self._weigh, self._sends_id)
        counted = get_route_path(scope).startswith(PROTECTED)
        self._in_flight += counted
        self._service.metrics.in_flight.inc(counted)
        try:
            self._check(passage, counted)
            await self._app(scope, passage.receive, passage.send)
        except ApiError as error:
            await passage.refuse(error)
        except ClientDisconnect:
            passage.gone = True
        except Exception:
            LOG.exception("a request failed", extra={"request": passage.id})
            await passage.refuse(internal())
        finally:
            self._in_flight -= counted
            self._service.metrics.in_flight.dec(counted)
            self._weigh(-passage.bytes)
            passage.end()

    def _weigh(self, more: int) -> bool:
        """Counts bytes that came in or are let go of; whether all that are here are still bearable."""
        self._bytes_in_flight += more
        self._service.metrics.bytes.inc(more)
        return self._bytes_in_flight <= self._service.config.max_bytes_in_flight

    def _check(self, passage: "_Passage", counted: bool) -> None:
        """Raises ApiError for what is refused by its head alone."""
        limits = self._service.config
        if not counted:
            return
        given = passage.header(b"authorization") or b""
        if self._key is not None and not hmac.compare_digest(_digest(given), self._key):
            raise ApiError(
                401, "a valid API key is needed, as in Authorization: Bearer KEY", code="invalid_api_key",
                kind="authentication_error", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if self._in_flight > limits.max_requests:
            self._service.metrics.refused.labels("requests").inc()
            raise busy(1)
        length = passage.header(b"content-length") or b"0"
        if length.isdigit() and int(length[:20]) > limits.max_body_bytes:
            raise passage.too_large()


def _digest(key: bytes) -> bytes:
    """As long for any key, so that comparing does not tell how long the right one is."""
    return hashlib.sha256(key).digest()


class _Passage:
    """One request on its way: what comes in is counted and timed, what goes out gets its id."""

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        service: Service,
        weigh: Callable[[int], bool],
        sends_id: bool,
    ) -> None:
        self._scope, self._receive, self._send, self._service, self._weigh = scope, receive, send, service, weigh
        self._began = time.monotonic()
        self.bytes, self.gone = 0, False
        self._sends_id, self._answered = sends_id, False
        # A request that announces no body has none.
        length, coding = self.header(b"content-length"), self.header(b"transfer-encoding")
        self._body_ended = length in (None, b"0") and coding is None
        self._status: int | None = None
        given = (self.header(b"x-request-id") or b"").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.id

    def header(self, name: bytes) -> bytes | None:
        """The first header of a name."""
        return next((value for key, value in self._scope["headers"] if key == name), None)

    def too_large(self) -> ApiError:
        """The body has too many bytes."""
        most = self._service.config.max_body_bytes
        return ApiError(413, f"the body has more than the {most:,} bytes allowed", code="request_too_large")

    async def receive(self) -> Message:
        """The next part of the body, within the limits.

        Raises:
            ApiError: 413 for too many bytes, 408 for too many seconds.
        """
        if self._body_ended:  # what may still come is that the client goes, with its answer or without
            message = await self._receive()
            self.gone = message["type"] == "http.disconnect" and not self._answered
            return message
        left = self._began + self._service.config.upload_seconds - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(
                408, f"the body did not arrive within {self._service.config.upload_seconds:g} s", code="upload_timeout"
            ) from error
        self.gone = message["type"] == "http.disconnect"
        self._body_ended = self.gone or not message.get("more_body", False)
        more = len(message.get("body", b""))
        self.bytes += more
        bearable = self._weigh(more)
        if self.bytes > self._service.config.max_body_bytes:
            raise self.too_large()
        if not bearable:
            self._service.metrics.refused.labels("bytes").inc()
            raise busy(1)
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            extra = [(b"x-content-type-options", b"nosniff")]
            if self._sends_id:
                extra.append((b"x-request-id", self.id.encode()))
            if not self._body_ended:  # else what still comes of it would have to be read before the next request
                extra.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", []), *extra]
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
            # Its end by itself: the server sends that when all before it was taken, and until then this request counts.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Throws away what comes of a body that is not wanted, for a moment.

        A connection that is closed while data comes in is reset, and its client may never see the answer.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._body_ended:
                    message = await self._receive()
                    self._body_ended = message["type"] == "http.disconnect" or not message.get("more_body", False)

    async def refuse(self, error: ApiError) -> None:
        """Answers with an error, unless an answer has begun: then only its connection can be broken off."""
        if self._status is None:
            await error.response()(self._scope, self._receive, self.send)

    def end(self) -> None:
        """Logs and counts."""
        route = getattr(self._scope.get("route"), "path", "unknown")
        status = 499 if self.gone or self._status is None else self._status
        seconds = time.monotonic() - self._began
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        LOG.info(
            "request",
            extra={
                "request": self.id,
                "method": self._scope["method"],
                "route": route,
                "status": status,
                "bytes": self.bytes,
                "seconds": round(seconds, 4),
            },
        )


class JsonLines(logging.Formatter):
    """Log records as JSON, one on each line; of prompts and pictures they hold nothing."""

    FIELDS = ("request", "method", "route", "status", "bytes", "seconds")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in self.FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)
