"""Loads a server on this machine at half, once and ten times what it can do, and says how it bears it.

    python benchmarks/serving.py [--model emoji] [--seconds 60] [KEY=VALUE...]

First the offline rate: pictures a second of `FlowTok.generate` with the server's batch size, nothing else running. Then
`flowtok serve` in a process of its own: its capacity (clients that ask again as soon as they are answered), and three
loads with arrivals at random times (Poisson, the same ones in every run). The load generator takes a part of the same
processor. It talks to 127.0.0.1 only, and every phase ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

PROMPTS = ["a red heart", "a smiling cat", "a green apple", "a rocket", "a house in snow", "a dog", "the sun", "pizza"]
FACTORS = (0.5, 1.0, 10.0)
MOST_OPEN = 800  # connections of the load generator; below the server's own limit
OFFLINE = """
import sys, time
import flowtok
model = flowtok.load(sys.argv[1])
model.batch_size, seconds, prompts = int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
model.generate(prompts[: model.batch_size], seed=0)
began, done = time.monotonic(), 0
while time.monotonic() - began < seconds:
    batch = [prompts[(done + i) % len(prompts)] for i in range(4 * model.batch_size)]
    done += len(model.generate(batch, seed=done))
print(done / (time.monotonic() - began))
"""


@dataclass
class Load:
    """What came of one phase."""

    name: str
    sent: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0
    memory: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def growth(self) -> float:
        """How much the memory of the last third is above that of the middle one; the first warms up."""
        third = len(self.memory) // 3
        return median(self.memory[-third:]) / median(self.memory[third : 2 * third]) - 1 if third else float("nan")


class Server:
    """`flowtok serve` in a process of its own; its log goes to a file."""

    def __init__(self, model: str, limits: list[str]) -> None:
        program = [sys.executable, "-m", "flowtok.app.cli", "serve", model, *limits, "--port", "0"]
        self.log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 - it lives as long as the server
        self.process = subprocess.Popen(program, stderr=self.log)
        found = None
        while found is None:
            if self.process.poll() is not None:
                raise SystemExit(f"the server did not start: {Path(self.log.name).read_text()}")
            time.sleep(0.1)
            found = re.search(r"serving .* at http://127\.0\.0\.1:(\d+)/", Path(self.log.name).read_text())
        self.port = int(found[1])

    def memory(self) -> float:
        """Resident MB."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else float("nan")

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


async def ask(port: int, number: int, load: Load) -> None:
    """One request on a connection of its own."""
    body = json.dumps({"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}).encode()
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.monotonic()
    load.sent += 1
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        status = int(answer[9:12])
    except (OSError, ValueError):
        load.statuses[0] += 1  # refused, broken off or no HTTP
        return
    load.statuses[status] += 1
    if status == 200:
        load.latencies.append(time.monotonic() - began)
    elif b"retry-after:" not in answer.partition(b"\r\n\r\n")[0].lower():
        load.without_retry_after += 1


async def watch(server: Server, load: Load) -> None:
    """Notes the server's memory four times a second."""
    while True:
        load.memory.append(server.memory())
        await asyncio.sleep(0.25)


async def capacity(server: Server, clients: int, seconds: float) -> Load:
    """Clients that ask again as soon as they are answered."""
    load = Load("capacity")
    began = time.monotonic()

    async def client(first: int) -> None:
        number = first
        while time.monotonic() - began < seconds:
            await ask(server.port, number, load)
            number += clients

    watching = asyncio.ensure_future(watch(server, load))
    await asyncio.gather(*(client(i) for i in range(clients)))
    watching.cancel()
    load.seconds = time.monotonic() - began
    return load


async def arrivals(server: Server, name: str, rate: float, seconds: float) -> Load:
    """Requests at random times, whether or not earlier ones are answered."""
    load, clock = Load(name), random.Random(0)
    watching = asyncio.ensure_future(watch(server, load))
    began, next_at, number = time.monotonic(), 0.0, 0
    open_requests: set[asyncio.Task[None]] = set()
    while next_at < seconds:
        await asyncio.sleep(max(0.0, began + next_at - time.monotonic()))
        while len(open_requests) >= MOST_OPEN:
            await asyncio.wait(open_requests, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.ensure_future(ask(server.port, number, load))
        open_requests.add(task)
        task.add_done_callback(open_requests.discard)
        number += 1
        next_at += clock.expovariate(rate)
    if open_requests:
        await asyncio.wait(open_requests)
    load.seconds = time.monotonic() - began
    watching.cancel()
    return load


def offline(model: str, batch_size: int, seconds: float) -> float:
    """Pictures a second without a server, in a process of its own."""
    program = [sys.executable, "-c", OFFLINE, model, str(batch_size), str(seconds), *PROMPTS]
    return float(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


async def measure(server: Server, batch_size: int, seconds: float) -> list[Load]:
    """Capacity, then the three loads."""
    await capacity(server, 2 * batch_size, min(5.0, seconds))
    found = await capacity(server, 2 * batch_size, min(20.0, seconds))
    loads = [found]
    for factor in FACTORS:
        loads.append(await arrivals(server, f"{factor:g}x", factor * found.rate, seconds))
        await asyncio.sleep(1.0)
    return loads


def show(loads: list[Load], offline_rate: float, code: int) -> None:
    """Prints a table, and what was wanted beside what came out."""
    print("\n| load | sent/s | 200/s | p50 s | p99 s | 429 | other | MB | growth |")
    print("|---|---|---|---|---|---|---|---|---|")
    for load in loads:
        other = sum(count for status, count in load.statuses.items() if status not in (200, 429))
        cells = [
            load.name, f"{load.sent / load.seconds:.2f}", f"{load.rate:.2f}", f"{load.percentile(0.5):.2f}",
            f"{load.percentile(0.99):.2f}", str(load.statuses[429]), str(other), f"{load.memory[-1]:.0f}",
            f"{load.growth:+.1%}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    half, once, ten = loads[1:]
    print(f"\noffline: {offline_rate:.2f} pictures/s")
    print(f"throughput at 1x over the offline rate: {once.rate / offline_rate:.2f} (wanted: 0.90 or more)")
    print(f"p99 at 10x over p99 at 1x: {ten.percentile(0.99) / once.percentile(0.99):.2f} (wanted: 3 or less)")
    unclean = sum(
        load.without_retry_after + sum(n for status, n in load.statuses.items() if status not in (200, 429))
        for load in (half, once, ten)
    )
    print(f"answers that are neither 200 nor a 429 with Retry-After: {unclean} (wanted: 0)")
    print(f"exit code after SIGTERM: {code} (wanted: 0)")


def main() -> None:
    """Reads the arguments and runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("limits", nargs="*", metavar="KEY=VALUE", help="limits of the server, as for flowtok serve")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each load")
    given = parser.parse_args()
    from flowtok.app.serving.service import ServingConfig
    from flowtok.config import apply_overrides

    config = apply_overrides(ServingConfig(), given.limits)
    rate = offline(given.model, config.batch_size, min(20.0, given.seconds))
    print(f"offline: {rate:.2f} pictures/s in batches of {config.batch_size}", flush=True)
    server = Server(given.model, given.limits)
    try:
        loads = asyncio.run(measure(server, config.batch_size, given.seconds))
    finally:
        code = server.stop()
    show(loads, rate, code)


if __name__ == "__main__":
    main()
