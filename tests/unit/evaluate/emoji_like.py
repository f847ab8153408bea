"""A captioned set of noise in all four splits, for tests that need one of the tiny model's size."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from flowtok.data.captioned import Row
from flowtok.data.images import to_pil

COUNTS = {"train": 24, "validation": 6, "unseen_concept": 7, "unseen_style": 5}


def write_set(folder: Path, size: int = 16) -> Path:
    """Writes pictures and metadata.jsonl; the names of even pictures begin with red, the others with blue."""
    (folder / "images").mkdir(parents=True)
    lines = []
    images = to_pil(torch.rand(sum(COUNTS.values()), 3, size, size, generator=torch.Generator().manual_seed(0)))
    for split, count in COUNTS.items():
        for number in range(count):
            name, style = (
                f"{('red', 'blue')[number % 2]} cat {number}",
                "other" if split == "unseen_style" else "twemoji",
            )
            row = Row(
                file_name=f"images/{split}-{number}.png", text=f"{name}, in {style} style", texts=(name,), name=name,
                concept=name, style=style, set="set", group="g", split=split, variant="", weight=1.0, license="MIT",
            )  # fmt: skip
            images.pop().save(folder / row.file_name)
            lines.append(json.dumps(asdict(row)))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
