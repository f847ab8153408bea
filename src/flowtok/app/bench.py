"""The command bench: what this machine reaches with a model, and which settings it would choose.

Rates of the machine are in bench_rates.py; a full comparison with other ways of drawing is in benchmarks/.
"""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flowtok.app import output
from flowtok.app.options import DeviceOption, JsonOption, ModelOption, check_device

if TYPE_CHECKING:
    from flowtok.pipeline import FlowTok

PROMPT, SEED = "red heart, in twemoji style", 1
SECONDS = 45.0
SHIPPED = "emoji"
FEW_STEPS = "--solver ab2 --time-grid early --steps 8"
"""Nearer to the exact flow than 20 Euler steps, measured on the shipped model alone; see docs/speed.md."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of drawing a picture, as measured.

    Attributes:
        dtype: As in --dtype.
        threads: Of the processor.
        seconds: Of a picture when warm.
        loading: Seconds to open the model.
        decibels: PSNR of its picture against that of float32; None for float32 itself.
    """

    dtype: str
    threads: int
    seconds: float
    loading: float
    decibels: float | None


def bench(model: ModelOption = "emoji", device: DeviceOption = "auto", json: JsonOption = False) -> None:
    """Measures in under a minute what this machine reaches, and says which settings to choose."""
    with output.progress(f"measuring {model}"):
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device)
        begun = time.perf_counter()
        rates = _rates(device)
        ways, left_out = _ways(model, device, begun + SECONDS)
    fastest = min(ways, key=lambda way: way.seconds)
    exact = min((way for way in ways if way.dtype != "int8"), key=lambda way: way.seconds)
    found: dict[str, Any] = {
        "model": model,
        "device": _name(device),
        "torch": torch.__version__,
        "gflops": {kind: round(rate / 1e9) for kind, rate in rates.items()},
        "pictures": [asdict(way) for way in ways],
        "not_measured": left_out,
        "auto": _auto(device),
        "choose": {"dtype": fastest.dtype, "threads": fastest.threads},
        "choose_without_int8": {"dtype": exact.dtype, "threads": exact.threads},
    }
    if json:
        output.say_json(found)
    else:
        _say(found, ways, fastest, exact)


def _rates(device: str) -> dict[str, float]:
    """Operations a second of a matrix product of 256 tokens of width 1024, by type."""
    from flowtok.app.bench_rates import TYPES, product_rate

    kinds = TYPES if device == "cpu" else TYPES[:3]
    return {kind: product_rate(kind, 256, 1024, 4096, seconds=0.5, device=device) for kind in kinds}


def _ways(name: str, device: str, until: float) -> tuple[list[Way], list[str]]:
    """A picture in each type, then with fewer threads in the fastest; types for which no time is left, by name."""
    import torch

    threads = torch.get_num_threads()
    kinds = ["float32", "bfloat16", *(["int8"] if device == "cpu" else ["float16"])]
    ways: list[Way] = []
    reference: Any = None
    while kinds and (not ways or time.perf_counter() + ways[-1].loading + 2 * ways[-1].seconds < until):
        kind = kinds.pop(0)
        begun = time.perf_counter()
        flow = _opened(name, device, kind)
        loading = time.perf_counter() - begun
        seconds, picture = _drawing(flow, until)
        reference = picture if reference is None else reference
        decibels = _decibels(picture, reference) if ways else None
        ways.append(Way(dtype=kind, threads=threads, seconds=seconds, loading=loading, decibels=decibels))
    best = min(ways, key=lambda way: way.seconds)
    if device == "cpu" and threads > 1 and time.perf_counter() + best.loading + 2 * best.seconds < until:
        flow = _opened(name, device, best.dtype)
        for fewer in sorted({1, threads // 2} - {threads}):
            torch.set_num_threads(fewer)
            seconds, _ = _drawing(flow, until)
            ways.append(Way(dtype=best.dtype, threads=fewer, seconds=seconds, loading=0.0, decibels=best.decibels))
        torch.set_num_threads(threads)
    return ways, kinds


def _opened(name: str, device: str, kind: str) -> "FlowTok":
    """The model as the commands open it: packed where it can be."""
    from flowtok.pipeline import load

    flow = load(name, device=device, dtype=kind)
    return flow.pack() if flow.can_pack else flow


def _drawing(flow: "FlowTok", until: float) -> tuple[float, Any]:
    """Seconds of a picture when warm, and the picture with the model's own settings.

    A large model's first picture counts too, rather than to draw it twice.
    """
    shortest, made, picture = float("inf"), 0, None
    while made < 2 or (made < 5 and shortest < 1.0):
        begun = time.perf_counter()
        picture = flow.generate(PROMPT, seed=SEED)[0]  # waits for the device: pixels come back to the processor
        shortest, made = min(shortest, time.perf_counter() - begun), made + 1
        if shortest > 5.0 or time.perf_counter() > until:
            break
    return shortest, picture


def _decibels(picture: Any, reference: Any) -> float:
    from flowtok.data.images import to_tensor
    from flowtok.image.losses import psnr_B

    return round(psnr_B(to_tensor(picture)[None], to_tensor(reference)[None]).item(), 1)


def _auto(device: str) -> str:
    from flowtok.nn.precision import best_dtype

    return str(best_dtype(device)).removeprefix("torch.")


def _name(device: str) -> str:
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return device


def _say(found: dict[str, Any], ways: list[Way], fastest: Way, exact: Way) -> None:
    output.say(f"{found['device']}, torch {found['torch']}")
    output.say(f"matrix products, GFLOP/s: {', '.join(f'{kind} {rate}' for kind, rate in found['gflops'].items())}\n")
    output.say(f"{'dtype':10}{'threads':>8}{'s a picture':>13}{'load, s':>9}  nearness to float32")
    for way in ways:
        near = "" if way.decibels is None else f"  {way.decibels:g} dB"
        loading = f"{way.loading:.1f}" if way.loading else "-"
        output.say(f"{way.dtype:10}{way.threads:8d}{way.seconds:13.3f}{loading:>9}{near}")
    for kind in found["not_measured"]:
        output.say(f"{kind:10}not measured: the minute was over")
    threads = f", with OMP_NUM_THREADS={fastest.threads} set before" if fastest.threads != ways[0].threads else ""
    output.say(f"\nfastest here: --dtype {fastest.dtype}{threads}")
    if fastest.dtype == "int8":
        output.say(f"fastest without rounding to int8: --dtype {exact.dtype} ({found['auto']} is what auto takes)")
    if found["model"] == SHIPPED:
        output.say(f"fewer evaluations: {FEW_STEPS}, more exact with this model than 20 steps of euler (docs/speed.md)")
