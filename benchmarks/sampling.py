"""Pictures in a second, ours beside a plain way of doing the same and beside what the machine can do, in one run.

    python benchmarks/sampling.py [--sizes small XL] [--batches 1 8] [--parts ceilings attention pictures ...]

The plain way is what one would write first: float32, two forwards a step, modulation recomputed in every block of every
step, fused attention, 20 Euler steps. It is in this file. `small` is the shipped model with its weights; the paper's
sizes have random ones. Takes 6 to 9 minutes on two CPU cores with AVX-512, 9 GB of memory; without XL one minute.

A picture is the language encoder, the text projector, 20 guided steps and the image decoder. All steps cost the same,
so at batch 1 all of them are run and at other batches --steps of them, of which the shortest counts. Arithmetic is
counted by torch as it is done. Errors are against the plain way: of the tokens relative to the way that they go, and of
the pictures in dB. What solvers with fewer evaluations cost in exactness: benchmarks/solvers.py.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from line_plot import write_plot
from plain_sampling import Parts, error_of_tokens, make_parts, picture_error, plain_flow, rounded
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowtok.app.bench_rates import TYPES, memory_rate, product_rate, seconds_of
from flowtok.flow.follow import Schedule, followed, table_for
from flowtok.flow.guidance import guided
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.nn import attention
from flowtok.nn.int8 import Int8Linear
from flowtok.recipes import VELOCITY_NETWORKS

STEPS, SCALE = 20, 2.0
PARTS = ("ceilings", "attention", "pictures", "int8", "growth", "compile")
FAST_SOLVER, FAST_GRID, FAST_STEPS = "ab2", "uniform", 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations of the parts of one picture, and bytes of float32 weights that a step reads.

    Attributes:
        text: Language encoder.
        projector: Text projector.
        step: A guided step, both branches.
        table: Modulations of 20 steps, once for all pictures.
        decoder: Tokens to pixels.
        step_bytes: Weights of a step.
        table_bytes: Weights that only make modulations.
    """

    text: int
    projector: int
    step: int
    table: int
    decoder: int
    step_bytes: int
    table_bytes: int

    def picture(self, steps: int = STEPS) -> int:
        """Operations of a picture without the table."""
        return self.text + self.projector + steps * self.step + self.decoder


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


@torch.inference_mode()
def work_of(parts: Parts) -> Work:
    """Counts what one picture takes, while it is computed."""
    velocity = parts.velocity
    rows_T = torch.zeros(2 * STEPS)
    ids_1S, noise_1LC = parts.inputs(1)
    features_1SE = parts.encode(ids_1S)
    modulation = velocity.modulation(rows_T[:2], rows_T[:2].bool())
    time_bytes = sum(weight.numel() * 4 for layer in velocity.time_layers() for weight in layer.parameters())
    return Work(
        text=counted(lambda: parts.encode(ids_1S)),
        projector=counted(lambda: parts.projector(features_1SE)),
        step=counted(lambda: velocity.forward_modulated(noise_1LC.expand(2, -1, -1), modulation)),
        table=counted(lambda: velocity.modulation(rows_T, rows_T.bool())),
        decoder=counted(lambda: parts.decode(noise_1LC, features_1SE)),
        step_bytes=sum(weight.numel() * 4 for weight in velocity.parameters()) - time_bytes,
        table_bytes=time_bytes,
    )


# Ceilings


def print_ceilings(widths: dict[str, tuple[int, int]], seconds: float) -> dict[tuple[str, int], dict[str, float]]:
    """The rate of matrix products of each size's own shapes; returns operations a second by (size, batch) and type."""
    print("\n## What the machine reaches: matrix products, GFLOP/s\n", flush=True)
    print(f"| size | batch | {' | '.join(TYPES)} |\n|---|---|{'---|' * len(TYPES)}", flush=True)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for (size, batch), (rows, width) in widths.items():
        shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        rates = {kind: max(product_rate(kind, rows, *shape, seconds=seconds) for shape in shapes) for kind in TYPES}
        found[size, batch] = rates
        print(f"| {size} | {batch} | {' | '.join(f'{rates[kind] / 1e9:.0f}' for kind in TYPES)} |", flush=True)
    print(f"\nMemory is read at {memory_rate(seconds=seconds) / 1e9:.1f} GB/s.", flush=True)
    return found


def print_attention(seconds: float) -> None:
    """Fused attention beside the written-out softmax."""
    print("\n## Attention of 16 heads of width 64: milliseconds fused / written out\n", flush=True)
    print("| tokens | float32, batch 1 | batch 16 | bfloat16, batch 1 | batch 16 | chosen |\n|---|---|---|---|---|---|")
    for tokens in (32, 77, 154, 334, 410):
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 16):
                qkv = [torch.randn(batch, 16, tokens, 64).to(dtype) for _ in range(3)]
                fused = seconds_of(
                    lambda qkv=qkv: torch.nn.functional.scaled_dot_product_attention(*qkv), limit=seconds
                )
                written = seconds_of(lambda qkv=qkv: written_out(qkv), limit=seconds)
                cells.append(f"{fused * 1e3:.2f} / {written * 1e3:.2f}")
        chosen = "written out" if tokens <= attention.LONGEST_WRITTEN_OUT else "fused"
        print(f"| {tokens} | {' | '.join(cells)} | {chosen} |", flush=True)


def written_out(qkv: list[Tensor]) -> Tensor:
    """The other of the two ways in nn/attention.py, for any length."""
    query, key, value = qkv
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1) @ value


# Pictures


@dataclass(kw_only=True)
class Measured:
    """Seconds of the parts of a batch of pictures, and what came out where all steps were run."""

    text: float
    step: float
    decode: float
    z_BLC: Tensor | None = None
    image_B3YX: Tensor | None = None

    def picture(self, batch: int, steps: int) -> float:
        """Seconds of a picture."""
        return (self.text + steps * self.step + self.decode) / batch


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@torch.inference_mode()
def measure(parts: Parts, inputs: tuple[Tensor, Tensor], steps: int, *, plain: bool, whole: bool) -> Measured:
    """Draws a batch of pictures: with `whole` all steps of one flow, else a few, of which the shortest counts."""
    ids_BS, noise_BLC = inputs
    parts.projector(parts.encode(ids_BS[:1]))
    text_seconds, features_BSE = clocked(lambda: parts.encode(ids_BS))
    projected, tokens = clocked(lambda: parts.projector(features_BSE))
    z_BLC = tokens.sample(noise_BLC).float()
    if plain:
        run = lambda z_BLC, times: plain_flow(parts.velocity, z_BLC, times, SCALE)  # noqa: E731
    else:
        table = table_for(parts.velocity, Schedule(num_steps=STEPS))
        dtype = next(parts.velocity.parameters()).dtype
        ask = guided(lambda z_BLC, t, null_B: table(z_BLC.to(dtype), t, null_B).float(), SCALE)
        run = lambda z_BLC, times: ours(ask, z_BLC, times)  # noqa: E731
    times = [i / STEPS for i in range(STEPS + 1)]
    run(z_BLC, times[:2])
    end_BLC: Tensor | None = None
    if whole:
        seconds, end_BLC = clocked(lambda: run(z_BLC, times))
        # Small networks are too quick for one look.
        again = 0 if seconds > 1.0 else 3
        step = min([seconds, *(clocked(lambda: run(z_BLC, times))[0] for _ in range(again))]) / STEPS
    else:
        step = min(clocked(lambda k=k: run(z_BLC, times[k : k + 2]))[0] for k in range(steps))
    decode = Parts.decode
    last_BLC = z_BLC if end_BLC is None else end_BLC
    decode(parts, last_BLC[:1], features_BSE[:1])
    decoding, image_B3YX = clocked(lambda: decode(parts, last_BLC, features_BSE))
    return Measured(
        text=text_seconds + projected, step=step, decode=decoding, z_BLC=end_BLC,
        image_B3YX=image_B3YX.float() if whole else None,
    )  # fmt: skip


def ours(ask: Callable[[Tensor, float], Tensor], z_BLC: Tensor, times: list[float]) -> Tensor:
    """Euler steps as the package makes them."""
    for start, end in pairwise(times):
        z_BLC = z_BLC + (end - start) * ask(z_BLC, start)
    return z_BLC


def print_pictures(
    size: str, batches: list[int], steps: int, ceilings: dict[tuple[str, int], dict[str, float]]
) -> None:
    """Ours beside the plain way."""
    parts = make_parts(size)
    work = work_of(parts)
    giga = {name: getattr(work, name) / 1e9 for name in Work.__dataclass_fields__}
    print(
        f"\n## {size}: one picture\n\nArithmetic, GFLOP: language encoder {giga['text']:.1f}, "
        f"projector {giga['projector']:.1f}, a guided step {giga['step']:.2f}, {STEPS} of them "
        f"{STEPS * giga['step']:.0f}, decoder {giga['decoder']:.1f}; in all {work.picture() / 1e9:.0f}. "
        f"Modulations of {STEPS} steps, once for all pictures: {giga['table']:.2f}. Weights read in a step, float32: "
        f"{giga['step_bytes']:.2f} GB; that only make modulations and can be dropped: {giga['table_bytes']:.2f} GB.\n",
        flush=True,
    )
    print(
        "| batch | way | s a step | s a picture | times plain | GFLOP/s | of the ceiling | tokens' error | picture |\n"
        "|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    found: dict[tuple[int, str], Measured] = {}
    inputs = {batch: parts.inputs(batch) for batch in batches}
    for kind in ("plain", "float32", "bfloat16", "int8"):
        # int8 comes last: it replaces the float32 layers in place.
        own = rounded(parts, kind)
        for batch in batches:
            found[batch, kind] = measure(own, inputs[batch], steps, plain=kind == "plain", whole=batch == 1)
            plain, this = found[batch, "plain"], found[batch, kind]
            ceiling = ceilings.get((size, batch), {}).get("float32" if kind == "plain" else kind)
            print_row(batch, kind, plain, this, STEPS, work, ceiling, parts.start(inputs[1]) if batch == 1 else None)
            if kind in ("float32", "int8"):
                print_row(batch, f"{kind}, {FAST_SOLVER} {FAST_STEPS}", plain, this, FAST_STEPS, work, ceiling, None)
        del own


def print_row(
    batch: int, way: str, plain: Measured, this: Measured, steps: int, work: Work, ceiling: float | None,
    start_BLC: Tensor | None,
) -> None:  # fmt: skip
    """A line of the table."""
    seconds = this.picture(batch, steps)
    rate = work.picture(steps) / seconds
    tokens = picture = "-"
    if start_BLC is not None and this is not plain and None not in (this.z_BLC, plain.z_BLC):
        tokens = f"{error_of_tokens(this.z_BLC, plain.z_BLC, start_BLC):.1e}"
        picture = f"{picture_error(this.image_B3YX, plain.image_B3YX):.1f} dB"
    share = "-" if ceiling is None else f"{rate / ceiling:.0%}"
    print(
        f"| {batch} | {way} | {this.step:.3f} | {seconds:.3f} | {plain.picture(batch, STEPS) / seconds:.2f} | "
        f"{rate / 1e9:.0f} | {share} | {tokens} | {picture} |",
        flush=True,
    )


# int8 beside torchao


@torch.inference_mode()
def print_rounding(seconds: float) -> None:
    """A linear layer of XL in float32, in our int8, and in torchao's, where that is installed."""
    print("\n## One linear layer of XL, 1152 to 4608: ms, times float32, error\n", flush=True)
    print("| tokens | layer | ms | times float32 | error |\n|---|---|---|---|---|", flush=True)
    for tokens in (154, 1232):
        exact = torch.nn.Linear(1152, 4608)
        x_1MK = torch.randn(1, tokens, 1152)
        layers: dict[str, Callable[[Tensor], Tensor]] = {"float32": exact, "int8, ours": Int8Linear(exact)}
        try:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        except ImportError:
            print("| - | torchao is not installed (pip install torchao) | | | |", flush=True)
        else:
            theirs = copy.deepcopy(exact)
            quantize_(theirs, Int8DynamicActivationInt8WeightConfig())
            layers |= {"int8, torchao": theirs, "int8, torchao, compiled": torch.compile(theirs)}
        reference, first = exact(x_1MK), None
        for name, layer in layers.items():
            took = seconds_of(lambda: layer(x_1MK), limit=seconds)  # noqa: B023
            first = first or took
            error = ((layer(x_1MK) - reference).square().mean() / reference.square().mean()).sqrt().item()
            print(f"| {tokens} | {name} | {took * 1e3:.2f} | {first / took:.2f} | {error:.1e} |", flush=True)


# How the cost grows


@torch.inference_mode()
def print_growth(seconds: float, plot: Path) -> None:
    """A guided step of a small network with batch, tokens and depth, and a decoder with the side of its pictures."""
    print(
        "\n## How the cost grows: float32, of the first line of each\n\n"
        "| what | value | ms | times | arithmetic, times |\n|---|---|---|---|---|",
        flush=True,
    )
    base = replace(VELOCITY_NETWORKS["S"], depth=8)
    cases: dict[str, list[tuple[Any, int, Any]]] = {
        "batch": [(batch, batch, base) for batch in (1, 2, 4, 8, 16)],
        "tokens": [(tokens, 2, replace(base, num_tokens=tokens)) for tokens in (38, 77, 154, 308)],
        "depth": [(depth, 2, replace(base, depth=depth)) for depth in (4, 8, 16, 32)],
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    for what, lines in cases.items():
        calls: list[tuple[int, Callable[[], object]]] = []
        for value, batch, config in lines:
            parts = make_parts("S", velocity=config, only_velocity=True)
            ask = followed(parts.velocity, Schedule(num_steps=1), SCALE)
            calls.append((value, partial(ask, torch.randn(batch, config.num_tokens, config.token_channels))))
        curves |= print_growth_lines(what, calls, seconds)
    z_1LC, text_1SE = torch.randn(1, 77, 16), torch.randn(1, 77, 768)
    decoders = [(pixels, partial(make_tokenizer(pixels).decode, z_1LC, text_1SE)) for pixels in (64, 128, 256)]
    curves |= print_growth_lines("pixels", decoders, seconds)
    write_plot(plot, curves, "times the first value", "times its cost")
    print(f"\nPlot: {plot}", flush=True)


def make_tokenizer(pixels: int) -> ImageTokenizer:
    """A tokenizer of a small decoder for pictures of this side."""
    from flowtok.image.tokenizer import SMALL, ImageTokenizerConfig

    tokenizer = ImageTokenizer(ImageTokenizerConfig(image_size=pixels, encoder=SMALL, decoder=SMALL))
    tokenizer.initialize(torch.Generator().manual_seed(0))
    return tokenizer.eval()


def print_growth_lines(
    what: str, calls: list[tuple[int, Callable[[], object]]], seconds: float
) -> dict[str, list[tuple[float, float]]]:
    """Lines of the table; returns the curves of time and of arithmetic, relative to the first line."""
    times: list[tuple[float, float]] = []
    predicted: list[tuple[float, float]] = []
    for value, call in calls:
        took, operations = seconds_of(call, limit=seconds), counted(call)
        if not times:
            first_value, first_took, first_operations = value, took, operations
        times.append((value / first_value, took / first_took))
        predicted.append((value / first_value, operations / first_operations))
        print(f"| {what} | {value} | {took * 1e3:.1f} | {times[-1][1]:.2f} | {predicted[-1][1]:.2f} |", flush=True)
    return {what: times, f"{what}, counted": predicted}


def print_compiled() -> None:
    """torch.compile of the shipped model: time to the first picture, and from how many pictures on it pays."""
    import flowtok

    print("\n## torch.compile, the shipped model, batch 1\n", flush=True)
    model = flowtok.load("emoji")
    eager = seconds_of(lambda: model.generate("a red heart", seed=1), limit=2.0)
    first, _ = clocked(lambda: model.compile().generate("a red heart", seed=1))
    warm = seconds_of(lambda: model.generate("a red heart", seed=1), limit=2.0)
    pays = f"pays from {first / (eager - warm):.0f} pictures on" if warm < eager else "never pays here"
    print(f"Eager {eager:.3f} s a picture; compiled {first:.1f} s to the first, then {warm:.3f} s: {pays}.", flush=True)


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "XL"], choices=["tiny", "small", *VELOCITY_NETWORKS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=2, help="steps that are measured at batches above 1; default 2")
    parser.add_argument("--threads", type=int, default=None, help="as many as there are processors if left out")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each matrix product and line of growth")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "growth.svg")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    given = parser.parse_args()
    if 1 not in given.batches:
        parser.error("--batches must hold 1: errors are stated there")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} processors", flush=True)
    ceilings: dict[tuple[str, int], dict[str, float]] = {}
    if "ceilings" in given.parts:
        shapes = {}
        for size in given.sizes:
            config = make_parts(size, only_velocity=True, on_meta=True).velocity.config
            for batch in given.batches:
                shapes[size, batch] = (2 * batch * config.num_tokens, config.width)
        ceilings = print_ceilings(shapes, given.seconds)
    if "attention" in given.parts:
        print_attention(given.seconds / 3)
    if "pictures" in given.parts:
        for size in given.sizes:
            print_pictures(size, sorted(given.batches), given.steps, ceilings)
    if "int8" in given.parts:
        print_rounding(given.seconds)
    if "growth" in given.parts:
        print_growth(given.seconds, given.plot)
    if "compile" in given.parts:
        print_compiled()
    print(f"\n{time.perf_counter() - begun:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
