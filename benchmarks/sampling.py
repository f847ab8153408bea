"""Pictures in a second, ours beside a plain way of doing the same and beside what the machine can do, in one run.

    python benchmarks/sampling.py [--sizes small XL] [--batches 1 8] [--parts ceilings attention pictures ...]
    python benchmarks/sampling.py --sizes XL --blocks 4 --parts ceilings pictures
    python benchmarks/sampling.py --sizes XL H --parts counts
    python benchmarks/sampling.py --device cuda

The plain way is what one would write first: float32, two forwards a step, modulation recomputed in every block of every
step, fused attention, 20 Euler steps (plain_sampling.py). `small` is the shipped model with its weights; the paper's
sizes have random ones. Takes about 12 minutes on two CPU cores with AVX-512 and 13 GB; `--sizes small` 3 minutes.
With --blocks only so many blocks of the velocity network are there, for a look at a large one in little time: its
steps are then of these blocks alone. On a GPU the sizes are XL and H and the batches 1, 8, 64 and 256.

A picture is the language encoder, the text projector, 20 guided steps and the image decoder. All steps cost the same,
so one of each way is measured after the other, in turns, at least --rounds times, and the median counts; so are the
other parts. Compiled lines say how long torch.compile takes with nothing kept from an earlier process. Arithmetic is
counted by torch as it is done. Errors are of one picture against the plain way: of the tokens relative to the way that
they go, and of the pictures in dB; those of random weights say only that the ways compute the same. What solvers with
fewer evaluations cost in exactness: solvers.py.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from growth import print_growth
from machine import print_attention, print_ceilings, print_rounding
from measuring import clocked, counted, race, setting
from plain_sampling import Parts, error_of_tokens, in_type, make_parts, picture_error, plain_flow
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flowtok.acceleration import compile_tokenizer, compile_velocity
from flowtok.flow.follow import Schedule, followed
from flowtok.nn.packed import can_pack
from flowtok.recipes import VELOCITY_NETWORKS

STEPS, SCALE = 20, 2.0
PARTS = ("counts", "ceilings", "attention", "pictures", "int8", "growth")
WAYS = ("float32", "float32 packed", "bfloat16", "bfloat16 packed", "int8",
        "float32 compiled", "bfloat16 compiled", "int8 compiled")  # fmt: skip
ON_GPU = ("float32", "bfloat16", "float32 compiled", "bfloat16 compiled")
FAST_SOLVER, FAST_GRID, FAST_STEPS = "ab2", "early", 8


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


@torch.inference_mode()
def work_of(parts: Parts) -> Work:
    """Counts what one picture takes, while it is computed."""
    velocity = parts.velocity
    rows_T = torch.zeros(2 * STEPS, device=velocity.positions_1LD.device)
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


@dataclass(kw_only=True)
class Way:
    """One way of drawing: its networks, and the seconds of their stages for a batch.

    Attributes:
        name: "plain", or one of WAYS.
        parts: What draws.
        text, step, decode: Median seconds.
        compiling: Seconds that the first step and the first picture took longer than later ones.
    """

    name: str
    parts: Parts
    text: float = 0.0
    step: float = 0.0
    decode: float = 0.0
    compiling: float = 0.0
    stages: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def picture(self, batch: int, steps: int) -> float:
        """Seconds of a picture."""
        return (self.text + steps * self.step + self.decode) / batch

    @torch.inference_mode()
    def flow(self, z_BLC: Tensor, num_steps: int = STEPS) -> Tensor:
        """The whole flow in Euler steps."""
        if self.name == "plain":
            return plain_flow(self.parts.velocity, z_BLC, [i / num_steps for i in range(num_steps + 1)], SCALE)
        return followed(self.parts.velocity, Schedule(num_steps=num_steps), SCALE)(z_BLC)


def make_ways(size: str, names: Sequence[str], device: str, blocks: int | None) -> list[Way]:
    """The plain way and ours, each with networks of its own that share their weights where they can."""
    parts = make_parts(size, device=device, blocks=blocks)
    ways = [Way(name="plain", parts=parts)]
    for name in names:
        own = in_type(parts, name.partition(" ")[0], packed=name.endswith("packed"))
        if name.endswith("compiled"):
            compile_velocity(own.velocity, device)
            compile_tokenizer(own.tokenizer)
        ways.append(Way(name=name, parts=own))
    return ways


@torch.inference_mode()
def measure(ways: list[Way], batch: int, rounds: int) -> None:
    """Fills in the seconds of all ways, each stage in turns; text and decoder, a small share, in half the rounds."""
    firsts: dict[str, float] = {}
    for way in ways:
        ids_BS, noise_BLC = way.parts.inputs(batch)
        features_BSE = way.parts.encode(ids_BS)
        z_BLC = way.parts.projector(features_BSE).sample(noise_BLC).float()
        if way.name == "plain":
            step = partial(plain_flow, way.parts.velocity, z_BLC, [0.0, 1.0 / STEPS], SCALE)
        else:  # a flow of one step costs what any of its steps does
            step = partial(followed(way.parts.velocity, Schedule(num_steps=1), SCALE), z_BLC)
        way.stages = {
            "text": partial(lambda parts, ids_BS: parts.projector(parts.encode(ids_BS)), way.parts, ids_BS),
            "step": step,
            "decode": partial(way.parts.decode, z_BLC, features_BSE),
        }
        way.stages["text"]()
        firsts[way.name] = clocked(way.stages["step"])[0] + clocked(way.stages["decode"])[0]
    for stage in ("text", "step", "decode"):
        # The plain way makes text and pixels as float32 does, with the same code.
        own = [way for way in ways if stage == "step" or way.name != "plain" or len(ways) == 1]
        least = rounds if stage == "step" else max(2, rounds // 2)
        found = race({way.name: way.stages[stage] for way in own}, least, 1.0, warm=True)
        for way in ways:
            setattr(way, stage, found.get(way.name, found.get("float32", 0.0)))
    for way in ways:
        way.compiling = firsts[way.name] - way.step - way.decode if way.name.endswith("compiled") else 0.0


def print_counts(size: str, work: Work) -> None:
    """What one picture takes."""
    giga = {name: getattr(work, name) / 1e9 for name in Work.__dataclass_fields__}
    print(
        f"\n## {size}: one picture\n\nArithmetic, GFLOP: language encoder {giga['text']:.1f}, "
        f"projector {giga['projector']:.1f}, a guided step {giga['step']:.2f}, {STEPS} of them "
        f"{STEPS * giga['step']:.0f}, decoder {giga['decoder']:.1f}; in all {work.picture() / 1e9:.0f}. "
        f"Modulations of {STEPS} steps, once for all pictures: {giga['table']:.2f}. Weights read in a step, float32: "
        f"{giga['step_bytes']:.2f} GB; that only make modulations and can be dropped: {giga['table_bytes']:.2f} GB.",
        flush=True,
    )


def print_floors(size: str, batches: list[int], work: Work, ceilings: dict[tuple[str, int], dict[str, float]]) -> None:
    """The least time of a guided step: its arithmetic at the rate of products, its weights at that of memory."""
    print("\n| batch | type | arithmetic, ms | weights, ms | floor of a step, ms |\n|---|---|---|---|---|", flush=True)
    for batch in batches:
        rates = ceilings[size, batch]
        for kind, width in {"float32": 4, "bfloat16": 2, "int8": 1}.items():
            if kind in rates:
                computed = batch * work.step / rates[kind]
                read = work.step_bytes * width / 4 / rates["memory"]
                cells = f"{computed * 1e3:.2f} | {read * 1e3:.2f} | {max(computed, read) * 1e3:.2f}"
                print(f"| {batch} | {kind} | {cells} |", flush=True)


def print_pictures(
    size: str, batches: list[int], names: Sequence[str], rounds: int, ceilings: dict[tuple[str, int], dict[str, float]],
    device: str, blocks: int | None,
) -> None:  # fmt: skip
    """Ours beside the plain way."""
    ways = make_ways(size, names, device, blocks)
    work = work_of(ways[0].parts)
    depth = ways[0].parts.velocity.config.depth
    print_counts(size if blocks is None else f"{size} with {blocks} of its {depth} blocks", work)
    if ceilings:
        print_floors(size, batches, work, ceilings)
    print(
        "\n| batch | way | s a step | s decoding | s a picture | pictures/s | times plain | GFLOP/s | of the ceiling | "
        "tokens' error | picture | s compiling |\n|---|---|---|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for batch in batches:
        measure(ways, batch, rounds)
        errors = errors_of(ways) if batch == 1 else {}
        for way in ways:
            kind = "float32" if way.name == "plain" else way.name.partition(" ")[0]
            ceiling = ceilings.get((size, batch), {}).get(kind)
            print_row(batch, way.name, way, ways[0], STEPS, work, ceiling, errors.get(way.name))
            if way.name != "plain":
                print_row(batch, f"{way.name}, {FAST_SOLVER} {FAST_STEPS}", way, ways[0], FAST_STEPS, work, ceiling)


@torch.inference_mode()
def errors_of(ways: list[Way]) -> dict[str, str]:
    """What differs from the plain way: tokens and picture, as cells of the table."""
    plain, *ours = ways
    inputs = plain.parts.inputs(1)
    start_1LC, features_1SE = plain.parts.start(inputs), plain.parts.encode(inputs[0])
    end_1LC = plain.flow(start_1LC)
    image_13YX = plain.parts.decode(end_1LC, features_1SE)
    cells: dict[str, str] = {}
    for way in ours:
        own_1LC = way.flow(way.parts.start(inputs))
        own_13YX = way.parts.decode(own_1LC, way.parts.encode(inputs[0])).float()
        tokens = error_of_tokens(own_1LC, end_1LC, start_1LC)
        cells[way.name] = f"{tokens:.1e} | {picture_error(own_13YX, image_13YX):.1f} dB"
    return cells


def print_row(
    batch: int, name: str, way: Way, plain: Way, steps: int, work: Work, ceiling: float | None,
    errors: str | None = None,
) -> None:  # fmt: skip
    """A line of the table."""
    seconds = way.picture(batch, steps)
    rate = work.picture(steps) / seconds
    share = "-" if ceiling is None else f"{rate / ceiling:.0%}"
    compiling = f"{way.compiling:.0f}" if way.compiling else "-"
    times = plain.picture(batch, STEPS) / seconds
    print(
        f"| {batch} | {name} | {way.step:.3f} | {way.decode:.3f} | {seconds:.3f} | {1 / seconds:.2f} | "
        f"{times:.2f} | {rate / 1e9:.0f} | {share} | {errors or '- | -'} | {compiling} |",
        flush=True,
    )


def can_run(way: str) -> bool:
    """False for packed ways where torch or the processor has no such product."""
    return not way.endswith("packed") or can_pack(getattr(torch, way.partition(" ")[0]))


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sizes", nargs="+", default=None, choices=["tiny", "small", *VELOCITY_NETWORKS])
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="default 1 8, on a GPU 1 8 64 256")
    parser.add_argument("--ways", nargs="*", default=None, choices=WAYS)
    parser.add_argument("--blocks", type=int, default=None, help="of the velocity network; all if left out")
    parser.add_argument("--rounds", type=int, default=5, help="how often each step is measured at least; default 5")
    parser.add_argument("--threads", type=int, default=None, help="as many as there are processors if left out")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each matrix product and line of growth")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "growth.svg")
    parser.add_argument("--parts", nargs="+", default=None, choices=PARTS)
    given = parser.parse_args()
    on_gpu = given.device.startswith("cuda")
    given.sizes = given.sizes or (["XL", "H"] if on_gpu else ["small", "XL"])
    given.batches = sorted(given.batches or ([1, 8, 64, 256] if on_gpu else [1, 8]))
    given.parts = given.parts or (["ceilings", "pictures"] if on_gpu else [part for part in PARTS if part != "counts"])
    if given.ways is None:
        given.ways = list(ON_GPU) if on_gpu else [way for way in WAYS if can_run(way)]
    if "counts" in given.parts and {"tiny", "small"} & set(given.sizes):
        parser.error("the part counts is for the paper's sizes; with the part pictures each size is counted anyway")
    if on_gpu and (set(given.parts) - {"counts", "ceilings", "pictures"} or set(given.ways) - set(ON_GPU)):
        parser.error(f"on a GPU there are the parts counts, ceilings and pictures and the ways {', '.join(ON_GPU)}")
    if given.ways and "float32" not in given.ways:
        parser.error("--ways must hold float32: the plain way shares its text and pixels")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    print(setting(given.device), flush=True)
    if "counts" in given.parts:
        for size in given.sizes:
            with FakeTensorMode():  # shapes alone: H would take 5 GB
                print_counts(size, work_of(make_parts(size)))
    ceilings: dict[tuple[str, int], dict[str, float]] = {}
    if "ceilings" in given.parts:
        shapes = {}
        for size in given.sizes:
            config = make_parts(size, only_velocity=True, on_meta=True).velocity.config
            for batch in given.batches:
                shapes[size, batch] = (2 * batch * config.num_tokens, config.width)
        ceilings = print_ceilings(shapes, given.seconds, given.device)
    if "attention" in given.parts:
        print_attention(given.seconds / 3)
    with tempfile.TemporaryDirectory() as nothing_kept:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = nothing_kept
        if "pictures" in given.parts:
            for size in given.sizes:
                print_pictures(size, given.batches, given.ways, given.rounds, ceilings, given.device, given.blocks)
        if "int8" in given.parts:
            print_rounding(given.seconds)
    if "growth" in given.parts:
        print_growth(given.seconds, given.plot)
    print(f"\n{time.perf_counter() - begun:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
