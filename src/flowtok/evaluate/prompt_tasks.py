"""The tasks whose scores others compute: GenEval and DPG-Bench. Prompts in, pictures in the layout their scorers read.

What a scorer wrote is read back into a record (`bench.results`). Tasks by name: tasks.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.drawing import Wanted, open_drawn
from flowtok.evaluate.layouts import parse_json_line, read_dpg, read_geneval
from flowtok.evaluate.page import Exhibit, Shown
from flowtok.evaluate.report import Record
from flowtok.files import write_file_atomically

EACH = 4
_SHOWN_EACH = 8


def draw_geneval(bench: Bench, split: str, limit: int | None) -> tuple[Path, list[Wanted]]:
    """Four pictures for each prompt, as NUMBER/samples/SAMPLE.png beside NUMBER/metadata.jsonl."""
    del split
    lines, _ = read_geneval(bench.folder)
    wanted = [
        Wanted(prompt=line["prompt"], seed=bench.seed + EACH * k + j, name=f"{k:05d}/samples/{j:05d}.png")
        for k, line in enumerate(lines[:limit])
        for j in range(EACH)
    ]
    folder = bench.draw(wanted, "geneval", "generation, GenEval")
    if bench.share.is_main:
        for k, line in enumerate(lines[:limit]):
            write_file_atomically(folder / f"{k:05d}" / "metadata.jsonl", json.dumps(line))
    return folder, wanted


def check_geneval(bench: Bench, limit: int | None) -> None:
    """Reads the scorer's results where they are named; DataError where they are not of these prompts."""
    if bench.results is not None:
        lines, _ = read_geneval(bench.folder)
        read_geneval_results(bench.results, [line["prompt"] for line in lines[:limit]])
        _check_origin(bench.results, bench.drawn_folder("geneval").name)


def geneval_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Draws, and reads what evaluate_images.py wrote where that is named."""
    lines, digest = read_geneval(bench.folder)
    lines = lines[:limit]
    folder, wanted = draw_geneval(bench, split, limit)
    for tag in dict.fromkeys(line["tag"] for line in lines):
        ours = [one for one in wanted if lines[int(one.name[:5])]["tag"] == tag][: EACH * _SHOWN_EACH : EACH]
        _show(bench, "geneval", tag, folder, ours)
    if bench.results is None:
        bench.note(
            f"GenEval: pictures are in {folder}; score them with evaluation/evaluate_images.py of GenEval "
            f"({folder} --outfile results.jsonl ...), then run this command again with --results results.jsonl"
        )
        return []
    by_tag = read_geneval_results(bench.results, [line["prompt"] for line in lines])
    scores = {"geneval": sum(by_tag.values()) / len(by_tag), **{f"geneval {tag}": by_tag[tag] for tag in by_tag}}
    data = {"set": "GenEval", "metadata_sha256": digest}
    return [bench.record("geneval", "all", scores, len(wanted), data=data, **_how(bench, len(lines)))]


def read_geneval_results(path: Path, prompts: Sequence[str]) -> dict[str, float]:
    """The share of right pictures for each tag, from the lines that GenEval's evaluate_images.py wrote.

    The overall score is the mean over the tags, as its summary_scores.py computes it.

    Raises:
        DataError: The file is damaged, or is not of four pictures for each of these prompts.
    """
    lines = [parse_json_line(line, path) for line in _text(path).splitlines() if line.strip()]
    try:
        found = Counter(str(line["prompt"]) for line in lines)
        marks: dict[str, list[bool]] = {}
        for line in lines:
            marks.setdefault(str(line["tag"]), []).append(bool(line["correct"]))
    except KeyError as error:
        raise DataError(f"{path} holds no results of GenEval: a line has no {error}") from error
    if found != Counter({prompt: EACH * count for prompt, count in Counter(prompts).items()}):
        raise DataError(
            f"{path} has results for {len(lines)} pictures of {len(found)} prompts; {EACH} pictures of each of "
            f"{len(prompts)} prompts were drawn: score all of them"
        )
    return {tag: sum(own) / len(own) for tag, own in marks.items()}


def draw_dpg(bench: Bench, split: str, limit: int | None) -> tuple[Path, list[Wanted]]:
    """Four pictures for each prompt, singly."""
    del split
    prompts, _ = read_dpg(bench.folder)
    wanted = [
        Wanted(prompt=prompt, seed=bench.seed + EACH * k + j, name=f"singles/{name}-{j}.png")
        for k, (name, prompt) in enumerate(prompts[:limit])
        for j in range(EACH)
    ]
    return bench.draw(wanted, "dpg", "generation, DPG-Bench"), wanted


def check_dpg(bench: Bench, limit: int | None) -> None:
    """Reads the scorer's results where they are named; DataError where they are not of these prompts."""
    if bench.results is not None:
        prompts, _ = read_dpg(bench.folder)
        read_dpg_results(bench.results, [name for name, _ in prompts[:limit]])
        _check_origin(bench.results, bench.drawn_folder("dpg").name)


def dpg_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Draws, lays four pictures of a prompt into one as the scorer reads them, and reads its results where named."""
    prompts, digest = read_dpg(bench.folder)
    prompts = prompts[:limit]
    folder, wanted = draw_dpg(bench, split, limit)
    grids = folder / "grids"
    grids.mkdir(exist_ok=True)
    for k, (name, _) in enumerate(prompts):
        four = [open_drawn(folder / one.name) for one in wanted[EACH * k : EACH * (k + 1)]]
        sheet = two_by_two(four)
        write_file_atomically(grids / f"{name}.png", lambda file, sheet=sheet: sheet.save(file, "PNG"))
    _show(bench, "dpg", "the first prompts", folder, wanted[: EACH * 2 * _SHOWN_EACH : EACH])
    if bench.results is None:
        bench.note(
            f"DPG-Bench: pictures are in {grids}; score them with dpg_bench/compute_dpg_bench.py of ELLA "
            f"(--image-root-path {grids} --resolution {bench.image_size} --pic-num {EACH} --res-path results.txt), "
            "then run this command again with --results results.txt"
        )
        return []
    scores = read_dpg_results(bench.results, [name for name, _ in prompts])
    data = {"set": "DPG-Bench", "prompts_sha256": digest}
    return [bench.record("dpg", "all", scores, len(wanted), data=data, **_how(bench, len(prompts)))]


def two_by_two(pictures: Sequence[Image.Image]) -> Image.Image:
    """Four pictures of one size as one, in rows."""
    side = pictures[0].width
    sheet = Image.new("RGB", (2 * side, 2 * side))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % 2 * side, number // 2 * side))
    return sheet


def read_dpg_results(path: Path, names: Sequence[str]) -> dict[str, float]:
    """The score of DPG-Bench in percent and its first-level categories, from what compute_dpg_bench.py wrote.

    Raises:
        DataError: The file is damaged, not finished, or not of four pictures for each of these prompts.
    """
    text = _text(path)
    rows = re.findall(r"^(.+?)((?:, [0-9.eE+-]+)+)$", text, re.MULTILINE)
    means = {}
    for picture, numbers in rows:
        values = [float(number) for number in numbers.split(", ")[1:]]
        if len(values) != EACH + 1:
            raise DataError(f"{path}: {picture} has {len(values) - 1} scores, not {EACH}; score with --pic-num {EACH}")
        means[Path(picture).name.removesuffix(".png")] = values[-1]
    if means.keys() != set(names):
        raise DataError(f"{path} has results for {len(means)} pictures, and {len(set(names))} were drawn: score all")
    total = re.search(r"^DPG-Bench score: ([0-9.eE+-]+)$", text, re.MULTILINE)
    expected = 100.0 * sum(means.values()) / len(means)
    if total is None or abs(float(total[1]) - expected) > 1e-6 * 100:
        raise DataError(f"{path} does not end with the score of its pictures ({expected:.4f}); score them again")
    first = re.search(r"^L1 category scores:\n((?:\t.+\n)+)", text, re.MULTILINE)
    categories = re.findall(r"^\t(.+): ([0-9.eE+-]+)$", first[1], re.MULTILINE) if first else []
    return {"dpg": expected, **{f"dpg {name}": float(value) for name, value in sorted(categories)}}


def _check_origin(path: Path, folder: str) -> None:
    """Raises DataError where the pictures that were scored lay in a folder of another model, other steps or a seed.

    Scorers write the paths of what they saw; a folder that was renamed on the way tells nothing and is let through.
    """
    task = folder.partition("-")[0]
    others = set(re.findall(rf"\b{task}-[0-9a-f]{{8}}\b", _text(path))) - {folder}
    if others:
        raise DataError(
            f"{path} scores the pictures in {min(others)}; those of this model with these steps, guidance and seed are "
            f"in {folder}: score them, or name the same model and options as for the others"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the results {path}: {error}") from error


def _how(bench: Bench, prompts: int) -> dict[str, Any]:
    return {
        "prompts": {"count": prompts, "pictures_each": EACH},
        "seed": bench.seed,
        "seed_rule": f"picture j of prompt number k is drawn with seed + {EACH} k + j",
        "sampling": bench.image_sampling,
        "samples": "all pictures of the first prompts in the order of the set's own list",
        "scored": "by the official scorer, whose results were read back",
    }


def _show(bench: Bench, section: str, title: str, folder: Path, wanted: Sequence[Wanted]) -> None:
    cells = tuple(Shown(pictures=(open_drawn(folder / one.name),), words=(one.prompt,)) for one in wanted)
    if not cells:
        raise FlowTokError(f"{section}: there are no prompts")
    bench.show(Exhibit(section=section, title=title, cells=cells))
