"""What cannot be used is skipped, counted by reason and shown; too much of it stops the run.

Knows no file format and no filter: whoever reads says why. The sources that say so stand in folders, shards, tables.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flowtok.errors import DataError

_EXAMPLES = 5
# A first broken file is no judgement on a stream of millions; at the end of the data any number of samples is judged.
_ENOUGH = 200


def check_share(max_refused: float) -> None:
    """Raises ValueError where a largest share of refused samples is none."""
    if not 0.0 <= max_refused <= 1.0:
        raise ValueError(f"max_refused must lie in [0, 1], not {max_refused}")


class Refused(DataError):
    """One sample that cannot be used; `reason` is the short name of its kind of trouble."""

    def __init__(self, message: str, reason: str = "unusable") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What is noted of a sample, or of a whole part of the data, that was refused.

    Attributes:
        key: What was refused.
        reason: The kind of trouble, in words that many share.
        detail: What is wrong with this one.
        whole_part: True for a shard or a table file that could not be read to its end.
    """

    key: str
    reason: str
    detail: str = ""
    whole_part: bool = False


@dataclass(kw_only=True)
class Tally:
    """How many samples were seen, used, left out by filters and refused.

    Attributes:
        seen: Samples in all, refused ones included.
        used: Samples that came through.
        left_out: Number of samples for each reason of a filter.
        refused: Number of samples for each reason of a refusal.
        examples: The first refusals of each reason.
        broken_parts: Keys of the parts that could not be read to their end.
    """

    seen: int = 0
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Refusal]] = field(default_factory=dict)
    broken_parts: set[str] = field(default_factory=set)

    def use(self) -> None:
        """Counts a sample that came through."""
        self.seen += 1
        self.used += 1

    def leave_out(self, reason: str) -> None:
        """Counts a sample that a filter does not want; that is no fault of the data."""
        self.seen += 1
        self.left_out[reason] += 1

    def refuse(self, refusal: Refusal) -> None:
        """Counts a sample, or a part, that cannot be used."""
        self.seen += 1
        self.refused[refusal.reason] += 1
        self._keep([refusal])
        if refusal.whole_part:
            self.broken_parts.add(refusal.key)

    def add(self, other: "Tally") -> None:
        """Takes over what another counted."""
        self.seen += other.seen
        self.used += other.used
        self.left_out += other.left_out
        self.refused += other.refused
        for refusals in other.examples.values():
            self._keep(refusals)
        self.broken_parts |= other.broken_parts

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain data, to be saved with a checkpoint."""
        return {
            "seen": self.seen,
            "used": self.used,
            "left_out": dict(self.left_out),
            "refused": dict(self.refused),
            "examples": {reason: [asdict(one) for one in kept] for reason, kept in self.examples.items()},
            "broken_parts": sorted(self.broken_parts),
        }

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any]) -> "Tally":
        """What `to_plain` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is something else.
        """
        return cls(
            seen=int(saved["seen"]),
            used=int(saved["used"]),
            left_out=Counter({reason: int(count) for reason, count in saved["left_out"].items()}),
            refused=Counter({reason: int(count) for reason, count in saved["refused"].items()}),
            examples={reason: [Refusal(**one) for one in kept] for reason, kept in saved["examples"].items()},
            broken_parts=set(saved["broken_parts"]),
        )

    def reasons(self) -> list[str]:
        """Why samples were not used, filters first."""
        return [f"{count} {reason}" for reason, count in self.left_out.most_common()] + self.lines()

    @property
    def num_refused(self) -> int:
        """Refusals of all reasons."""
        return sum(self.refused.values())

    def check(self, max_share: float, *, num_parts: int, at_end: bool) -> None:
        """Stops where more is refused than the share that is allowed, of samples or of parts.

        Args:
            max_share: From 0 to 1.
            num_parts: Parts the data has.
            at_end: True when all was seen; before that a few samples are not judged.

        Raises:
            DataError: With numbers, reasons and examples.
        """
        too_many = self.num_refused > max_share * self.seen and (at_end or self.seen >= _ENOUGH)
        if too_many or len(self.broken_parts) > max_share * num_parts:
            many = f"{self.num_refused} of {self.seen} samples were refused"
            if not too_many:
                many = f"{len(self.broken_parts)} of {num_parts} parts could not be read to their end"
            raise DataError(
                f"{many}, more than the {max_share:.0%} that are allowed: {'; '.join(self.lines())}. "
                "Mend or remove them, or allow a larger share"
            )

    def lines(self) -> list[str]:
        """One line for each reason of refusal, most frequent first, with examples."""
        return [f"{count} {reason} ({self._shown(reason)})" for reason, count in self.refused.most_common()]

    def _shown(self, reason: str) -> str:
        examples = self.examples.get(reason, [])
        shown = ", ".join(f"{one.key}: {one.detail}" if one.detail else one.key for one in examples[:3])
        return shown + (", ..." if self.refused[reason] > 3 else "")

    def _keep(self, refusals: Iterable[Refusal]) -> None:
        for refusal in refusals:
            kept = self.examples.setdefault(refusal.reason, [])
            if len(kept) < _EXAMPLES and refusal not in kept:
                kept.append(refusal)
