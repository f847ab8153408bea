"""`flowtok serve`: what is wrong with its arguments is one line, before a model is opened."""

from __future__ import annotations

import importlib.util
import inspect
import socket
from importlib.machinery import ModuleSpec

import pytest
from running import Run, refused

from flowtok.app.pictures import generate
from flowtok.app.server import serve
from flowtok.app.ui import demo


def test_a_taken_port_is_said_at_once(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(run("serve", "--port", port), f"cannot listen at 127.0.0.1:{port}", "choose another --port")


def test_arguments_that_cannot_work(run: Run) -> None:
    refused(run("serve", "--engine", "rya"), "the engines are local, ray")
    refused(run("serve", "--replicas", "2"), "only with --engine ray")
    refused(run("serve", "emoji", "qeue=4"), "qeue", "queue")
    refused(run("serve", "queue=4"), "no room for a request of max_pictures 10")
    refused(run("serve", "nowhere", "--port", "0"), "unknown model 'nowhere'")


def test_an_open_server_without_a_key_is_warned_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever binds to all addresses must know that all may come."""
    arguments = ("serve", "nowhere", "--host", "0.0.0.0", "--port", "0")
    assert "FLOWTOK_API_KEY is not set" in run(*arguments).err
    monkeypatch.setenv("FLOWTOK_API_KEY", "secret")
    assert "FLOWTOK_API_KEY" not in run(*arguments).err


def test_a_missing_extra_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "uvicorn" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    refused(run("serve"), "needs uvicorn", "pip install 'flowtok[serve]'")


def test_all_commands_compute_in_the_same_type_if_nothing_is_said() -> None:
    """A picture of a server or of the page is drawn again by its seed: in another type it would be another one."""
    usual = {inspect.signature(command).parameters["dtype"].default for command in (generate, serve, demo)}
    assert usual == {"auto"}
