"""How the scripts measure: calls in turns, operations as they are counted, and a line that says on what machine.

Knows no network; sampling.py and its neighbours do.
"""

import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave; a GPU that was used before is waited for."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - start, result


def race(
    calls: Mapping[str, Callable[[], object]], rounds: int, least_seconds: float = 0.0, *, warm: bool = False
) -> dict[str, float]:
    """The median seconds of each call: all are made once in each round, in an order that is drawn.

    A machine that drifts then slows all alike.

    Args:
        calls: What is measured, by name.
        rounds: How often at least.
        least_seconds: Rounds go on until this long, so that quick calls are looked at more often.
        warm: They were made before; else each is made once that is not measured.
    """
    order, draws = list(calls), random.Random(0)
    for call in calls.values() if not warm else ():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begun, made = time.perf_counter(), 0
    while made < rounds or time.perf_counter() - begun < least_seconds:
        draws.shuffle(order)
        for name in order:
            taken[name].append(clocked(calls[name])[0])
        made += 1
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def fused_attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of a CPU's fused attention, which torch does not count; takes the shapes."""
    del value
    return 4 * query[0] * query[1] * query[2] * key[2] * query[3]


def counted(call: Callable[[], object]) -> int:
    """Operations of the matrix products in a call."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: fused_attention}) as counter:
        call()
    return counter.get_total_flops()


def setting(device: str = "cpu") -> str:
    """Day, commit, processor and versions: without them a result says little."""
    here = Path(__file__).parent
    has = torch.cpu.get_capabilities()
    kinds = [kind for kind in ("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16") if has.get(kind)]
    instructions = ", ".join([torch.backends.cpu.get_cpu_capability(), *kinds])
    gpu = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; " if device.startswith("cuda") else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {_commit(here)}; {gpu}{_processor()}, {os.cpu_count()} processors, "
        f"{instructions}; torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"load {os.getloadavg()[0]:.1f} when it began"
    )


def _commit(folder: Path) -> str:
    """The commit of this checkout, and whether files differ from it."""
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
        return ask("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """Its name, family and model: virtual machines often hide the name."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor() or platform.machine()
    pairs = [line.partition(":") for line in told.read_text().splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    return (
        f"{fields.get('model name', platform.machine())} (family {fields.get('cpu family', '?')}, model "
        f"{fields.get('model', '?')}, {fields.get('cache size', '?')} cache)"
    )
