"""What is kept of a measurement: a record with its protocol, as JSON, as a table in a terminal and for a model card.

Knows no model and measures nothing; see tasks.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtok.config import from_dict, parse_json
from flowtok.errors import DataError, FlowTokError
from flowtok.files import write_file_atomically

if TYPE_CHECKING:
    from rich.table import Table


RECORDS_FILE = "records.json"


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
    "chance_r_at_1": Measure(title="by chance (%)"),
    "r_at_5": Measure(title="R@5 (%)"),
    "chance_r_at_5": Measure(title="by chance (%)"),
    "r_at_10": Measure(title="R@10 (%)"),
    "chance_r_at_10": Measure(title="by chance (%)"),
    "mean_rank": Measure(title="mean rank"),
    "chance_mean_rank": Measure(title="by chance"),
    "pixel_r_at_1": Measure(title="R@1 by pixels (%)"),
    "pixel_r_at_5": Measure(title="R@5 by pixels (%)"),
    "pixel_r_at_10": Measure(title="R@10 by pixels (%)"),
    "pixel_mean_rank": Measure(title="mean rank by pixels"),
    "exact_name": Measure(title="exact name (%)"),
    "nearest_exact_name": Measure(title="nearest picture's (%)"),
    "word_f1": Measure(title="word F1 (%)"),
    "nearest_word_f1": Measure(title="nearest picture's (%)"),
    "exact_style": Measure(title="exact style (%)"),
    "exact_caption": Measure(title="exact caption (%)"),
    **{f"bleu_{n}": Measure(title=f"BLEU-{n}") for n in (1, 2, 3, 4)},
    "meteor": Measure(title="METEOR"),
    "rouge_l": Measure(title="ROUGE-L"),
    "cider": Measure(title="CIDEr"),
    "spice": Measure(title="SPICE"),
    "geneval": Measure(title="GenEval", digits=3),
    "dpg": Measure(title="DPG-Bench", digits=2),
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


def write_records(records: Sequence[Record], path: str | Path) -> Path:
    """Writes records as one JSON file, {"records": [...]}; `read_records` gives equal ones back."""
    text = json.dumps(
        {"records": [asdict(record) for record in records]}, indent=2, ensure_ascii=False, allow_nan=False
    )
    return write_file_atomically(path, text + "\n")


def read_records(path: str | Path) -> list[Record]:
    """Reads what `write_records` wrote.

    Raises:
        DataError: It is missing or damaged, or a protocol does not have the hash that stands beside it.
    """
    path = Path(path)
    try:
        data = parse_json(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(data, dict) or not isinstance(data.get("records"), list):
            raise DataError(f'{path} holds no records: {{"records": [...]}} is expected')
        return [from_dict(Record, entry, where=str(path)) for entry in data["records"]]
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
    """All records of one task as text: a row for each, a column for each score that any of them has."""

    task: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _sheets(records: Sequence[Record]) -> list[_Sheet]:
    sheets = []
    for task in dict.fromkeys(record.task for record in records):
        own = [record for record in records if record.task == task]
        found = {name for record in own for name in record.scores}
        names = [name for name in MEASURES if name in found] + sorted(found - set(MEASURES))
        known = [MEASURES.get(name, Measure(title=name, digits=3)) for name in names]
        rows = tuple(
            (
                record.split.replace("_", " "),
                f"{record.num_samples:,}",
                *(
                    f"{record.scores[name]:.{measure.digits}f}" if name in record.scores else "–"
                    for name, measure in zip(names, known, strict=True)
                ),
            )
            for record in own
        )
        headings = ("split", "samples", *(measure.title for measure in known))
        sheets.append(_Sheet(task=task, headings=headings, rows=rows))
    return sheets


def tables(records: Sequence[Record]) -> list[Table]:
    """The scores as tables for rich, one for each task."""
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
    parts = []
    for sheet in _sheets(records):
        ruler = ("---", *["---:"] * (len(sheet.headings) - 1))
        lines = [f"| {' | '.join(row)} |" for row in (sheet.headings, ruler, *sheet.rows)]
        hashes = ", ".join(f"`{r.protocol_sha256[:12]}`" for r in records if r.task == sheet.task)
        parts.append("\n".join([f"**{sheet.task}**", "", *lines, "", f"Protocols (SHA-256, in this order): {hashes}."]))
    for device, versions in dict.fromkeys((r.device, tuple(r.versions.items())) for r in records if r.versions):
        place = f" on {device}" if device else ""
        parts.append(f"Measured{place} with {', '.join(f'{name} {value}' for name, value in versions)}.")
    if commands := dict.fromkeys(record.command for record in records if record.command):
        parts.append("\n".join(["```bash", *commands, "```"]))
    return "\n\n".join(parts) + "\n"
