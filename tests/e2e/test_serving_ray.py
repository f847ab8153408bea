"""The same server on a local Ray: two replicas give the pictures of one model, what is too much is refused, and nothing
that was accepted is lost. And the cluster file of the docs, deployed.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import yaml
from PIL import Image

from flowtok.pipeline import FlowTok

SECONDS = 600.0
# A busy machine is no failure: Ray gives its own processes five seconds, and has them yield to all others.
PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="the extra ray is not installed: pip install -e '.[ray]'"
    ),
]


# `serve run cluster.yaml`, on a Ray without what the test does not need.
SERVE_RUN = """
import signal

import ray
from ray.serve.scripts import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background takes away
ray.init(include_dashboard=False, num_cpus=2)
cli(["run", "cluster.yaml"])
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def started(program: list[str], folder: Path, ready: Callable[[str], bool]) -> Iterator[Popen[bytes]]:
    """Starts a program and waits until its output, or what it answers, shows that it is ready."""
    log, environment = folder / "log", {**os.environ, **PATIENT}
    with log.open("wb") as file, Popen(program, stderr=file, stdout=file, cwd=folder, env=environment) as process:
        try:
            end = time.monotonic() + SECONDS
            while not ready(log.read_text(errors="replace")):
                assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")
                time.sleep(0.2)
            yield process
        except BaseException:
            print(log.read_text(errors="replace")[-8000:])
            raise
        finally:
            process.kill()


def asked(port: int, path: str, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, bytes]:
    """Status and body of one request: GET without fields."""
    body = json.dumps(fields).encode() if fields else None
    kind = {"content-type": "application/json"} if fields else {}
    try:
        with urlopen(
            Request(f"http://127.0.0.1:{port}{path}", body, {**kind, **(headers or {})}), timeout=SECONDS
        ) as got:
            return got.status, got.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def draw(port: int, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, bytes]:
    return asked(port, "/v1/images/generations", headers, prompt="a red cat", **fields)


def test_replicas_on_a_local_ray(tiny: FlowTok, tiny_folder: Path, tmp_path: Path, port: int) -> None:
    program = [sys.executable, "-m", "flowtok.app.cli", "serve", str(tiny_folder), "--engine", "ray", "--replicas", "2"]
    program += ["--port", str(port), "--device", "cpu", "batch_size=2", "queue=10", "gather_seconds=0.05"]
    program += ["--dtype", "float32"]  # as the model of these tests computes
    with started(program, tmp_path, lambda log: "serving on Ray at" in log) as process:
        with ThreadPoolExecutor(16) as pool:
            seeds = range(8)
            answers = list(pool.map(lambda seed: draw(port, seed=seed, steps=3), seeds))
            for seed, (status, body) in zip(seeds, answers, strict=True):
                assert status == 200, body
                got = Image.open(io.BytesIO(base64.b64decode(json.loads(body)["data"][0]["b64_json"])))
                assert (np.asarray(got) == np.asarray(tiny.generate("a red cat", 3, seed=seed)[0])).all()
            with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=SECONDS) as health:
                assert len(health.headers.get_all("X-Request-Id")) == 1, "Ray's proxy sends one"
            status, body = draw(port, n=11)
            assert status == 400 and json.loads(body)["error"]["param"] == "n"
            statuses = Counter(status for status, _ in pool.map(lambda _: draw(port, n=10, steps=100), range(16)))
        assert set(statuses) <= {200, 429} and statuses[200] >= 1, statuses
        _stop_while_it_draws(process, port)
        assert process.wait(SECONDS) == 0


def _stop_while_it_draws(process: Popen[bytes], port: int) -> None:
    """Streams whose heads have come are accepted: SIGTERM must not cost them their pictures."""
    with contextlib.ExitStack() as stack:
        fields = {"prompt": "a red cat", "stream": True, "partial_images": 1, "steps": 100}
        request = Request(f"http://127.0.0.1:{port}/v1/images/generations", json.dumps(fields).encode(),
                          {"content-type": "application/json"})  # fmt: skip
        streams = [stack.enter_context(urlopen(request, timeout=SECONDS)) for _ in range(8)]
        process.send_signal(signal.SIGTERM)
        for stream in streams:
            events = stream.read()
            assert events.count(b"event: image_generation.partial_image") == 1, events[-500:]
            assert events.count(b"event: image_generation.completed") == 1, events[-500:]


def test_the_cluster_file_of_the_docs_is_deployed(
    repository: Path, tiny_folder: Path, tmp_path: Path, port: int
) -> None:
    """As it stands there, but for its size: one replica of a small model on this machine's processor."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (repository / "docs" / "serving.md").read_text(), re.DOTALL)
    cluster = yaml.safe_load(block)
    cluster["http_options"] |= {"host": "127.0.0.1", "port": port}
    (described,) = cluster["applications"]
    described["args"] |= {"model": str(tiny_folder), "replicas": 1, "device": "cpu", "cpus": 1}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    program = [sys.executable, "-c", SERVE_RUN]

    def ready(log: str) -> bool:
        del log
        with contextlib.suppress(URLError, OSError):
            return asked(port, "/readyz")[0] == 200
        return False

    with started(program, tmp_path, ready) as process:
        assert draw(port)[0] == 401, "the key that it sets is asked for"
        status, body = draw(port, {"Authorization": "Bearer change-me"}, steps=1)
        assert status == 200 and json.loads(body)["data"][0]["b64_json"], body
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)
