"""How the cost of a guided step grows with batch, tokens and depth, and that of a decoder with its pictures' side."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from line_plot import write_plot
from measuring import counted, race
from plain_sampling import make_parts

from flowtok.flow.follow import Schedule, followed
from flowtok.image.tokenizer import SMALL, ImageTokenizer, ImageTokenizerConfig
from flowtok.recipes import VELOCITY_NETWORKS

SCALE = 2.0


@torch.inference_mode()
def print_growth(seconds: float, plot: Path) -> None:
    """Prints the table and writes the plot."""
    print(
        "\n## How the cost grows: float32, of the first line of each\n\n"
        "| what | value | ms | times | arithmetic, times |\n|---|---|---|---|---|",
        flush=True,
    )
    base = replace(VELOCITY_NETWORKS["S"], depth=8)
    cases: dict[str, list[tuple[int, int, Any]]] = {
        "batch": [(batch, batch, base) for batch in (1, 2, 4, 8, 16)],
        "tokens": [(tokens, 2, replace(base, num_tokens=tokens)) for tokens in (38, 77, 154, 308)],
        "depth": [(depth, 2, replace(base, depth=depth)) for depth in (4, 8, 16, 32)],
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    for what, lines in cases.items():
        calls: dict[int, Callable[[], object]] = {}
        for value, batch, config in lines:
            parts = make_parts("S", velocity=config, only_velocity=True)
            ask = followed(parts.velocity, Schedule(num_steps=1), SCALE)
            calls[value] = partial(ask, torch.randn(batch, config.num_tokens, config.token_channels))
        curves |= _lines(what, calls, seconds)
    z_1LC, text_1SE = torch.randn(1, 77, 16), torch.randn(1, 77, 768)
    decoders = {pixels: partial(make_tokenizer(pixels).decode, z_1LC, text_1SE) for pixels in (64, 128, 256)}
    curves |= _lines("pixels", decoders, seconds)
    write_plot(plot, curves, "times the first value", "times its cost")
    print(f"\nPlot: {plot}", flush=True)


def make_tokenizer(pixels: int) -> ImageTokenizer:
    """A tokenizer of a small decoder for pictures of this side."""
    tokenizer = ImageTokenizer(ImageTokenizerConfig(image_size=pixels, encoder=SMALL, decoder=SMALL))
    tokenizer.initialize(torch.Generator().manual_seed(0))
    return tokenizer.eval()


def _lines(what: str, calls: dict[int, Callable[[], object]], seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Lines of the table; returns the curves of time and of arithmetic, relative to the first line."""
    taken = race({str(value): call for value, call in calls.items()}, 5, len(calls) * seconds)
    operations = {value: counted(call) for value, call in calls.items()}
    first = next(iter(calls))
    times = [(value / first, taken[str(value)] / taken[str(first)]) for value in calls]
    predicted = [(value / first, operations[value] / operations[first]) for value in calls]
    for value, (_, grown), (_, expected) in zip(calls, times, predicted, strict=True):
        print(f"| {what} | {value} | {taken[str(value)] * 1e3:.1f} | {grown:.2f} | {expected:.2f} |", flush=True)
    return {what: times, f"{what}, counted": predicted}
