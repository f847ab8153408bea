"""What is kept of a measurement: a record with its protocol, as JSON, as a table in a terminal and for a model card.

Knows no model and measures nothing; see tasks.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtok.config import from_dict, parse_json
from flowtok.errors import DataError, FlowTokError
from flowtok.files import write_file_atomically

if TYPE_CHECKING:
    from rich.table import Table


RECORDS_FILE = "records.json"
WIDTH = 80
"""Columns of a terminal that a table may take."""
SWEPT = {
    "steps": ("num_inference_steps", "caption_steps"),
    "guidance": ("guidance_scale", "caption_guidance_scale"),
}
"""What a measurement may be made with several values of, and where a protocol's `sampling` has it."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a score is shown: its name with the unit, and digits after the point."""

    title: str
    digits: int = 1


MEASURES = {
    "psnr": Measure(title="PSNR (dB)", digits=2),
    "psnr_worst": Measure(title="worst 5 % below (dB)", digits=2),
    "ssim": Measure(title="SSIM", digits=3),
    "rfid": Measure(title="rFID", digits=2),
    "lpips": Measure(title="LPIPS", digits=4),
    "fid": Measure(title="FID", digits=2),
    "kid": Measure(title="KID x 1000", digits=2),
    "clip_score": Measure(title="CLIP score", digits=2),
    "r_at_1": Measure(title="R@1 (%)"),
    "chance_r_at_1": Measure(title="R@1 by chance (%)"),
    "r_at_5": Measure(title="R@5 (%)"),
    "chance_r_at_5": Measure(title="R@5 by chance (%)"),
    "r_at_10": Measure(title="R@10 (%)"),
    "chance_r_at_10": Measure(title="R@10 by chance (%)"),
    "mean_rank": Measure(title="mean rank"),
    "chance_mean_rank": Measure(title="mean rank by chance"),
    "pixel_r_at_1": Measure(title="R@1 by pixels (%)"),
    "pixel_r_at_5": Measure(title="R@5 by pixels (%)"),
    "pixel_r_at_10": Measure(title="R@10 by pixels (%)"),
    "pixel_mean_rank": Measure(title="mean rank by pixels"),
    "all_r_at_1": Measure(title="R@1 among all (%)", digits=2),
    "chance_all_r_at_1": Measure(title="R@1 among all by chance (%)", digits=3),
    "all_r_at_5": Measure(title="R@5 among all (%)", digits=2),
    "all_r_at_10": Measure(title="R@10 among all (%)", digits=2),
    "all_median_rank": Measure(title="median rank among all"),
    "pixel_all_r_at_1": Measure(title="R@1 among all by pixels (%)", digits=2),
    "pixel_all_r_at_5": Measure(title="R@5 among all by pixels (%)", digits=2),
    "pixel_all_r_at_10": Measure(title="R@10 among all by pixels (%)", digits=2),
    "pixel_all_median_rank": Measure(title="median rank among all by pixels"),
    "exact_name": Measure(title="exact name (%)"),
    "nearest_exact_name": Measure(title="exact name, nearest picture's (%)"),
    "word_f1": Measure(title="word F1 (%)"),
    "nearest_word_f1": Measure(title="word F1, nearest picture's (%)"),
    "exact_style": Measure(title="exact style (%)"),
    "exact_caption": Measure(title="exact caption (%)"),
    "style_agreement": Measure(title="style as asked (%)"),
    "chance_style_agreement": Measure(title="style as asked by chance (%)"),
    "style_agreement_mean": Measure(title="style as asked, mean of styles (%)"),
    "classifier_accuracy": Measure(title="classifier right (%)"),
    "classifier_accuracy_mean": Measure(title="classifier right, mean of styles (%)"),
    **{f"bleu_{n}": Measure(title=f"BLEU-{n}") for n in (1, 2, 3, 4)},
    "meteor": Measure(title="METEOR"),
    "rouge_l": Measure(title="ROUGE-L"),
    "cider": Measure(title="CIDEr"),
    "spice": Measure(title="SPICE"),
    "geneval": Measure(title="GenEval", digits=3),
    "dpg": Measure(title="DPG-Bench", digits=2),
}


def measures_of(names: Iterable[str]) -> dict[str, Measure]:
    """How scores of these names are shown, in the order in which they are.

    A score of a part of what was measured, such as "r_at_1 faces", is shown as that of the whole is, and at the end.
    """

    def shown(name: str) -> Measure:
        whole, _, part = name.partition(" ")
        known = MEASURES.get(whole, Measure(title=whole, digits=3))
        return replace(known, title=f"{known.title}, {part}") if part else known

    found = set(names)
    return {
        name: shown(name) for name in [*(one for one in MEASURES if one in found), *sorted(found - MEASURES.keys())]
    }


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement with its conditions.

    Attributes:
        task: What was measured, such as "retrieval".
        split: On which part of the data.
        scores: By the names in MEASURES; shares are percentages.
        num_samples: Pictures or prompts measured.
        protocol: Everything that the scores depend on besides the model, as plain data.
        protocol_sha256: Of the protocol; scores compare only where it is the same.
        model: Name of the model.
        model_sha256: SHA-256 of the model folder's config.json, which holds those of its weights; None for a model that
            was not read from a folder.
        device: Where it was computed, such as "cpu"; the last digits differ between devices.
        versions: Of flowtok and the libraries that computed.
        command: The command line that measured it, if one did.
    """

    task: str
    split: str
    scores: dict[str, float]
    num_samples: int
    protocol: dict[str, Any]
    protocol_sha256: str = field(default="")
    model: str = ""
    model_sha256: str | None = None
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        expected = hash_protocol(self.protocol)
        if self.protocol_sha256 not in ("", expected):
            raise ValueError(f"the record's protocol_sha256 {self.protocol_sha256[:12]} is not its protocol's")
        object.__setattr__(self, "protocol_sha256", expected)


def hash_protocol(protocol: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol as JSON with sorted keys: the same for the same conditions, in any order of writing."""
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """When and where a measurement was made: what no score depends on and everybody asks for.

    Attributes:
        date: Day and time, UTC.
        hardware: Processor, memory and GPU.
    """

    date: str = ""
    hardware: str = ""


def write_records(records: Sequence[Record], path: str | Path, occasion: Occasion | None = None) -> Path:
    """Writes records as one JSON file, {"measured": {...}, "records": [...]}; `read_records` gives equal ones back."""
    content: dict[str, Any] = {"measured": asdict(occasion)} if occasion is not None else {}
    content["records"] = [asdict(record) for record in records]
    return write_file_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_records(path: str | Path) -> list[Record]:
    """Reads what `write_records` wrote; errors as in `read_measurement`."""
    return read_measurement(path)[0]


def read_measurement(path: str | Path) -> tuple[list[Record], Occasion]:
    """Reads what `write_records` wrote, with when and where it was measured; an older file does not say.

    Raises:
        DataError: It is missing or damaged, or a protocol does not have the hash that stands beside it.
    """
    path = Path(path)
    try:
        data = parse_json(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(data, dict) or not isinstance(data.get("records"), list):
            raise DataError(f'{path} holds no records: {{"records": [...]}} is expected')
        records = [from_dict(Record, entry, where=str(path)) for entry in data["records"]]
        return records, from_dict(Occasion, data.get("measured", {}), where=str(path))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; measure first: flowtok eval MODEL --data FOLDER -o OUT") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except DataError:
        raise
    except FlowTokError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """Records of one task as text: a line for each record, or, where that is too wide, a line for each score."""

    task: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def width(self) -> int:
        """Columns of a terminal that it takes, frame included."""
        lines = (self.headings, *self.rows)
        return sum(max(len(line[number]) for line in lines) + 3 for number in range(len(self.headings))) + 1


def _sheets(records: Sequence[Record]) -> list[_Sheet]:
    """The sheets of all tasks, none wider than a terminal where that can be had."""
    sheets = []
    for task in dict.fromkeys(record.task for record in records):
        own = [record for record in records if record.task == task]
        measures = measures_of(name for record in own for name in record.scores)
        titles = tuple(measure.title for measure in measures.values())
        lines = [(*told, *_scores_of(record, measures)) for record, told in zip(own, _told_apart(own), strict=True)]
        headings = ("split", "samples", *(name for name in SWEPT if _differs(own, name)), *titles)
        whole = _Sheet(task=task, headings=headings, rows=tuple(lines))
        sheets += [whole] if whole.width <= WIDTH else _turned(whole)
    return sheets


def _turned(sheet: _Sheet) -> list[_Sheet]:
    """The sheet with a line for each score and a column for each record, in as few parts as are narrow enough."""

    def turned(rows: Sequence[tuple[str, ...]]) -> _Sheet:
        columns = list(zip(sheet.headings, *rows, strict=True))
        return _Sheet(task=sheet.task, headings=columns[0], rows=tuple(columns[1:]))

    parts: list[list[tuple[str, ...]]] = []
    for row in sheet.rows:
        if not parts or turned([*parts[-1], row]).width > WIDTH:
            parts.append([])
        parts[-1].append(row)
    return [turned(part) for part in parts]


def sampled(record: Record, name: str) -> Any:
    """Steps or guidance (a name in SWEPT) with which a record's pictures were drawn or its captions written."""
    sampling = record.protocol.get("sampling")
    found = [sampling[key] for key in SWEPT[name] if key in sampling] if isinstance(sampling, Mapping) else []
    return found[0] if found else None


def _differs(records: Sequence[Record], name: str) -> bool:
    return len({sampled(record, name) for record in records}) > 1


def _told_apart(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Split and samples of each record of a task; steps and guidance too, where they differ."""
    swept = [name for name in SWEPT if _differs(records, name)]
    return [
        (record.split.replace("_", " "), f"{record.num_samples:,}", *(_short(sampled(record, name)) for name in swept))
        for record in records
    ]


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:g}"


def _scores_of(record: Record, measures: Mapping[str, Measure]) -> tuple[str, ...]:
    scores = record.scores
    return tuple(f"{scores[name]:,.{one.digits}f}" if name in scores else "–" for name, one in measures.items())


def tables(records: Sequence[Record]) -> list[Table]:
    """The scores as tables for rich, one or more for each task, to be read in a terminal of 80 columns."""
    from rich.table import Table

    made = []
    for sheet in _sheets(records):
        own = Table(title=sheet.task, title_justify="left")
        for number, heading in enumerate(sheet.headings):
            own.add_column(heading, justify="right" if number else "left")
        for row in sheet.rows:
            own.add_row(*row)
        made.append(own)
    return made


def markdown(records: Sequence[Record]) -> str:
    """The scores as tables for a model card, with the protocols' hashes and the commands that measured them."""
    parts, sheets = [], _sheets(records)
    for task in dict.fromkeys(sheet.task for sheet in sheets):
        parts.append(f"**{task}**")
        for sheet in (one for one in sheets if one.task == task):
            ruler = ("---", *["---:"] * (len(sheet.headings) - 1))
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in (sheet.headings, ruler, *sheet.rows)))
        hashes = ", ".join(f"`{record.protocol_sha256[:12]}`" for record in records if record.task == task)
        parts.append(f"Protocols (SHA-256, in this order): {hashes}.")
    for device in dict.fromkeys(record.device for record in records if record.versions):
        versions = {
            f"{name} {value}"
            for record in records
            if record.device == device
            for name, value in record.versions.items()
        }
        place = f" on {device}" if device else ""
        parts.append(f"Measured{place} with {', '.join(sorted(versions))}.")
    if commands := dict.fromkeys(record.command for record in records if record.command):
        parts.append("\n".join(["```bash", *commands, "```"]))
    return "\n\n".join(parts) + "\n"
