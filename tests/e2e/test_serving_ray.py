"""The same server on a local Ray: two replicas give the pictures of one model, and what is too much is refused."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from flowtok.pipeline import FlowTok

SECONDS = 600.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_replicas_on_a_local_ray(tiny: FlowTok, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "flowtok.app.cli", "serve", str(tiny_folder), "--engine", "ray", "--replicas", "2"]
    program += ["--port", str(port), "--device", "cpu", "batch_size=2", "queue=10", "gather_seconds=0.05"]
    log = tmp_path / "log"
    with log.open("wb") as file, subprocess.Popen(program, stderr=file, stdout=file, cwd=tmp_path) as process:
        try:
            end = time.monotonic() + SECONDS
            while not re.search(r"serving on Ray at", log.read_text(errors="replace")):
                assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")
                time.sleep(0.2)
            _use(port, tiny)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0, log.read_text(errors="replace")
        finally:
            process.kill()


def _use(port: int, tiny: FlowTok) -> None:
    def draw(**fields: Any) -> tuple[int, Any]:
        body = json.dumps({"prompt": "a red cat", **fields}).encode()
        request = Request(f"http://127.0.0.1:{port}/v1/images/generations", body, {"content-type": "application/json"})
        try:
            with urlopen(request, timeout=SECONDS) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()

    with ThreadPoolExecutor(16) as pool:
        seeds = range(8)
        answers = list(pool.map(lambda seed: draw(seed=seed, steps=3), seeds))
        for seed, (status, body) in zip(seeds, answers, strict=True):
            assert status == 200, body
            got = Image.open(io.BytesIO(base64.b64decode(json.loads(body)["data"][0]["b64_json"])))
            assert (np.asarray(got) == np.asarray(tiny.generate("a red cat", 3, seed=seed)[0])).all()
        status, body = draw(stream=True, partial_images=1, seed=1, steps=4)
        assert status == 200 and body.count(b"event: image_generation.partial_image") == 1
        assert body.count(b"event: image_generation.completed") == 1
        status, body = draw(n=11)
        assert status == 400 and json.loads(body)["error"]["param"] == "n"
        statuses = Counter(status for status, _ in pool.map(lambda _: draw(n=10, steps=100), range(16)))
    assert set(statuses) <= {200, 429} and statuses[200] >= 1, statuses
