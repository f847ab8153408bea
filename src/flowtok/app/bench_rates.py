"""What a machine reaches: the rate of its matrix products by type and of its memory, and how long a call takes.

Knows no model; bench.py and the scripts in benchmarks/ measure networks against these.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from flowtok.nn.packed import PackedLinear, can_pack

TYPES = ("float32", "bfloat16", "float16", "int8")


def seconds_of(call: Callable[[], object], *, limit: float, least: int = 2, device: str = "cpu") -> float:
    """The shortest of several calls in seconds, after one that is not measured.

    Args:
        call: What is measured.
        limit: Seconds after which no further call begins, the first one left out.
        least: Calls that are made in any case, the first one left out.
        device: Where it computes; a GPU is waited for.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    call()
    wait()
    best, begun, made = float("inf"), time.perf_counter(), 0
    while made < least or time.perf_counter() - begun < limit:
        start = time.perf_counter()
        call()
        wait()
        best, made = min(best, time.perf_counter() - start), made + 1
    return best


def product_rate(kind: str, rows: int, inner: int, columns: int, *, seconds: float = 0.3, device: str = "cpu") -> float:
    """Operations in a second of a matrix product (rows, inner) x (inner, columns) as a linear layer does it.

    Where layers can be packed, the better of the plain and the packed product, half of the time for each: a ceiling
    is what no way of computing it exceeds.

    Args:
        kind: One of TYPES.
        rows: Tokens.
        inner: Width that comes in.
        columns: Width that goes out.
        seconds: How long it is measured.
        device: Where.
    """
    calls: list[Callable[[], Tensor]] = []
    if kind == "int8":
        x_MK, weight_NK = (
            torch.randint(-127, 128, size, dtype=torch.int8, device=device)
            for size in ((rows, inner), (columns, inner))
        )
        calls.append(lambda: torch._int_mm(x_MK, weight_NK.t()))
    else:
        dtype = getattr(torch, kind)
        plain = nn.Linear(inner, columns, bias=False, device=device, dtype=dtype)
        x_MK = torch.randn((rows, inner), device=device).to(dtype)
        layers = [plain, PackedLinear(plain)] if torch.device(device).type == "cpu" and can_pack(dtype) else [plain]
        calls += [partial(layer, x_MK) for layer in layers]
    with torch.inference_mode():
        best = min(seconds_of(call, limit=seconds / len(calls), device=device) for call in calls)
    return 2.0 * rows * inner * columns / best


def memory_rate(*, seconds: float = 0.3, device: str = "cpu") -> float:
    """Bytes in a second that can be read from memory: the sum of 2 GB of numbers, more than caches hold."""
    numbers = torch.ones(500_000_000, device=device)
    with torch.inference_mode():
        return numbers.nbytes / seconds_of(numbers.sum, limit=seconds, device=device)
