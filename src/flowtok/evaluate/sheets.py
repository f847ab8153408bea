"""Sheets of pictures with words below: what a model draws beside originals, and what it writes below pictures.

Nothing is picked by hand: the pictures are the first of each split in a fixed order. How they are made: bench.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from flowtok.errors import FlowTokError
from flowtok.evaluate import captions
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.prompt_lists import GRID_KINDS, grid_prompts
from flowtok.files import write_file_atomically

FREE_PROMPTS = (
    "a smiling cat",
    "a sad dog",
    "a red heart",
    "a green heart",
    "a yellow car",
    "a blue star",
    "a purple apple",
    "a cat with sunglasses",
    "a rocket over the moon",
    "a birthday cake",
    "a sun behind a cloud",
    "a robot with a red nose",
    "a penguin with a hat",
    "two red cherries",
    "a house on fire",
    "a fish in a bowl",
    "a flag with a red star",
    "a tree in winter",
)
STEPS = (4, 8, 20)
SHEETS = (
    "generated_training",
    "generated_unseen",
    "generated_free",
    "generated_steps",
    *(f"generated_grid_{kind}" for kind in GRID_KINDS),
    "captions_validation",
    "captions_unseen_style",
    "reconstructions",
)
MAX_BYTES = 200_000
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIDE, _GAP, _FONT_SIZE, _LINE, _LINES = 96, 8, 11, 13, 3
_INK, _RIGHT, _WRONG = (60, 60, 60), (20, 120, 60), (170, 40, 40)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Pictures side by side and lines of words below, each in its colour."""

    pictures: tuple[Image.Image, ...]
    words: tuple[tuple[str, tuple[int, int, int]], ...]


def labelled_sheet(cells: Sequence[Cell], columns: int, title: str = "") -> Image.Image:
    """A white sheet with a title and the cells in rows of `columns`; words are wrapped, and cut after three lines.

    Raises:
        ValueError: If there are no cells or no columns.
    """
    if columns < 1 or not cells:
        raise ValueError(f"need at least one cell and one column, not {len(cells)} and {columns}")
    font = ImageFont.load_default(_FONT_SIZE)
    across = max(len(cell.pictures) for cell in cells)
    width = across * _SIDE + (across - 1) * 2
    lines = [[(line, ink) for text, ink in cell.words for line in _wrapped(text, width, font)] for cell in cells]
    height = _SIDE + 3 + max(len(own) for own in lines) * _LINE
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    head = _LINE + _GAP if title else 0
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, head + rows * (height + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_INK, font=font)
    for number, (cell, own) in enumerate(zip(cells, lines, strict=True)):
        left = _GAP + (number % columns) * (width + _GAP)
        top = head + _GAP + (number // columns) * (height + _GAP)
        for place, picture in enumerate(cell.pictures):
            shown = picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            sheet.paste(shown, (left + place * (_SIDE + 2), top))
        for place, (line, ink) in enumerate(own):
            draw.text((left, top + _SIDE + 3 + place * _LINE), line, fill=ink, font=font)
    return sheet


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """Lines that fit into `width` pixels, at most three; a word that is wider than a line is broken."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        for letter in f" {word}" if lines[-1] else word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= _LINES:
        return lines
    last = lines[_LINES - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: _LINES - 1], last + "…"]


def save_small(sheet: Image.Image, path: Path, max_bytes: int = MAX_BYTES) -> int:
    """Writes a PNG of at most `max_bytes`, with fewer colours where that is needed; returns its size in bytes.

    Raises:
        FlowTokError: Sixteen colours are still too large.
    """
    for colours in (None, 256, 128, 64, 32, 16):
        made = sheet if colours is None else sheet.quantize(colours, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        made.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= max_bytes:
            write_file_atomically(path, buffer.getvalue())
            return buffer.tell()
    raise FlowTokError(f"{path.name} does not fit into {max_bytes:,} bytes; show fewer pictures")


def generated_cells(bench: Bench, split: str, count: int) -> list[Cell]:
    """Generated picture, original, and the prompt below."""
    opened = bench.open(split)
    chosen = bench.choose(split, count)
    originals = bench.pictures(split, chosen)
    prompts = [opened.rows[i].text for i in chosen]
    drawn = bench.generate(prompts)
    return [
        Cell(pictures=(ours, original), words=((prompt, _INK),))
        for ours, original, prompt in zip(drawn, originals, prompts, strict=True)
    ]


def free_cells(bench: Bench, prompts: Sequence[str] = FREE_PROMPTS) -> list[Cell]:
    """Generated pictures for prompts in free words."""
    drawn = bench.generate(prompts)
    return [Cell(pictures=(ours,), words=((prompt, _INK),)) for ours, prompt in zip(drawn, prompts, strict=True)]


def grid_cells(bench: Bench, kind: str) -> list[Cell]:
    """Generated pictures for the prompts of a kind in the fixed list, number k of the whole list with the seed + k."""
    numbers = [k for k, one in enumerate(grid_prompts()) if one.kind == kind]
    prompts = [grid_prompts()[k].prompt for k in numbers]
    drawn = bench.generate(prompts, first=numbers[0])
    return [Cell(pictures=(ours,), words=((prompt, _INK),)) for ours, prompt in zip(drawn, prompts, strict=True)]


def steps_cells(bench: Bench) -> list[Cell]:
    """Each prompt of the names in the fixed list with every number of STEPS, from the same seed."""
    numbers = [k for k, one in enumerate(grid_prompts()) if one.kind == "name"]
    prompts = [grid_prompts()[k].prompt for k in numbers]
    drawn = [bench.with_sampling({"num_inference_steps": steps}).generate(prompts, first=numbers[0]) for steps in STEPS]
    return [
        Cell(pictures=same, words=((prompt, _INK),))
        for same, prompt in zip(zip(*drawn, strict=True), prompts, strict=True)
    ]


def caption_cells(bench: Bench, split: str, count: int) -> list[Cell]:
    """Pictures with what the model writes: green where the name is right, else red with the right name below."""
    opened = bench.open(split)
    chosen = bench.choose(split, count)
    pictures = bench.pictures(split, chosen)
    cells = []
    for picture, written, i in zip(pictures, bench.caption(pictures), chosen, strict=True):
        name = opened.rows[i].name
        right = captions.words_of(captions.split_caption(written)[0]) == captions.words_of(name)
        words = ((written, _RIGHT),) if right else ((written, _WRONG), (f"({name})", _INK))
        cells.append(Cell(pictures=(picture,), words=words))
    return cells


def reconstruction_cells(bench: Bench, count: int) -> list[Cell]:
    """Rebuilt picture beside its original, half of unseen concepts and half of the unseen style, where it has any."""
    cells = []
    splits = [split for split in ("unseen_concept", "unseen_style") if bench.holds(split)]
    for split in splits:
        opened = bench.open(split)
        chosen = bench.choose(split, count // len(splits))
        originals = bench.pictures(split, chosen)
        for ours, original, i in zip(bench.model.reconstruct(originals), originals, chosen, strict=True):
            cells.append(Cell(pictures=(ours, original), words=((opened.rows[i].text, _INK),)))
    return cells


def write_sheets(bench: Bench, folder: Path, names: Sequence[str] = SHEETS) -> list[Path]:
    """Makes sheets by name and writes them as FOLDER/NAME.png, each at most MAX_BYTES.

    A sheet of a split in which the set has no pictures is left out.

    Args:
        bench: The model and the set.
        folder: Where they go; it must exist.
        names: Which of SHEETS.
    """
    unseen, style = "unseen_concept", "unseen_style"
    make = {
        "generated_training": (
            4,
            "Training concepts: generated, original",
            ("train",),
            lambda: generated_cells(bench, "train", 20),
        ),
        "generated_unseen": (
            4,
            "Unseen concepts: generated, original",
            (unseen,),
            lambda: generated_cells(bench, unseen, 20),
        ),
        "generated_free": (6, "Free prompts", (), lambda: free_cells(bench)),
        "generated_steps": (
            4,
            f"Names, in {', '.join(map(str, STEPS[:-1]))} and {STEPS[-1]} steps",
            (),
            lambda: steps_cells(bench),
        ),
        **{
            f"generated_grid_{kind}": (
                10,
                f"Of a hundred prompts that were fixed before training: {said}",
                (),
                lambda kind=kind: grid_cells(bench, kind),
            )
            for kind, said in GRID_KINDS.items()
        },
        "captions_validation": (
            8,
            "Captions of validation pictures",
            ("validation",),
            lambda: caption_cells(bench, "validation", 32),
        ),
        "captions_unseen_style": (
            8,
            "Captions in an unseen style",
            (style,),
            lambda: caption_cells(bench, style, 24),
        ),
        "reconstructions": (
            4,
            "Unseen concepts and style: rebuilt, original",
            (unseen, style),
            lambda: reconstruction_cells(bench, 20),
        ),
    }
    paths = []
    for number, name in enumerate(names):
        bench.progress("sheets", number, len(names))
        columns, title, splits, cells = make[name]
        if splits and not any(bench.holds(split) for split in splits):
            continue
        paths.append(folder / f"{name}.png")
        save_small(labelled_sheet(cells(), columns, title), paths[-1])
    bench.progress("sheets", len(names), len(names))
    return paths
