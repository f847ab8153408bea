"""Runs the application in this process until it is told to stop.

SIGTERM and Ctrl-C stop it gently: it takes no new connections, finishes what it accepted, and ends with code 0.
"""

import contextlib
import logging.config
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from flowtok.app import output
from flowtok.app.serving.application import make_application
from flowtok.app.serving.service import Service, ServingConfig
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
    server = _Server(
        uvicorn.Config(
            make_application(Service(model, config), api_key),
            log_config=None,
            access_log=False,
            server_header=False,
            # The one that is always there, and that bounds what a client may send as headers.
            http="h11",
            # Whoever is still sending by then is left; all that was accepted is done long before.
            timeout_graceful_shutdown=int(config.deadline_seconds + config.upload_seconds) + 1,
        )
    )
    address = f"[{host}]" if ":" in host else host
    server.ready = f"serving {model.name} at http://{address}:{port}/v1, docs at http://{address}:{port}/docs"
    # uvicorn raises the signal again when it is done; it has done its work then.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:
        output.note("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """Says when it is ready."""

    ready = ""

    async def startup(self, *arguments: Any, **options: Any) -> None:
        await super().startup(*arguments, **options)
        if self.started:
            output.note(self.ready)


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
