"""The public test sets as their makers lay them out: COCO, the Karpathy split, MJHQ-30K, GenEval and DPG-Bench.

Knows files and no model. What is missing is one line that says what to fetch and where to put it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowtok.config import parse_json
from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate.retrieval import fixed_order

COCO_ANNOTATIONS = "annotations/captions_val2014.json"
COCO_PICTURES = "val2014"
KARPATHY_FILE = "dataset_coco.json"
MJHQ_FILE = "meta_data.json"
MJHQ_PICTURES = "mjhq30k_imgs"
GENEVAL_FILE = "evaluation_metadata.jsonl"

_COCO_SITE = "http://images.cocodataset.org"
_WHERE = {
    COCO_ANNOTATIONS: f"{_COCO_SITE}/annotations/annotations_trainval2014.zip",
    COCO_PICTURES: f"{_COCO_SITE}/zips/val2014.zip",
    KARPATHY_FILE: "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    MJHQ_FILE: "https://huggingface.co/datasets/playgroundai/MJHQ-30K/resolve/main/meta_data.json",
    MJHQ_PICTURES: "https://huggingface.co/datasets/playgroundai/MJHQ-30K/resolve/main/mjhq30k_imgs.zip",
    GENEVAL_FILE: "https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl)",
    "prompts": "https://github.com/TencentQQGYLab/ELLA (the folder dpg_bench/prompts)",
}


@dataclass(frozen=True, kw_only=True)
class TestPicture:
    """A picture of a test set.

    Attributes:
        key: Its name, which no other picture of the set has.
        path: Its file.
        captions: What people wrote of it, in the order of the set's own numbers.
        category: Its part of the set, where there are parts.
    """

    __test__ = False  # for pytest: no test

    key: str
    path: Path
    captions: tuple[str, ...]
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class TestPictures:
    """A set of them, with the checksum of the file that lists it."""

    __test__ = False

    pictures: tuple[TestPicture, ...]
    list_sha256: str

    def first(self, limit: int | None) -> tuple[TestPicture, ...]:
        """The first `limit` in the fixed order of crc32(key); all in that order where it is None."""
        return tuple(self.pictures[i] for i in fixed_order([one.key for one in self.pictures])[:limit])


def read_coco(folder: str | Path) -> TestPictures:
    """COCO val2014 with its captions: FOLDER/annotations/captions_val2014.json and FOLDER/val2014/.

    Raises:
        DataError: A part is missing or damaged.
    """
    place = Path(folder)
    data, digest = _json(place, COCO_ANNOTATIONS)
    pictures = _folder(place, COCO_PICTURES)
    captions: dict[int, list[tuple[int, str]]] = {}
    try:
        for one in data["annotations"]:
            captions.setdefault(one["image_id"], []).append((one["id"], " ".join(one["caption"].split())))
        named = [(one["id"], one["file_name"]) for one in data["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place / COCO_ANNOTATIONS} is no list of captions: {error!r} is missing or wrong") from error
    found = tuple(
        TestPicture(key=name, path=pictures / name, captions=tuple(text for _, text in sorted(captions[number])))
        for number, name in sorted(named)
        if number in captions
    )
    return _some(found, digest, place / COCO_ANNOTATIONS)


def read_karpathy(folder: str | Path, split: str = "test") -> TestPictures:
    """The Karpathy split of COCO: FOLDER/dataset_coco.json, and its pictures in FOLDER/val2014/ and FOLDER/train2014/.

    Raises:
        DataError: A part is missing or damaged.
    """
    place = Path(folder)
    data, digest = _json(place, KARPATHY_FILE)
    _folder(place, COCO_PICTURES)
    try:
        found = tuple(
            TestPicture(
                key=one["filename"],
                path=place / one["filepath"] / one["filename"],
                captions=tuple(" ".join(sentence["raw"].split()) for sentence in one["sentences"]),
            )
            for one in data["images"]
            if one["split"] == split
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place / KARPATHY_FILE} is no Karpathy split: {error!r} is missing or wrong") from error
    return _some(found, digest, place / KARPATHY_FILE)


def read_mjhq(folder: str | Path) -> TestPictures:
    """MJHQ-30K: FOLDER/meta_data.json and FOLDER/mjhq30k_imgs/CATEGORY/ID.jpg (or FOLDER/CATEGORY/ID.jpg).

    Raises:
        DataError: A part is missing or damaged.
    """
    place = Path(folder)
    data, digest = _json(place, MJHQ_FILE)
    try:
        described = [(str(key), str(one["category"]), " ".join(one["prompt"].split())) for key, one in data.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place / MJHQ_FILE} does not describe MJHQ-30K: {error!r} is missing or wrong") from error
    inside = place / MJHQ_PICTURES
    if not inside.is_dir():
        inside = place if described and (place / described[0][1]).is_dir() else _folder(place, MJHQ_PICTURES)
    found = tuple(
        TestPicture(key=key, path=inside / category / f"{key}.jpg", captions=(prompt,), category=category)
        for key, category, prompt in sorted(described, key=lambda one: (one[1], one[0]))
    )
    return _some(found, digest, place / MJHQ_FILE)


def read_geneval(place: str | Path) -> tuple[tuple[dict[str, Any], ...], str]:
    """GenEval's lines, each with prompt and tag, and the SHA-256 of their file, which is `place` or lies in it.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = Path(place)
    path = path / GENEVAL_FILE if path.is_dir() else path
    text = _text(path, path.parent, GENEVAL_FILE)
    lines = [parse_json_line(line, path) for line in text.splitlines() if line.strip()]
    if not lines or not all(isinstance(one.get("prompt"), str) and isinstance(one.get("tag"), str) for one in lines):
        raise DataError(f"{path} does not hold GenEval's prompts: each line needs prompt and tag")
    return tuple(lines), hashlib.sha256(text.encode()).hexdigest()


def read_dpg(place: str | Path) -> tuple[tuple[tuple[str, str], ...], str]:
    """DPG-Bench's prompts as (name, prompt), from a folder of NAME.txt files, and the SHA-256 of all.

    Raises:
        DataError: There are none, or one cannot be read.
    """
    folder = Path(place) / "prompts" if (Path(place) / "prompts").is_dir() else Path(place)
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder} holds no prompts NAME.txt; fetch {_WHERE['prompts']} and name it with --data")
    prompts = tuple((path.stem, " ".join(_text(path, folder, path.name).split())) for path in paths)
    return prompts, hashlib.sha256(json.dumps(prompts, ensure_ascii=False).encode()).hexdigest()


def parse_json_line(line: str, path: Path) -> dict[str, Any]:
    """A line of JSON that must be an object.

    Raises:
        DataError: It is none.
    """
    try:
        data = parse_json(line, str(path))
    except FlowTokError as error:
        raise DataError(str(error)) from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: a line holds {line[:40]!r} where an object is expected")
    return data


def _json(place: Path, name: str) -> tuple[Any, str]:
    """A JSON file of a set and its SHA-256."""
    text = _text(place / name, place, name)
    try:
        data = parse_json(text, str(place / name))
    except FlowTokError as error:
        raise DataError(str(error)) from error
    if not isinstance(data, Mapping):
        raise DataError(f"{place / name} holds no JSON object")
    return data, hashlib.sha256(text.encode()).hexdigest()


def _text(path: Path, place: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(place, name) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _folder(place: Path, name: str) -> Path:
    if not (place / name).is_dir():
        raise _missing(place, name)
    return place / name


def _missing(place: Path, name: str) -> DataError:
    where = _WHERE.get(name, "")
    verb = "unpack" if where.endswith(".zip") else "put"
    fetch = f"fetch {where} and {verb} it there" if where else "is it the right folder?"
    return DataError(f"there is no {name} in {place}; {fetch}")


def _some(found: Sequence[TestPicture], digest: str, path: Path) -> TestPictures:
    if not found or not all(one.captions for one in found):
        raise DataError(f"{path} names no pictures with captions")
    return TestPictures(pictures=tuple(found), list_sha256=digest)
