"""How the cost of a guided step grows with batch, tokens and depth, and that of a decoder with its pictures' side.

The floor of a line is the longer of two times: its arithmetic at the measured rate of products of its width, and its
weights at the measured rate of memory. Activations are not counted: at these sizes they stay in the caches.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from line_plot import write_plot
from measuring import counted, race
from plain_sampling import make_parts

from flowtok.acceleration import pack_tokenizer, pack_velocity
from flowtok.app.bench_rates import memory_rate, product_rate
from flowtok.flow.follow import Schedule, followed
from flowtok.image.tokenizer import SMALL, ImageTokenizer, ImageTokenizerConfig
from flowtok.nn.packed import can_pack
from flowtok.recipes import VELOCITY_NETWORKS

SCALE = 2.0


@torch.inference_mode()
def print_growth(seconds: float, plot: Path) -> None:
    """Prints the table and writes the plot."""
    print(
        "\n## How the cost grows: float32, of the first line of each\n\n"
        "| what | value | ms | floor, ms | times | arithmetic, times |\n|---|---|---|---|---|---|",
        flush=True,
    )
    base = replace(VELOCITY_NETWORKS["S"], depth=8)
    memory = memory_rate(seconds=seconds)
    cases: dict[str, list[tuple[int, int, Any]]] = {
        "batch": [(batch, batch, base) for batch in (1, 2, 4, 8, 16)],
        "tokens": [(tokens, 2, replace(base, num_tokens=tokens)) for tokens in (38, 77, 154, 308)],
        "depth": [(depth, 2, replace(base, depth=depth)) for depth in (4, 8, 16, 32)],
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    counts: dict[tuple[str, int], int] = {}  # of plain layers: packed ones are not counted by torch
    rate = best_rate(base.width, seconds)
    for what, lines in cases.items():
        calls: dict[int, Callable[[], object]] = {}
        floors: dict[int, float] = {}
        for value, batch, config in lines:
            parts = make_parts("S", velocity=config, only_velocity=True)
            z_BLC = torch.randn(batch, config.num_tokens, config.token_channels)
            ask = followed(parts.velocity, Schedule(num_steps=1), SCALE)
            counts[what, value] = counted(partial(ask, z_BLC))
            read = nbytes(parts.velocity) - nbytes(*parts.velocity.time_layers())
            floors[value] = max(counts[what, value] / rate, read / memory)
            if can_pack(torch.float32):
                pack_velocity(parts.velocity)
            calls[value] = partial(ask, z_BLC)
        curves |= _lines(what, calls, floors, counts, seconds)
    z_1LC, text_1SE = torch.randn(1, 77, 16), torch.randn(1, 77, 768)
    rate = best_rate(SMALL.width, seconds)
    decoders: dict[int, Callable[[], object]] = {}
    floors = {}
    for pixels in (64, 128, 256, 512):
        tokenizer = make_tokenizer(pixels)
        decoders[pixels] = partial(tokenizer.decode, z_1LC, text_1SE)
        counts["pixels", pixels] = counted(decoders[pixels])
        floors[pixels] = max(counts["pixels", pixels] / rate, nbytes(tokenizer.decoder) / memory)
        if can_pack(torch.float32):
            pack_tokenizer(tokenizer)
    curves |= _lines("pixels", decoders, floors, counts, seconds)
    write_plot(plot, curves, "times the first value", "times its cost")
    print(f"\nPlot: {plot}", flush=True)


def make_tokenizer(pixels: int) -> ImageTokenizer:
    """A tokenizer of a small decoder for pictures of this side."""
    tokenizer = ImageTokenizer(ImageTokenizerConfig(image_size=pixels, encoder=SMALL, decoder=SMALL))
    tokenizer.initialize(torch.Generator().manual_seed(0))
    return tokenizer.eval()


def best_rate(width: int, seconds: float) -> float:
    """Operations a second of the best of the products that a network of this width asks for."""
    shapes = [(rows, *sides) for rows in (128, 512, 2048) for sides in ((width, 4 * width), (4 * width, width))]
    return max(product_rate("float32", *shape, seconds=seconds) for shape in shapes)


def nbytes(*networks: torch.nn.Module) -> int:
    """Bytes of their weights."""
    return sum(weight.nbytes for network in networks for weight in network.parameters())


def _lines(
    what: str, calls: dict[int, Callable[[], object]], floors: dict[int, float], counts: dict[tuple[str, int], int],
    seconds: float,
) -> dict[str, list[tuple[float, float]]]:  # fmt: skip
    """Lines of the table; returns the curves of time and of arithmetic, relative to the first line."""
    taken = race({str(value): call for value, call in calls.items()}, 5, len(calls) * seconds)
    first = next(iter(calls))
    times = [(value / first, taken[str(value)] / taken[str(first)]) for value in calls]
    predicted = [(value / first, counts[what, value] / counts[what, first]) for value in calls]
    for value, (_, grown), (_, expected) in zip(calls, times, predicted, strict=True):
        print(
            f"| {what} | {value} | {taken[str(value)] * 1e3:.1f} | {floors[value] * 1e3:.1f} | {grown:.2f} | "
            f"{expected:.2f} |",
            flush=True,
        )
    return {what: times, f"{what}, counted": predicted}
