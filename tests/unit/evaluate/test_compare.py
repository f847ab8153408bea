"""Two measurements stand side by side only where they were made alike, and beside the paper where it did so too."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flowtok.errors import FlowTokError
from flowtok.evaluate.compare import comparison, differences, open_records, pair_up, rows_of
from flowtok.evaluate.published import PAPER, published_for
from flowtok.evaluate.report import MEASURES, Record, write_records

BASE = Record(
    task="coco30k",
    split="val2014",
    scores={"fid": 12.5},
    num_samples=30_000,
    protocol={
        "prompts": {"count": 30_000},
        "image_size": 256,
        "reference": {"set": "val2014"},
        "sampling": {"guidance_scale": 2.0, "num_inference_steps": 20},
    },
    model="one",
    versions={"torch": "2.13.0"},
)


def changed(**protocol: object) -> Record:
    return replace(BASE, protocol={**BASE.protocol, **protocol}, protocol_sha256="", model="other")


def test_equal_protocols_compare_whatever_the_model() -> None:
    other = replace(BASE, model="other", scores={"fid": 10.0, "kid": 1.0}, versions={"torch": "2.14.0"})
    (pair,) = pair_up([BASE], [other])
    assert pair.differences == () and pair.remarks == ["torch 2.13.0 / 2.14.0"]
    assert rows_of(pair) == [
        ("FID", "12.50", "10.00", "-2.50", "10.06", "9.67"),
        ("KID x 1000", "–", "1.00", "–", "–", "–"),
    ]


def test_other_protocols_are_refused_and_named_unless_forced() -> None:
    """A better FID by another guidance scale must not pass for a better model."""
    other = changed(sampling={"guidance_scale": 3.0, "num_inference_steps": 20})
    with pytest.raises(FlowTokError, match=r"sampling.guidance_scale: 2.0 / 3.0 .*--force"):
        pair_up([BASE], [other])
    (pair,) = pair_up([BASE], [other], force=True)
    assert pair.differences == ("sampling.guidance_scale: 2.0 / 3.0",)
    buffer = io.StringIO()
    Console(file=buffer, width=160).print(*comparison([pair]))
    assert "another protocol, sampling.guidance_scale" in buffer.getvalue()
    assert "FlowTok-XL" not in buffer.getvalue(), "the paper stands beside honest pairs only"


def test_of_several_records_the_equal_ones_find_each_other() -> None:
    """A sweep has many records of one task; each belongs to its own twin, in whatever order."""
    sweep = [changed(sampling={"guidance_scale": scale, "num_inference_steps": 20}) for scale in (1.0, 2.0, 3.0)]
    pairs = pair_up(sweep, sweep[::-1])
    assert [pair.first for pair in pairs] == sweep and all(pair.first == pair.second for pair in pairs)


def test_nothing_in_common_is_said() -> None:
    with pytest.raises(FlowTokError, match=r"one measures coco30k \(val2014\), the other karpathy \(test\)"):
        pair_up([BASE], [replace(BASE, task="karpathy", split="test")])


def test_the_paper_stands_only_beside_its_own_protocol() -> None:
    """An FID of 1,000 pictures, or of 512 px, beside the paper's would mislead."""
    assert [one.name for one in published_for(BASE)] == ["FlowTok-XL", "FlowTok-H"]
    assert published_for(changed(prompts={"count": 1000})) == []
    assert published_for(changed(image_size=512)) == []
    assert published_for(changed(reference={"set": "pictures of mine"})) == []
    assert published_for(changed(sampling={"guidance_scale": 2.0, "num_inference_steps": 5})) == []
    assert published_for(replace(BASE, task="retrieval")) == []
    assert {name for one in PAPER for name in one.scores} <= MEASURES.keys()


def test_differences_name_every_entry_with_its_way() -> None:
    one, other = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(one, other) == ["a.c: 2 / 4", "d: 3 / not there", "e: not there / 5"]


def test_records_open_by_folder_and_by_file(tmp_path: Path) -> None:
    path = write_records([BASE], tmp_path / "records.json")
    assert open_records(tmp_path) == open_records(path) == [BASE]
    with pytest.raises(FlowTokError, match="there is no file"):
        open_records(tmp_path / "none")
