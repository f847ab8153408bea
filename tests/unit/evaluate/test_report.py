"""A number is kept with its conditions, comes back as it was, and cannot be passed off under other conditions."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flowtok.errors import DataError
from flowtok.evaluate.report import (
    MEASURES,
    WIDTH,
    Occasion,
    Record,
    hash_protocol,
    markdown,
    measures_of,
    read_measurement,
    read_records,
    tables,
    write_records,
)

RECORDS = [
    Record(
        task="retrieval",
        split="unseen_concept",
        scores={"r_at_1": 3.125, "mean_rank": 40.2, "chance_r_at_1": 0.78125, "chance_mean_rank": 64.5},
        num_samples=512,
        protocol={"ways": 128, "sampling": {"seed": 0, "guidance_scale": 2.0}},
        model="emoji",
        model_sha256="ab" * 32,
        device="cpu",
        versions={"flowtok": "0.1.0"},
        command="flowtok eval emoji --data FOLDER",
    ),
    Record(
        task="reconstruction", split="unseen_style", scores={"psnr": 26.123}, num_samples=1533, protocol={"size": 64}
    ),
]


def test_records_come_back_as_written(tmp_path: Path) -> None:
    assert read_records(write_records(RECORDS, tmp_path / "records.json")) == RECORDS


def test_a_file_says_when_and_where_and_the_records_stay_the_same(tmp_path: Path) -> None:
    """A date inside a record would make two equal measurements differ."""
    occasion = Occasion(date="2026-11-23 09:00 UTC", hardware="an abacus, 10 beads")
    dated = write_records(RECORDS, tmp_path / "dated.json", occasion)
    assert read_measurement(dated) == (RECORDS, occasion)
    assert read_measurement(write_records(RECORDS, tmp_path / "plain.json")) == (RECORDS, Occasion())


def test_hash_knows_conditions_and_not_their_order() -> None:
    assert hash_protocol({"a": 1, "b": {"c": 2, "d": 3}}) == hash_protocol({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_protocol({"a": 1}) != hash_protocol({"a": 2})
    assert RECORDS[0].protocol_sha256 == hash_protocol(RECORDS[0].protocol)


def test_a_changed_protocol_is_noticed(tmp_path: Path) -> None:
    """A record whose steps were edited by hand must not compare with honest ones."""
    path = write_records(RECORDS, tmp_path / "records.json")
    data = json.loads(path.read_text())
    data["records"][0]["protocol"]["ways"] = 16
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="protocol_sha256"):
        read_records(path)


@pytest.mark.parametrize("content", ["", "[]", '{"records": 3}', '{"records": [{"task": "x"}]}', '{"records": ["x"]}'])
def test_damaged_records_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"records\.json"):
        read_records(path)
    with pytest.raises(DataError, match="there is no file"):
        read_records(tmp_path / "none.json")


def shown(records: list[Record], width: int = WIDTH) -> list[list[str]]:
    """The cells of each line of the tables as a terminal of that width shows them."""
    buffer = io.StringIO()
    for table in tables(records):
        Console(file=buffer, width=width).print(table)
    lines = buffer.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in lines]


def test_many_scores_can_be_read_in_80_columns() -> None:
    """A score a line: squeezed into columns of four letters nobody can tell R@5 by tokens from R@1 by pixels."""
    names = [name for name in MEASURES if "r_at" in name or "rank" in name]
    record = Record(task="retrieval", split="train", scores={}, num_samples=512, protocol={})
    many = [
        replace(record, split=split, scores={name: number + place / 10 for number, name in enumerate(names)})
        for place, split in enumerate(["train", "unseen_concept"])
    ]
    cells = shown(many)
    for number, name in enumerate(names):
        values = [f"{number + place / 10:.{MEASURES[name].digits}f}" for place in range(2)]
        assert [MEASURES[name].title, *values] in cells, name
    assert ["samples", "512", "512"] in cells
    assert f"| {MEASURES[names[0]].title} | 0.0 | 0.1 |" in markdown(many)


def test_titles_of_scores_tell_them_apart() -> None:
    titles = [measure.title for measure in MEASURES.values()]
    assert len(set(titles)) == len(titles)


def test_a_score_of_a_part_is_shown_as_that_of_the_whole() -> None:
    """With its unit and digits, and below the scores of everything."""
    measures = measures_of(["r_at_1 faces", "r_at_1", "geneval colors", "chance_mean_rank", "new"])
    assert list(measures) == ["r_at_1", "chance_mean_rank", "geneval colors", "new", "r_at_1 faces"]
    assert [one.title for one in measures.values()][2:] == ["GenEval, colors", "new", "R@1 (%), faces"]
    assert [one.digits for one in measures.values()] == [1, 1, 3, 3, 1]


def test_a_sweep_says_which_line_is_which() -> None:
    """Nine lines that all say `train, 512` are no result."""
    sampled = [
        replace(
            RECORDS[0],
            protocol={"sampling": {"num_inference_steps": steps, "guidance_scale": scale}},
            protocol_sha256="",
            scores={"r_at_1": steps + scale},
        )
        for steps in (5, 20)
        for scale in (1.0, 1.5, 3.0)
    ]
    cells = shown(sampled)
    assert ["unseen concept", "512", "5", "1.5", "6.5"] in cells and [
        "unseen concept",
        "512",
        "20",
        "3",
        "23.0",
    ] in cells
    wide = [replace(one, scores=dict.fromkeys(MEASURES, 1.0)) for one in sampled]
    guidance = [line[1:] for line in shown(wide) if line[:1] == ["guidance"]]
    assert [scale for part in guidance for scale in part] == ["1", "1.5", "3"] * 2


def test_tables_show_every_score_beside_its_chance() -> None:
    """The model card and the terminal must not say different things."""
    buffer = io.StringIO()
    for table in tables(RECORDS):
        Console(file=buffer, width=200).print(table)
    card = markdown(RECORDS)
    for text in (buffer.getvalue().replace("│", "|"), card):
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
        for line in (["samples", "512"], ["R@1 (%)", "3.1"], ["R@1 by chance (%)", "0.8"], ["mean rank", "40.2"]):
            assert line in cells
        assert ["unseen style", "1,533", "26.12"] in cells
    assert "| split | unseen concept |" in card and "| mean rank by chance | 64.5 |" in card
    assert all(record.protocol_sha256[:12] in card for record in RECORDS)
    assert "flowtok eval emoji" in card and "on cpu with flowtok 0.1.0" in card


def test_a_score_that_one_split_lacks_is_a_dash_and_not_a_shift() -> None:
    """In the row of the unseen style no number may stand under another heading."""
    common = {"task": "captions", "num_samples": 2, "protocol": {}}
    full = Record(split="validation", scores={"exact_name": 30.0, "exact_style": 50.0}, **common)
    less = Record(split="unseen_style", scores={"exact_name": 20.0, "own": 1.0}, **common)
    lines = markdown([full, less]).splitlines()
    assert lines[2] == "| split | samples | exact name (%) | exact style (%) | own |"
    assert lines[4:6] == ["| validation | 2 | 30.0 | 50.0 | – |", "| unseen style | 2 | 20.0 | – | 1.000 |"]
