"""`flowtok eval` writes what it measured, and says what is wrong before it works for minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from flowtok.app.evaluation import evaluate
from flowtok.errors import FlowTokError
from flowtok.evaluate.report import read_records
from flowtok.evaluate.sheets import SHEETS

# The tiny encoder reads eight word pieces; the names are longer.
pytestmark = pytest.mark.filterwarnings("ignore:only the first")


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command("eval")(evaluate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_everything_is_measured_written_and_shown(home: Path) -> None:
    out, sheets = home / "out", home / "sheets"
    tasks = "reconstruction,retrieval,captions"
    result = run(home / "tiny", "--data", home / "set", "--task", tasks, "--limit", "3", "-o", out, "--sheets", sheets)
    assert result.exit_code == 0, result.output
    records = read_records(out / "records.json")
    assert {record.task for record in records} == {"reconstruction", "retrieval", "captions"}
    assert all(record.model_sha256 and record.num_samples == 3 for record in records)
    card = (out / "table.md").read_text()
    command = f"flowtok eval tiny --data FOLDER --task {tasks} --limit 3"
    assert "R@1 (%)" in card and command in card, "and no way to a folder of this machine"
    assert {record.command for record in records} == {command}
    assert "R@1" in result.output and "records.json" in result.output.replace("\n", "")
    assert {path.stem for path in sheets.iterdir()} == set(SHEETS)
    assert "best by PSNR" in (out / "report.html").read_text() and "data:image/png" in (out / "report.html").read_text()


def test_json_is_all_that_stdout_holds(home: Path) -> None:
    """Scripts read it."""
    result = run(home / "tiny", "--data", home / "set", "--task", "captions", "--split", "validation", "--json")
    (record,) = json.loads(result.stdout)["records"]
    assert (record["task"], record["split"], record["num_samples"]) == ("captions", "validation", 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "caption"], "did you mean captions"),
        (["--task", ","], "no task is named"),
        (["--split", "test"], "unknown split 'test'"),
        (["--limit", "0"], "at least 1 sample"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--sheets", "sheets", "--limit", "3"], "no effect on sheets"),
        (["-o", "none/out"], "there is no folder none"),
        (["--steps", "0", "--limit", "1"], "number of steps must be"),
        (["--guidance", "-1", "--limit", "1"], "guidance scale must be"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--steps", "4,x"], "--steps 4,x: whole numbers are expected"),
        (["--guidance", ","], "--guidance names no number"),
        (["--clip", "place", "--task", "captions"], "--clip acts on retrieval, coco30k"),
        (["--results", "r.txt"], "--results acts on geneval, dpg"),
        (["--task", "captions", "--steps", "5"], "--steps acts on retrieval, paraphrases, round_trip, styles, coco30k"),
        (
            ["--task", "retrieval", "--caption-guidance", "2"],
            "--caption-guidance acts on captions, round_trip, karpathy",
        ),
        (["--task", "retrieval,styles", "--split", "unseen_concept"], "styles is about what was trained on"),
        (["--task", "paraphrases"], "no training pictures of 200 of the 200 concepts"),
        (["--task", "styles"], "the pictures in"),
        (
            ["--task", "captions", "--guidance-interval", "0", "0.5"],
            "--guidance-interval acts on retrieval, paraphrases",
        ),
        (["--guidance-interval", "0.7", "0.2", "--limit", "1"], "must run upwards"),
        (["--caption-steps", "3,x"], "--caption-steps 3,x: whole numbers"),
        (["--solver", "eular", "--limit", "1"], "eular"),
        (["--task", "coco30k"], "coco30k keeps the pictures that it draws: name a folder with -o"),
        (["--task", "coco30k", "-o", "out"], "there is no annotations/captions_val2014.json"),
        (["--task", "karpathy", "--sheets", "sheets"], "leave --sheets out or karpathy"),
    ],
)
def test_mistakes_are_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(home / "tiny", "--data", home / "set", *arguments)
    assert isinstance(result.exception, FlowTokError) and message in str(result.exception)


def test_a_model_or_a_set_that_is_not_there_is_named(home: Path) -> None:
    """And no empty folder is left behind."""
    out = ("-o", home / "not-made")
    assert "unknown model" in str(run("no-such-model", "--data", home / "set", *out).exception)
    assert "there is no" in str(run(home / "tiny", "--data", home / "none", *out).exception)
    assert not (home / "not-made").exists()


def test_two_measurements_stand_side_by_side(home: Path) -> None:
    """And are refused where one was made under other conditions."""
    arguments = ("--task", "captions", "--split", "validation", "--limit", "2", "-o", home / "a")
    assert run(home / "tiny", "--data", home / "set", *arguments).exit_code == 0
    text = (home / "a" / "records.json").read_text()
    (record,) = json.loads(text)["records"]
    record["protocol"]["sampling"]["caption_steps"] = 7
    other = json.dumps({"records": [{**record, "protocol_sha256": ""}]})
    for name, content in (("b", text), ("c", other)):
        (home / name).mkdir()
        (home / name / "records.json").write_text(content)
    shown = run("--compare", home / "a", home / "b")
    assert shown.exit_code == 0 and "exact name" in shown.output and "+0.0" in shown.output
    assert "caption_steps: 3 / 7" in str(run("--compare", home / "a", home / "c").exception)
    assert "caption_steps: 3 / 7" in run("--compare", home / "a", home / "c", "--force").output
    (pair,) = json.loads(run("--compare", home / "a", home / "b", "--json").stdout)["pairs"]
    assert pair["first"]["scores"] == pair["second"]["scores"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a model and its data"),
        (("tiny",), "name a model and its data"),
        (("tiny", "--compare", "a", "b"), "leave MODEL and its options out"),
        (("--compare", "a", "b", "--clip", "c"), "leave MODEL and its options out"),
        (("--publish", "a", "--data", "set"), "--publish reads what was measured"),
        (("tiny", "--data", "set", "--force"), "--force has no effect without --compare"),
    ],
)
def test_what_is_asked_for_must_be_clear(arguments: tuple[str, ...], message: str) -> None:
    assert message in str(run(*arguments).exception)


def test_several_steps_and_scales_are_measured_each_and_drawn_as_curves(home: Path) -> None:
    """What draws no pictures does not depend on them and is measured once."""
    out = home / "sweep"
    tasks = ("--task", "retrieval,captions", "--split", "validation", "--limit", "2")
    result = run(home / "tiny", "--data", home / "set", *tasks, "--steps", "1,2", "--guidance", "1,3", "-o", out)
    assert result.exit_code == 0, result.output
    records = read_records(out / "records.json")
    assert [record.task for record in records] == ["retrieval", "captions", "retrieval", "retrieval", "retrieval"]
    sampled = {tuple(one.protocol["sampling"].values())[:2] for one in records if one.task == "retrieval"}
    assert sampled == {(1, 1.0), (1, 3.0), (2, 1.0), (2, 3.0)}
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2 and "over guidance" in page and "over steps" in page
    assert len(list((out / "pictures").iterdir())) == 4


def test_captions_have_steps_and_guidance_of_their_own(home: Path) -> None:
    """The way from image to text is sampled too, and a trade-off there is as good a question."""
    out = home / "readings"
    options = ("--task", "captions", "--split", "validation", "--limit", "2", "--caption-steps", "1,2", "-o", out)
    result = run(home / "tiny", "--data", home / "set", *options)
    assert result.exit_code == 0, result.output
    records = read_records(out / "records.json")
    assert [record.protocol["sampling"]["caption_steps"] for record in records] == [1, 2]
    assert all("--caption-steps 1,2" in record.command for record in records)
    assert "over steps" in (out / "report.html").read_text()


def test_a_solver_reaches_the_pictures_and_the_protocol(home: Path) -> None:
    options = ("--task", "retrieval", "--split", "validation", "--limit", "2", "--solver", "heun", "--json")
    (record,) = json.loads(run(home / "tiny", "--data", home / "set", *options).stdout)["records"]
    assert record["protocol"]["sampling"]["solver"] == "heun" and "--solver heun" in record["command"]


def test_an_interval_of_guidance_reaches_the_pictures_and_is_told_where_it_is_not_the_whole_way(home: Path) -> None:
    """Pictures that were guided for a part of the way must not pass for others, nor the whole way for a part."""

    def measured(*interval: str) -> tuple[dict, list[Path]]:
        out = home / "-".join(("guided", *interval[1:]))
        options = ("--task", "retrieval", "--split", "validation", "--limit", "1", "--guidance", "3", *interval)
        result = run(home / "tiny", "--data", home / "set", *options, "--json", "-o", out)
        return json.loads(result.stdout)["records"][0], sorted((out / "pictures").rglob("0*.png"))

    (usual, [picture]), (whole, [same]) = measured(), measured("--guidance-interval", "0", "1")
    early, [other] = measured("--guidance-interval", "0", "0.4")
    assert early["protocol"]["sampling"] == {**usual["protocol"]["sampling"], "guidance_interval": [0.0, 0.4]}
    assert "--guidance 3 --guidance-interval 0.0 0.4" in early["command"]
    assert whole["protocol_sha256"] == usual["protocol_sha256"] != early["protocol_sha256"]
    with Image.open(picture) as one, Image.open(same) as two, Image.open(other) as third:
        assert one.tobytes() == two.tobytes() != third.tobytes()
