"""Measuring a whole model: the records hold what was asked, the same twice, and mistakes are named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emoji_like import COUNTS, write_set
from making_datasets import folder_with_texts, picture
from PIL import Image

from flowtok.data.collect import Collected, open_captioned
from flowtok.data.images import to_pil
from flowtok.errors import FlowTokError
from flowtok.evaluate import captioned_tasks, captions, coco_captions
from flowtok.evaluate.bench import Bench, uint8_pictures
from flowtok.evaluate.drawing import Share
from flowtok.evaluate.prompt_lists import grid_prompts
from flowtok.evaluate.sheets import (
    MAX_BYTES,
    SHEETS,
    Cell,
    grid_cells,
    labelled_sheet,
    save_small,
    steps_cells,
    write_sheets,
)
from flowtok.evaluate.tasks import measure
from flowtok.pipeline import FlowTok

# The tiny encoder reads eight word pieces; the names are longer.
pytestmark = pytest.mark.filterwarnings("ignore:only the first")


@pytest.fixture(scope="module")
def bench(home: Path) -> Bench:
    return Bench(model=FlowTok.from_pretrained(home / "tiny"), folder=home / "set", model_folder=home / "tiny")


def test_measure_gives_a_record_for_each_task_and_split(bench: Bench) -> None:
    records = measure(bench.model_folder or "", bench.folder, limit=4)
    assert [(record.task, record.split) for record in records] == [
        *(("reconstruction", split) for split in COUNTS),
        ("retrieval", "train"),
        ("retrieval", "unseen_concept"),
        *(("captions", split) for split in ("train", "validation", "unseen_style")),
    ]
    assert all(record.num_samples == 4 and record.model == "tiny" for record in records)
    assert len({record.protocol_sha256 for record in records}) == len(records)
    assert {record.model_sha256 for record in records} == {bench.model_sha256} != {None}
    # What reads and resizes pictures and what encodes texts move the last digits: --compare names their versions.
    assert all({"flowtok", "torch", "python", "pillow", "transformers"} <= one.versions.keys() for one in records)


def test_measuring_twice_gives_the_same_record(bench: Bench) -> None:
    """Nothing may depend on chance, on what was measured before or on how many are handed over at a time."""
    first = captioned_tasks.measure_retrieval(bench, "unseen_concept", 5)
    again = Bench(model=bench.model, folder=bench.folder, model_folder=bench.model_folder, batch_size=2)
    captioned_tasks.measure_captions(again, "validation", 3)
    second = captioned_tasks.measure_retrieval(again, "unseen_concept", 5)
    assert first.protocol == second.protocol and first.scores == second.scores


def test_prompt_k_is_drawn_as_a_user_draws_it(bench: Bench) -> None:
    """Anybody can see with `generate --seed` what was measured."""
    prompts = ["red cat", "blue cat", "red heart"]
    drawn = Bench(model=bench.model, folder=bench.folder, seed=7, batch_size=2).generate(prompts)
    for k, prompt in enumerate(prompts):
        assert drawn[k].tobytes() == bench.model.generate(prompt, seed=7 + k)[0].tobytes()


def test_steps_and_guidance_reach_the_model_and_the_protocol(bench: Bench) -> None:
    """A table that says 1 step of a measurement that made 4 would be a lie."""
    other = Bench(model=bench.model, folder=bench.folder, sampling={"num_inference_steps": 1, "guidance_scale": 1.0})
    record = captioned_tasks.measure_retrieval(other, "train", 3)
    assert record.protocol["sampling"]["num_inference_steps"] == 1
    assert record.protocol_sha256 != captioned_tasks.measure_retrieval(bench, "train", 3).protocol_sha256
    assert other.generate(["red cat"])[0].tobytes() != bench.generate(["red cat"])[0].tobytes()
    with pytest.raises(FlowTokError, match="steps must be"):
        Bench(model=bench.model, folder=bench.folder, sampling={"num_inference_steps": 0})


def test_retrieval_of_a_model_that_draws_the_originals_is_perfect(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain from picture to rank: queries, galleries and candidates must belong together."""
    opened = bench.open("train")
    by_text = {row.text: i for i, row in enumerate(opened.rows)}
    monkeypatch.setattr(
        bench.model, "generate", lambda prompts, *_, **__: bench.pictures("train", [by_text[p] for p in prompts])
    )
    scores = captioned_tasks.measure_retrieval(bench, "train", None).scores
    assert (scores["r_at_1"], scores["mean_rank"], scores["chance_r_at_1"]) == (100.0, 1.0, pytest.approx(100 / 24))
    assert scores["all_r_at_1"] == scores["pixel_all_r_at_1"] == 100.0 and scores["all_median_rank"] == 1.0


def test_captions_of_a_model_that_knows_them_are_perfect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = bench.open("unseen_style")
    by_pixels = {bench.pictures("unseen_style", [i])[0].tobytes(): row.text for i, row in enumerate(opened.rows)}
    monkeypatch.setattr(bench.model, "caption", lambda images, *_, **__: [by_pixels[one.tobytes()] for one in images])
    scores = captioned_tasks.measure_captions(bench, "unseen_style", None).scores
    assert (scores["exact_name"], scores["word_f1"]) == (100.0, 100.0)
    assert "exact_style" not in scores and scores["nearest_exact_name"] < 100.0


def test_cocos_scores_join_those_of_captions_and_take_none_of_them_along(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other scores compare between a machine with Java and one without, and outlive a Java that fails."""
    notes: list[str] = []
    own = Bench(model=bench.model, folder=bench.folder, model_folder=bench.model_folder, note=notes.append)
    without = captioned_tasks.measure_captions(own, "validation", 2)
    assert notes == ["captions, validation: no Java in these tests"]
    given: list = []
    monkeypatch.setattr(coco_captions, "hindrance", lambda: None)
    monkeypatch.setattr(coco_captions, "LIBRARY", "torch")  # pycocoevalcap need not be installed here
    monkeypatch.setattr(coco_captions, "coco_scores", lambda *captions: given.append(captions) or {"cider": 3.0})
    record = captioned_tasks.measure_captions(own, "validation", 2)
    assert record.scores == {**without.scores, "cider": 3.0}
    assert record.protocol_sha256 == without.protocol_sha256
    ((written, references),) = given
    assert len(written) == 2 and references == [
        own.open("validation").rows[i].texts for i in own.choose("validation", 2)
    ]

    def fails(*captions: object) -> dict[str, float]:
        raise FlowTokError("Java is out of memory")

    monkeypatch.setattr(coco_captions, "coco_scores", fails)
    assert captioned_tasks.measure_captions(own, "validation", 2).scores == without.scores
    assert "out of memory" in notes[-1]


def test_a_record_says_what_the_networks_compute_in(bench: Bench, home: Path) -> None:
    """Rounded weights score otherwise, and must not compare with whole ones in silence."""
    rounded = Bench(model=FlowTok.from_pretrained(home / "tiny").round_to_int8(), folder=bench.folder)
    assert (bench.precision, rounded.precision) == ("float32", "int8")


def test_how_captions_are_computed_changes_none_and_nothing_of_the_model(bench: Bench) -> None:
    """Thirty-two at a time they take a fraction of the time; a picture drawn afterwards is still drawn alone."""
    alone = Bench(model=bench.model, folder=bench.folder, captions_together=None)
    pictures = bench.pictures("train", range(5))
    assert bench.caption(pictures) == alone.caption(pictures) and bench.model.batch_size == 1


def test_pictures_of_a_split_become_vectors_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a sweep would otherwise encode the whole training set anew."""
    own = Bench(model=bench.model, folder=bench.folder)
    first = own.gallery("train")
    monkeypatch.setattr(own.model.image_tokenizer, "encode", None)
    assert own.with_sampling({"guidance_scale": 3.0}).gallery("train") is first


def test_a_set_is_opened_once_for_all_steps_guidance_and_ranks(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command makes the benches of a sweep before any of them opens the set, which may take minutes."""
    opened: list[object] = []

    def counted(*given: object) -> Collected:
        opened.append(given[0])
        return open_captioned(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("flowtok.evaluate.subject.open_captioned", counted)
    first = Bench(model=bench.model, folder=folder_with_texts(tmp_path / "own", 12))
    others = [first.with_sampling({"guidance_scale": 3.0}), first.shared(Share(num_ranks=2))]
    assert all(one.open("train") is first.open("train") for one in others) and len(opened) == 1


def test_the_checksum_of_a_set_is_of_its_pictures_and_words_wherever_it_lies(bench: Bench, tmp_path: Path) -> None:
    """Another folder's name must not forbid to compare, and other pictures of the same names must."""

    def checksum(folder: Path) -> str:
        own = Bench(model=bench.model, folder=folder)
        assert own.holds("train")
        return own.metadata_sha256

    here, there = (folder_with_texts(tmp_path / name, 12) for name in ("here", "there"))
    assert checksum(here) == checksum(there)
    (there / "0003.png").write_bytes(picture(77))
    other_pixels = checksum(there)
    (there / "0003.png").write_bytes(picture(3))
    (there / "0003.txt").write_text("another thing\n")
    assert len({checksum(here), other_pixels, checksum(there)}) == 3


def test_pictures_that_cannot_be_read_are_counted_aloud(bench: Bench, tmp_path: Path) -> None:
    """A score of 95 pictures in a hundred must not pass for one of all."""
    folder, notes = folder_with_texts(tmp_path / "own", 40), list[str]()
    (folder / "0007.png").write_bytes(b"no picture")
    own = Bench(model=bench.model, folder=folder, note=notes.append)
    assert own.holds("train") and len(notes) == 1 and notes[0].startswith("of 40 pictures are left out: 1 ")


def test_nearest_training_picture_names_its_own_copy(bench: Bench) -> None:
    found = captions.nearest(bench.vectors(bench.open("train").images_N3YX[[3, 17]], "two"), bench.gallery("train"))
    assert found.tolist() == [3, 17]


def test_reconstruction_measures_the_picture_that_a_user_gets(bench: Bench) -> None:
    original, rebuilt = (
        uint8_pictures(pictures).float()
        for pictures in (bench.pictures("train", [0]), bench.model.reconstruct(bench.pictures("train", [0])))
    )
    expected = -10 * torch.log10(((original - rebuilt) / 255).square().mean()).item()
    one = Bench(model=bench.model, folder=bench.folder)
    first = one.choose("train", None).index(0)
    psnr = [
        captioned_tasks.measure_reconstruction(one, "train", count).scores["psnr"] * count
        for count in (first, first + 1)
        if count
    ]
    assert psnr[-1] - (psnr[0] if first else 0.0) == pytest.approx(expected, abs=1e-3)


def test_any_captioned_pictures_are_measured_on_the_splits_that_they_have(bench: Bench, tmp_path: Path) -> None:
    """A folder of one's own has no unseen style; that is no reason to measure nothing."""
    folder = folder_with_texts(tmp_path / "own", 40)
    records = measure(bench.model, folder, ["captions"], limit=2)
    assert [record.split for record in records] == ["train", "validation"]
    assert all(record.protocol["data"]["set"] == "other" for record in records)
    with pytest.raises(FlowTokError, match="no pictures in its split unseen_style"):
        measure(bench.model, folder, ["captions"], limit=2, splits=["unseen_style"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["retreival"]}, "did you mean retrieval"),
        ({"tasks": []}, "no task is named"),
        ({"splits": ["unseen"]}, "unknown split 'unseen'"),
        ({"limit": 0}, "at least 1 sample, not 0"),
    ],
)
def test_mistakes_are_named_before_a_model_is_opened(arguments: dict, message: str) -> None:
    with pytest.raises(FlowTokError, match=message):
        measure("no-such-model", "no-such-set", **arguments)


def test_a_set_of_another_size_or_place_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Resizing silently would measure something else."""
    with pytest.raises(FlowTokError, match=r"pictures of 24 px, the model takes 16"):
        measure(bench.model, write_set(tmp_path / "set", size=24), ["reconstruction"])
    with pytest.raises(FlowTokError, match="there is no .*give a folder of pictures"):
        measure(bench.model, tmp_path / "none", ["reconstruction"])


def test_sheets_are_written_small_and_complete(bench: Bench, tmp_path: Path) -> None:
    """They go into the docs; a large picture slows every clone."""
    paths = write_sheets(bench, tmp_path)
    assert [path.name for path in paths] == [f"{name}.png" for name in SHEETS]
    for path in paths:
        assert path.stat().st_size <= MAX_BYTES
        with Image.open(path) as picture:
            assert picture.width > 100 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 2


def test_words_stand_below_their_picture() -> None:
    """A label that covers a picture or is lost makes the sheet worthless."""
    red = Image.new("RGB", (16, 16), "red")
    sheet = labelled_sheet(
        [Cell(pictures=(red,), words=(("a long name of many words " * 9, (0, 0, 0)),))] * 3, columns=2
    )
    pixels = sheet.load()
    assert pixels is not None
    reds = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if pixels[x, y] == (255, 0, 0)]
    assert len(reds) == 3 * 96 * 96
    first_row_ends = min(y for x, y in reds) + 96
    words = [
        y for x in range(sheet.width) for y in range(first_row_ends, first_row_ends + 45) if sum(pixels[x, y]) < 200
    ]
    assert words and min(words) >= first_row_ends
    with pytest.raises(ValueError, match="at least one cell"):
        labelled_sheet([], columns=2)


def test_the_grid_is_drawn_as_its_list_says_whatever_sheet_a_prompt_is_on(bench: Bench) -> None:
    """Number 25 of the hundred has the seed 25: anybody can draw it again with `generate --seed`."""
    listed = grid_prompts()
    cells = grid_cells(bench, "style")
    assert len(cells) == 20 and cells[0].words[0][0] == listed[25].prompt
    assert cells[0].pictures[0].tobytes() == bench.model.generate(listed[25].prompt, seed=25)[0].tobytes()


def test_a_prompt_is_drawn_with_few_and_many_steps_from_one_seed(bench: Bench) -> None:
    cells = steps_cells(bench)
    number = next(k for k, one in enumerate(grid_prompts()) if one.kind == "name")
    assert all(len(cell.pictures) == 3 for cell in cells) and cells[1].words[0][0] == grid_prompts()[number + 1].prompt
    for shown, steps in zip(cells[1].pictures, (4, 8, 20), strict=True):
        (ours,) = bench.model.generate(cells[1].words[0][0], seed=number + 1, num_inference_steps=steps)
        assert shown.tobytes() == ours.tobytes()


def test_a_sheet_that_does_not_fit_is_refused_and_colours_are_saved_first(tmp_path: Path) -> None:
    (noise,) = to_pil(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert save_small(noise, tmp_path / "noise.png", max_bytes=20_000) <= 20_000
    with Image.open(tmp_path / "noise.png") as picture:
        assert picture.size == (128, 128) and picture.mode == "P"
    with pytest.raises(FlowTokError, match="does not fit"):
        save_small(noise, tmp_path / "none.png", max_bytes=1000)
    assert not (tmp_path / "none.png").exists()
