"""Runs the application in this process until it is told to stop.

SIGTERM and Ctrl-C stop it gently: it takes no new connections, finishes what it accepted, and ends with code 0.
"""

import asyncio
import contextlib
import logging.config
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowtok.app import output
from flowtok.app.serving.application import make_application
from flowtok.app.serving.limits import ServingConfig
from flowtok.app.serving.service import Service
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket.

    Raises:
        FlowTokError: The port is taken, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise FlowTokError(f"cannot listen at {host}: {error.strerror or error}; choose another --host") from error
    with bound:
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise FlowTokError(
                f"cannot listen at {host}:{port}: {error.strerror or error}; choose another --port or --host"
            ) from error
        yield bound


def run(model: FlowTok, config: ServingConfig, bound: socket.socket, *, api_key: str | None) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        model: What is served.
        config: The limits.
        bound: The socket to listen at.
        api_key: Demanded of clients, where there is one.
    """
    set_logging()
    host, port = bound.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    server = Server(Service(model, config), api_key)
    server.ready = f"serving {model.name} at http://{address}:{port}/v1, docs at http://{address}:{port}/docs"
    # uvicorn raises the signal again when it is done; it has done its work then.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        output.note("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)


class Server(uvicorn.Server):
    """uvicorn around a service. It says when it is ready, and its service when it begins to stop."""

    def __init__(self, service: Service, api_key: str | None) -> None:
        """Prepares it; see `run`."""
        limits = service.config
        super().__init__(
            uvicorn.Config(
                make_application(service, api_key),
                log_config=None,
                access_log=False,
                server_header=False,
                # Of uvicorn's two protocols the one that is always there, and that bounds what may be sent as headers.
                http=_letting_go(limits.write_seconds),
                # Whoever is still sending or reading by then is left; all that was accepted is done long before.
                timeout_graceful_shutdown=1
                + int(limits.upload_seconds + limits.deadline_seconds + limits.write_seconds),
            )
        )
        self.service, self.ready = service, ""

    async def startup(self, *arguments: Any, **options: Any) -> None:
        await super().startup(*arguments, **options)
        if self.started and self.ready:
            output.note(self.ready)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.drain()
        super().handle_exit(sig, frame)


def _letting_go(seconds: float) -> type[H11Protocol]:
    """A protocol that breaks off connections whose clients do not take what was sent within some seconds.

    A client that stops reading would otherwise hold its request and its answer for ever.
    """

    class LettingGo(H11Protocol):
        patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # Writing is paused as soon as anything waits here, and goes on when nothing does.
            transport.set_write_buffer_limits(high=0)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.patience = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._calm()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._calm()

        def _calm(self) -> None:
            if self.patience is not None:
                self.patience.cancel()
                self.patience = None

    return LettingGo


def set_logging() -> None:
    """JSON lines on stderr. Warnings of the model's own are left out: they repeat prompts."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": "flowtok.app.serving.gate.JsonLines"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "loggers": {
                "flowtok": {"level": "ERROR"},
                "flowtok.serving": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
                "uvicorn": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
            },
        }
    )
