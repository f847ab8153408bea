"""The figures of the paper, each with the conditions under which they may stand beside a record of ours.

Knows records and no model. What the paper does not tell of a protocol cannot be compared: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowtok.evaluate.report import Record

_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class Published:
    """Scores that somebody published.

    Attributes:
        name: Whose they are.
        task: The task that measures the same.
        conditions: Entries of a record's protocol, by dotted names, that must be so.
        scores: By the names in report.MEASURES.
        source: Where they stand.
    """

    name: str
    task: str
    conditions: Mapping[str, Any]
    scores: Mapping[str, float]
    source: str


# The paper samples in 20 steps and does not tell its guidance; the release's is 2.
_THIRTY_THOUSAND = {"prompts.count": 30_000, "image_size": 256, "sampling.num_inference_steps": 20}
_COCO = {**_THIRTY_THOUSAND, "reference.set": "val2014", "reference.count": 40_504}
_MJHQ = {**_THIRTY_THOUSAND, "reference.set": "MJHQ-30K", "reference.count": 30_000}
_KARPATHY = {
    "pictures.split": "test",
    "pictures.count": 5_000,
    "image_size": 256,
    "sampling.caption_steps": 20,
}
_SOURCE = "He et al. 2025, 20 sampling steps"

PAPER = (
    Published(name="FlowTok-XL", task="coco30k", conditions=_COCO, scores={"fid": 10.06}, source=_SOURCE),
    Published(name="FlowTok-H", task="coco30k", conditions=_COCO, scores={"fid": 9.67}, source=_SOURCE),
    Published(name="FlowTok-XL", task="mjhq30k", conditions=_MJHQ, scores={"fid": 7.68}, source=_SOURCE),
    Published(name="FlowTok-H", task="mjhq30k", conditions=_MJHQ, scores={"fid": 7.15}, source=_SOURCE),
    Published(
        name="FlowTok-XL",
        task="karpathy",
        conditions=_KARPATHY,
        scores={"bleu_4": 37.1, "meteor": 27.8, "rouge_l": 57.6, "cider": 117.0, "spice": 20.5},
        source=_SOURCE,
    ),
)


def published_for(record: Record) -> list[Published]:
    """The paper's figures that fit a record: the same task under the conditions that the paper tells."""
    return [
        one
        for one in PAPER
        if one.task == record.task
        and all(_found(record.protocol, name) == value for name, value in one.conditions.items())
    ]


def _found(protocol: Mapping[str, Any], dotted: str) -> Any:
    """The entry of a protocol by its dotted name; something equal to nothing where it is not there."""
    value: Any = protocol
    for name in dotted.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value
