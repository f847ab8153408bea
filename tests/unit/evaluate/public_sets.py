"""Small test sets in the layouts of COCO, the Karpathy split, MJHQ-30K, GenEval and DPG-Bench, of coloured squares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def _picture(path: Path, number: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(number).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def write_coco(folder: Path, count: int = 6) -> Path:
    """COCO val2014: two captions for each picture, listed in another order than that of their numbers."""
    names = [f"COCO_val2014_{number:012d}.png" for number in range(count)]
    annotations = []
    for number, name in enumerate(names):
        _picture(folder / "val2014" / name, number)
        annotations.append({"image_id": number, "id": 2 * number + 1, "caption": f"the cat {number}"})
        annotations.append({"image_id": number, "id": 2 * number, "caption": f" a red \n cat {number}"})
    (folder / "annotations").mkdir(parents=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)][::-1]
    (folder / "annotations" / "captions_val2014.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    return folder


def write_karpathy(folder: Path, count: int = 4) -> Path:
    """The Karpathy split: five sentences each, one picture of another split between those of the test split."""
    images = []
    for number in range(count + 1):
        name = f"COCO_val2014_{number:012d}.jpg"
        _picture(folder / "val2014" / name, number)
        sentences = [{"raw": f"A red cat, number {number}, {which}.", "tokens": []} for which in range(5)]
        split = "restval" if number == 1 else "test"
        images.append({"filepath": "val2014", "filename": name, "split": split, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder


def write_mjhq(folder: Path, inside: str = "mjhq30k_imgs", each: int = 3) -> Path:
    """MJHQ-30K with two categories, its pictures larger than what a tiny model draws."""
    described = {}
    for which, category in enumerate(("food", "animals")):
        for number in range(each):
            key = f"{which}f{number}"
            _picture(folder / inside / category / f"{key}.jpg", 10 * which + number, (48, 48))
            described[key] = {"category": category, "prompt": f"a red cat {number}"}
    (folder / "meta_data.json").write_text(json.dumps(described))
    return folder


def write_geneval(folder: Path) -> Path:
    """GenEval's prompts: two lines of different tags."""
    folder.mkdir(parents=True)
    lines = [
        {"tag": "colors", "include": [], "prompt": "a red cat"},
        {"tag": "two_object", "include": [], "prompt": "a cat and a dog"},
    ]
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_dpg(folder: Path) -> Path:
    """DPG-Bench's prompts: a file for each."""
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "0.txt").write_text("a red cat\n")
    (folder / "prompts" / "partiprompts1.txt").write_text("a blue dog")
    return folder
