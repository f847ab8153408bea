"""Two measurements side by side: refused where their protocols differ, with the paper's figures where they fit.

Knows records (report.py) and the paper's figures (published.py); measures nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtok.errors import FlowTokError
from flowtok.evaluate.published import Published, published_for
from flowtok.evaluate.report import RECORDS_FILE, SWEPT, Record, measures_of, read_records, sampled

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 6
_CHECKSUM = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two records of one task on one split.

    Attributes:
        first, second: The records.
        differences: What differs between their protocols, a line each; empty where they compare.
    """

    first: Record
    second: Record
    differences: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """What stands beside a protocol and may still move the last digits: device and versions."""
        said = [
            f"{name} {ours} / {theirs}"
            for name in sorted(self.first.versions.keys() | self.second.versions.keys())
            if (ours := self.first.versions.get(name, "none")) != (theirs := self.second.versions.get(name, "none"))
        ]
        if self.first.device != self.second.device:
            said.append(f"device {self.first.device or 'unknown'} / {self.second.device or 'unknown'}")
        return said


def open_records(place: str | Path) -> list[Record]:
    """Records of a folder that `flowtok eval -o` wrote, or of the file itself.

    Raises:
        DataError: There are none, or they are damaged.
    """
    path = Path(place)
    return read_records(path / RECORDS_FILE if path.is_dir() else path)


def differences(first: Mapping[str, Any], second: Mapping[str, Any], at: str = "") -> list[str]:
    """Entries in which two protocols differ, as "name: one / other" with dotted names."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        ours, theirs = first.get(name, "not there"), second.get(name, "not there")
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found += differences(ours, theirs, f"{at}{name}.")
        elif ours != theirs:
            found.append(f"{at}{name}: {_short(ours)} / {_short(theirs)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    if _CHECKSUM.fullmatch(text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."


def pair_up(first: Sequence[Record], second: Sequence[Record], *, force: bool = False) -> list[Pair]:
    """Joins the records of two measurements: equal protocols first, then what is left of each task and split in order.

    Two sweeps share some steps or guidance scales: without `force` these are joined, and the others stay alone.

    Args:
        first: Records of one measurement.
        second: Records of the other one.
        force: Joins records whose protocols differ; otherwise they are refused.

    Raises:
        FlowTokError: No task and split is in both, or one is in both under other protocols alone and `force` is not
            set.
    """
    pairs, open_first, open_second = [], list(first), list(second)
    for same_protocol in (True, False):
        joined = set() if same_protocol or force else {(pair.first.task, pair.first.split) for pair in pairs}
        for ours in [record for record in open_first if (record.task, record.split) not in joined]:
            fits = [
                theirs
                for theirs in open_second
                if (theirs.task, theirs.split) == (ours.task, ours.split)
                and (not same_protocol or theirs.protocol_sha256 == ours.protocol_sha256)
            ]
            if fits:
                unlike = () if same_protocol else tuple(differences(ours.protocol, fits[0].protocol))
                pairs.append(Pair(first=ours, second=fits[0], differences=unlike))
                open_first.remove(ours)
                open_second.remove(fits[0])
    if not pairs:
        raise FlowTokError(f"nothing to compare: one measures {_tasks_of(first)}, the other {_tasks_of(second)}")
    unlike = [pair for pair in pairs if pair.differences]
    if unlike and not force:
        one = unlike[0]
        more = len(one.differences) - _SHOWN
        raise FlowTokError(
            f"{len(unlike)} of {len(pairs)} pairs were measured under other protocols, so their scores do not compare; "
            f"{one.first.task}, {one.first.split}: {'; '.join(one.differences[:_SHOWN])}"
            f"{f'; and {more} more' if more > 0 else ''} (--force shows them all the same)"
        )
    order = {id(record): number for number, record in enumerate(first)}
    return sorted(pairs, key=lambda pair: order[id(pair.first)])


def alone(first: Sequence[Record], second: Sequence[Record], pairs: Sequence[Pair]) -> list[str]:
    """A line for each of two measurements that holds records which no pair shows."""
    lines = []
    for name, records, shown in (
        ("A", first, [pair.first for pair in pairs]),
        ("B", second, [pair.second for pair in pairs]),
    ):
        left = [record for record in records if not any(record is one for one in shown)]
        if left:
            lines.append(f"in {name} alone, not shown: {_tasks_of(left)}")
    return lines


def _tasks_of(records: Sequence[Record]) -> str:
    return "; ".join(dict.fromkeys(_said(record) for record in records)) or "nothing"


def _said(record: Record, other: Record | None = None) -> str:
    """Task and split, with samples, steps and guidance as far as those of the other record are the same."""
    numbers = {"samples": record.num_samples} | {name: sampled(record, name) for name in SWEPT}
    others = numbers if other is None else {"samples": other.num_samples} | {n: sampled(other, n) for n in SWEPT}
    told = [f"{name} {value:,g}" for name, value in numbers.items() if value is not None and value == others[name]]
    return f"{record.task}, {record.split}" + (f" ({', '.join(told)})" if told else "")


def models_of(pairs: Sequence[Pair]) -> list[str]:
    """A line for each side: which model it is, by its name and the beginning of its checksum."""
    sides = {"A": [pair.first for pair in pairs], "B": [pair.second for pair in pairs]}
    return [
        f"{side}: "
        + "; ".join(
            dict.fromkeys(
                f"{record.model or 'unnamed'}, config.json {(record.model_sha256 or 'unknown')[:12]}" for record in own
            )
        )
        for side, own in sides.items()
    ]


def comparison(pairs: Sequence[Pair]) -> list[Table | str]:
    """Which models, and for each pair a table for rich, score by score beside the paper's, and what else differs."""
    from rich.table import Table

    shown: list[Table | str] = [*models_of(pairs)]
    for pair in pairs:
        published = _published(pair)
        own = Table(title=_said(pair.first, pair.second), title_justify="left")
        own.add_column("score")
        for heading in ("A", "B", "B - A", *(one.name for one in published)):
            own.add_column(heading, justify="right")
        for row in rows_of(pair):
            own.add_row(*row)
        shown.append(own)
        shown += [f"{one.name}: {one.source}" for one in published] + [f"A / B: {line}" for line in pair.remarks]
        shown += [f"another protocol, {line}" for line in pair.differences]
    return shown


def _published(pair: Pair) -> list[Published]:
    return published_for(pair.first) if not pair.differences else []


def rows_of(pair: Pair) -> list[tuple[str, ...]]:
    """The cells of a pair's table: title, first, second, difference, then each published figure."""
    published = _published(pair)
    rows = []
    for name, measure in measures_of(pair.first.scores.keys() | pair.second.scores.keys()).items():
        ours, theirs = pair.first.scores.get(name), pair.second.scores.get(name)
        gap = f"{theirs - ours:+.{measure.digits}f}" if ours is not None and theirs is not None else "–"
        shown = [ours, theirs, *(one.scores.get(name) for one in published)]
        cells = ["–" if value is None else f"{value:.{measure.digits}f}" for value in shown]
        rows.append((measure.title, *cells[:2], gap, *cells[2:]))
    return rows
