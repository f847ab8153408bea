"""Loads a server on this machine at half, once and ten times what it can do, and says how it bears it.

First the offline rate: pictures a second of `FlowTok.generate` with the server's batch size, in a process of its own.
Then `flowtok serve`: its capacity (clients that ask again as soon as they are answered), and three loads of a constant
rate (a request at a random moment of each interval), whether or not earlier requests are answered. At the end the
offline rate again: the mean of both counts. Requests go to 127.0.0.1 only, each on a connection of its own, and nothing
bounds how many are open at once but the system's limit of files. The load generator takes a part of the same processor;
a request's time counts from the moment at which it should have been sent, and how late the generator was is judged too.
Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

PROMPTS = ["a red heart", "a smiling cat", "a green apple", "a rocket", "a house in snow", "a dog", "the sun", "pizza"]
FACTORS = (0.5, 1.0, 10.0)
# What is wanted.
LEAST_SHARE = 0.90  # of the offline rate, at 1x
MOST_SLOWER = 3.0  # p99 of what is accepted at 10x over that at 1x
MOST_GROWTH = 0.05  # of the memory from the middle third of a load to its last third; the first one warms up
MOST_LATE = (
    1.0  # seconds by which the load generator sent a request too late: beyond, the load was not what it is called
)
# Seconds of the parts beside the loads, if the loads are not shorter.
OFFLINE_SECONDS, WARM_SECONDS, CAPACITY_SECONDS = 15.0, 5.0, 15.0
STOPPING_SECONDS = 150.0  # more than the server allows itself with its usual limits
OFFLINE = """
import sys, time
from flowtok.app.options import open_model
model = open_model(sys.argv[1], "auto", "auto")  # as flowtok serve opens it
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
    statuses: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    latest_start: float = 0.0
    """How late the load generator sent a request at worst."""
    open: int = 0
    most_open: int = 0
    """Connections at once, at most."""

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the accepted requests was answered."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def growth(self) -> float:
        """How much the memory of the last third is above that of the middle one."""
        third = len(self.memory) // 3
        return median(self.memory[-third:]) / median(self.memory[third : 2 * third]) - 1 if third else float("nan")

    @property
    def unclean(self) -> int:
        """Answers that are neither a picture nor a refusal that says when to come again."""
        return sum(number for status, number in self.statuses.items() if status not in ("200", "429"))


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
        """Asks it to end, and kills it if it does not; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


async def ask(port: int, number: int, load: Load, due: float) -> None:
    """One request on a connection of its own, as whoever comes once sends it."""
    body = json.dumps({"prompt": PROMPTS[number % len(PROMPTS)], "seed": number}).encode()
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    load.sent += 1
    load.latest_start = max(load.latest_start, time.monotonic() - due)
    load.open += 1
    load.most_open = max(load.most_open, load.open)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head.encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        status = judged(answer)
    except (OSError, ValueError, LookupError, TypeError):
        status = "broken off"  # refused, cut short, no HTTP, or not in the shape of an answer
    finally:
        load.open -= 1
    if status == "200":
        load.latencies.append(time.monotonic() - due)
    load.statuses[status] += 1


def judged(answer: bytes) -> str:
    """The status of an answer, with what is missing in it.

    Raises:
        ValueError, LookupError, TypeError: It is no whole answer.
    """
    head, _, content = answer.partition(b"\r\n\r\n")
    status, said = int(head[9:12]), json.loads(content)
    if status == 200:
        return "200" if said["data"][0]["b64_json"] else "200 without a picture"
    clean = said["error"]["code"] == "rate_limit_exceeded" and b"retry-after:" in head.lower()
    return "429 without Retry-After or code" if status == 429 and not clean else str(status)


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
            await ask(server.port, number, load, time.monotonic())
            number += clients

    watching = asyncio.ensure_future(watch(server, load))
    await asyncio.gather(*(client(i) for i in range(clients)))
    watching.cancel()
    load.seconds = time.monotonic() - began
    return load


async def arrivals(server: Server, name: str, rate: float, seconds: float) -> Load:
    """Requests at their times, whether or not earlier ones are answered: one at random in each interval of 1/rate."""
    load, clock = Load(name), random.Random(0)
    times = [(number + clock.random()) / rate for number in range(max(1, round(rate * seconds)))]
    watching = asyncio.ensure_future(watch(server, load))
    began = time.monotonic()
    requests: list[asyncio.Task[None]] = []
    for number, due in enumerate(times):
        await asyncio.sleep(max(0.0, began + due - time.monotonic()))
        requests.append(asyncio.ensure_future(ask(server.port, number, load, began + due)))
    await asyncio.wait(requests)
    load.seconds = max(seconds, time.monotonic() - began)
    watching.cancel()
    return load


def offline(model: str, batch_size: int, seconds: float) -> float:
    """Pictures a second without a server, in a process of its own."""
    program = [sys.executable, "-c", OFFLINE, model, str(batch_size), str(seconds), *PROMPTS]
    return float(subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout)


async def measure(server: Server, batch_size: int, seconds: float) -> list[Load]:
    """Capacity, then the three loads."""
    await capacity(server, 2 * batch_size, min(WARM_SECONDS, seconds))
    found = await capacity(server, 2 * batch_size, min(CAPACITY_SECONDS, seconds))
    if not found.latencies:
        raise SystemExit(f"the server drew nothing: {dict(found.statuses)}")
    loads = [found]
    for factor in FACTORS:
        loads.append(await arrivals(server, f"{factor:g}x", factor * found.rate, seconds))
        await asyncio.sleep(1.0)
    return loads


def show(loads: list[Load], offline_rate: float, code: int) -> bool:
    """Prints a table of the loads, and one of what was wanted beside what came out; whether all of it came."""
    print(
        "\n| load | sent/s | pictures/s | of offline | p50 s | p99 s | statuses | open | late s | memory MB | growth |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for load in loads:
        statuses = ", ".join(f"{status}: {number}" for status, number in sorted(load.statuses.items()))
        cells = [
            load.name, f"{load.sent / load.seconds:.2f}", f"{load.rate:.2f}", f"{load.rate / offline_rate:.0%}",
            f"{load.percentile(0.5):.2f}", f"{load.percentile(0.99):.2f}", statuses, str(load.most_open),
            f"{load.latest_start:.2f}", f"{load.memory[-1]:.0f}", f"{load.growth:+.1%}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    _, _, once, ten = loads
    share, slower = once.rate / offline_rate, ten.percentile(0.99) / once.percentile(0.99)
    growths, late = [load.growth for load in loads[1:]], max(load.latest_start for load in loads[1:])
    unclean = sum(load.unclean for load in loads)
    bounds = [
        ("pictures/s at 1x over offline", f"{share:.2f}", f"{LEAST_SHARE:.2f} or more", share >= LEAST_SHARE),
        ("p99 at 10x over p99 at 1x", f"{slower:.2f}", f"{MOST_SLOWER:g} or less", slower <= MOST_SLOWER),
        ("growth of memory in a load", f"{max(growths):+.1%}", f"{MOST_GROWTH:.0%} or less",
         all(growth <= MOST_GROWTH for growth in growths)),
        ("answers but pictures and clean 429s", str(unclean), "0", unclean == 0),
        ("exit code after SIGTERM", str(code), "0", code == 0),
        ("load generator late, s", f"{late:.2f}", f"{MOST_LATE:g} or less", late <= MOST_LATE),
    ]  # fmt: skip
    print(f"\noffline: {offline_rate:.2f} pictures/s\n\n| bound | got | wanted | |\n|---|---|---|---|")
    for name, got, wanted, kept in bounds:
        print(f"| {name} | {got} | {wanted} | {'kept' if kept else 'MISSED'} |")
    return all(kept for *_, kept in bounds)


def main() -> None:
    """Reads the arguments and runs all of it; exit code 1 where a bound is missed."""
    beside = 2 * OFFLINE_SECONDS + WARM_SECONDS + CAPACITY_SECONDS
    total = beside + len(FACTORS) * 60.0
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"It takes about {beside:.0f} s and {len(FACTORS)} loads, {total / 60:.0f} minutes if nothing else is "
        "said; starting, and the queue that is still full at the end of a load, add about a minute. Exit code 1 says "
        "that a bound was missed.",
    )
    parser.add_argument("limits", nargs="*", metavar="KEY=VALUE", help="limits of the server, as for flowtok serve")
    parser.add_argument("--model", default="emoji", help="emoji if left out")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each load, from 2; 60 if left out")
    given = parser.parse_args()
    if not 2 <= given.seconds < float("inf"):
        parser.error(f"--seconds must be 2 or more, not {given.seconds:g}")
    from flowtok.app.serving.limits import ServingConfig
    from flowtok.config import apply_overrides

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each open request is a file here and in the server
    config = apply_overrides(ServingConfig(), given.limits)
    part = min(OFFLINE_SECONDS, given.seconds)
    rates = [offline(given.model, config.batch_size, part)]
    limits = " ".join(given.limits) or "usual limits"
    print(f"model {given.model}, {limits}, {os.cpu_count()} processors, at most {most} open files")
    print(f"offline: {rates[0]:.2f} pictures/s in batches of {config.batch_size}", flush=True)
    server = Server(given.model, given.limits)
    try:
        loads = asyncio.run(measure(server, config.batch_size, given.seconds))
    finally:
        code = server.stop()
    rates.append(offline(given.model, config.batch_size, part))
    print(f"offline again: {rates[1]:.2f} pictures/s", flush=True)
    sys.exit(0 if show(loads, mean(rates), code) else 1)


if __name__ == "__main__":
    main()
