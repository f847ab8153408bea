"""Two measurements stand side by side only where they were made alike, and beside the paper where it did so too."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flowtok.errors import FlowTokError
from flowtok.evaluate.compare import alone, comparison, differences, open_records, pair_up, rows_of
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
        "reference": {"set": "val2014", "count": 40_504},
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


def test_two_sweeps_compare_where_they_meet_and_say_what_stands_alone() -> None:
    """Guidance 1 and 2 here, 2 and 3 there: the twos compare, and nobody may think that this was all."""
    one, two, three = (
        changed(sampling={"guidance_scale": scale, "num_inference_steps": 20}) for scale in (1.0, 2.0, 3.0)
    )
    other = replace(BASE, task="karpathy", split="test")
    pairs = pair_up([one, two], [two, three, other])
    assert [(pair.first, pair.second, pair.differences) for pair in pairs] == [(two, two, ())]
    assert alone([one, two], [two, three, other], pairs) == [
        "in A alone, not shown: coco30k, val2014 (samples 30,000, steps 20, guidance 1)",
        "in B alone, not shown: coco30k, val2014 (samples 30,000, steps 20, guidance 3); "
        "karpathy, test (samples 30,000, steps 20, guidance 2)",
    ]
    forced = pair_up([one, two], [two, three], force=True)
    assert [(pair.first, pair.second) for pair in forced] == [(one, three), (two, two)]
    assert alone([one, two], [two, three], forced) == []


def test_nothing_in_common_is_said() -> None:
    with pytest.raises(FlowTokError, match=r"one measures coco30k, val2014 .*, the other karpathy, test \("):
        pair_up([BASE], [replace(BASE, task="karpathy", split="test")])


def test_models_and_conditions_can_be_read_in_80_columns() -> None:
    """Names cut to `A: flowtok-x…`, and four tables of a sweep under one title, tell nobody which is which."""
    names = ("a-model-of-mine-with-a-long-name", "a-model-of-mine-with-a-longer-name")
    first = [
        replace(at, model=names[0], model_sha256="ab" * 32)
        for at in (changed(sampling={"guidance_scale": scale, "num_inference_steps": 20}) for scale in (1.0, 2.5))
    ]
    second = [replace(one, model=names[1], model_sha256="cd" * 32) for one in first]
    buffer = io.StringIO()
    for part in comparison(pair_up(first, second)):
        Console(file=buffer, width=80).print(part)
    shown = buffer.getvalue()
    assert shown.startswith(f"A: {names[0]}, config.json abababababab\nB: {names[1]}, config.json cdcdcdcdcdcd\n")
    assert "coco30k, val2014 (samples 30,000, steps 20, guidance 1)" in shown
    assert "coco30k, val2014 (samples 30,000, steps 20, guidance 2.5)" in shown
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert cells.count(["FID", "12.50", "12.50", "+0.00", "10.06", "9.67"]) == 2


def test_the_paper_stands_only_beside_its_own_protocol() -> None:
    """An FID of 1,000 pictures, or of 512 px, beside the paper's would mislead."""
    assert [one.name for one in published_for(BASE)] == ["FlowTok-XL", "FlowTok-H"]
    assert published_for(changed(prompts={"count": 1000})) == []
    assert published_for(changed(image_size=512)) == []
    assert published_for(changed(reference={"set": "pictures of mine", "count": 40_504})) == []
    assert published_for(changed(reference={"set": "val2014", "count": 30_000})) == [], "not the whole of val2014"
    assert published_for(changed(sampling={"guidance_scale": 2.0, "num_inference_steps": 5})) == []
    assert published_for(replace(BASE, task="retrieval")) == []
    seen = {"pictures": {"split": "test", "count": 5_000}, "image_size": 256}
    read = replace(BASE, task="karpathy", protocol={**seen, "sampling": {"caption_steps": 20}}, protocol_sha256="")
    assert [one.scores["cider"] for one in published_for(read)] == [117.0]
    hasty = replace(read, protocol={**seen, "sampling": {"caption_steps": 1}}, protocol_sha256="")
    assert published_for(hasty) == []
    assert {name for one in PAPER for name in one.scores} <= MEASURES.keys()


def test_differences_name_every_entry_with_its_way() -> None:
    one, other = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(one, other) == ["a.c: 2 / 4", "d: 3 / not there", "e: not there / 5"]
    assert differences({"sha256": "ab" * 32}, {"sha256": "cd" * 32}) == ["sha256: abababababab / cdcdcdcdcdcd"]


def test_records_open_by_folder_and_by_file(tmp_path: Path) -> None:
    path = write_records([BASE], tmp_path / "records.json")
    assert open_records(tmp_path) == open_records(path) == [BASE]
    with pytest.raises(FlowTokError, match="there is no file"):
        open_records(tmp_path / "none")
