"""Paraphrases find concepts, names come back, styles are seen: each scores what it says, and chance is worth chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from emoji_like import write_set
from PIL import Image

from flowtok.errors import DataError
from flowtok.evaluate import retrieval, style_tasks, words_tasks
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.prompt_lists import Paraphrase
from flowtok.evaluate.style_classifier import StyleClassifierConfig
from flowtok.pipeline import FlowTok

# The tiny encoder reads eight word pieces; the names are longer.
pytestmark = pytest.mark.filterwarnings("ignore:only the first")

SMALL = StyleClassifierConfig(side=16, width=4, num_steps=60, batch_size=16, most_shift=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in two styles: "fluent" is bright, "noto" dark; each concept has a picture in either."""
    folder = write_set(tmp_path_factory.mktemp("styled") / "set")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        style = ("fluent", "noto")[number % 2]
        name = f"cat {number // 2}"
        row |= {
            "style": style,
            "name": name,
            "concept": name,
            "text": f"{name}, in {style} style",
            "group": f"g{number % 3}",
        }
        picture = Image.open(folder / row["file_name"]).convert("RGB")
        picture.point(lambda value, style=style: value // 2 + (128 if style == "fluent" else 0)).save(
            folder / row["file_name"]
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def bench(home: Path, folder: Path) -> Bench:
    return Bench(model=FlowTok.from_pretrained(home / "tiny"), folder=folder, model_folder=home / "tiny")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> tuple[Paraphrase, ...]:
    """Paraphrases of the twelve concepts of that set's training split."""
    listed = tuple(
        Paraphrase(kind=("odd", "even")[n % 2], concept=f"cat {n}", prompt=f"kitty number {n}") for n in range(12)
    )
    monkeypatch.setattr(words_tasks, "paraphrases", lambda: listed)
    return listed


def draws(bench: Bench, monkeypatch: pytest.MonkeyPatch, position_of: dict[str, int]) -> None:
    """Has the model draw the training picture at a position for each prompt."""
    monkeypatch.setattr(
        bench.model, "generate", lambda prompts, *_, **__: bench.pictures("train", [position_of[p] for p in prompts])
    )


def test_a_picture_of_the_right_concept_in_any_style_is_found(
    bench: Bench, listed: tuple[Paraphrase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paraphrase asks for no style: to draw one of the concept's pictures is all that can be asked."""
    for style in (0, 1):
        draws(bench, monkeypatch, {one.prompt: 2 * number + style for number, one in enumerate(listed)})
        (record,) = words_tasks.paraphrase_records(bench, "train", None)
        assert record.scores["r_at_1"] == record.scores["pixel_r_at_1"] == record.scores["r_at_1 odd"] == 100.0
        assert (record.scores["mean_rank"], record.num_samples) == (1.0, 12)


def test_a_picture_of_the_wrong_concept_is_not(
    bench: Bench, listed: tuple[Paraphrase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is always the same finds its own concept alone, as chance would."""
    draws(bench, monkeypatch, {one.prompt: (2 * number + 2) % 24 for number, one in enumerate(listed)})
    assert words_tasks.paraphrase_records(bench, "train", None)[0].scores["r_at_1"] == 0.0
    draws(bench, monkeypatch, {one.prompt: 5 for one in listed})
    scores = words_tasks.paraphrase_records(bench, "train", None)[0].scores
    assert scores["chance_r_at_1"] == 100 / 12 and scores["r_at_1"] == pytest.approx(100 / 12)
    assert scores["mean_rank"] == scores["chance_mean_rank"] == 6.5


def test_a_smaller_sample_of_paraphrases_is_part_of_a_larger_one_before_the_same_gallery(
    bench: Bench, listed: tuple[Paraphrase, ...]
) -> None:
    assert words_tasks.chosen_paraphrases(3) == words_tasks.chosen_paraphrases(None)[:3]
    (record,) = words_tasks.paraphrase_records(bench, "train", 3)
    assert (record.num_samples, record.protocol["ways"]) == (3, 12)


def test_concepts_that_the_set_lacks_are_named_before_any_work(bench: Bench) -> None:
    with pytest.raises(DataError, match=r"no training pictures of 200 of the 200 concepts .* 'grinning cat'"):
        words_tasks.check_paraphrases(bench, None)


def test_a_concept_is_as_near_as_its_nearest_picture() -> None:
    """Ranks by hand: concept 0 has a far and a near picture, concept 2 is exactly as near and so counts as nearer."""
    gallery_MD = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    query_ND = torch.tensor([[1.0, 0.0]])
    concept_M = torch.tensor([0, 0, 1, 2])
    ranks = [
        retrieval.concept_ranks(query_ND, gallery_MD, concept_M, torch.tensor([order])).item()
        for order in ([0, 1], [0, 1, 2], [1, 0, 2], [1, 2])
    ]
    assert ranks == [1, 2, 3, 2]


def test_each_name_goes_round_once_and_comes_back_where_the_model_reads_what_it_drew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = bench.open("train").rows
    draws(bench, monkeypatch, {row.text: i for i, row in enumerate(rows)})
    by_pixels = {bench.pictures("train", [i])[0].tobytes(): row.text for i, row in enumerate(rows)}
    monkeypatch.setattr(bench.model, "caption", lambda images, *_, **__: [by_pixels[one.tobytes()] for one in images])
    (record,) = words_tasks.round_trip_records(bench, "train", None)
    assert record.num_samples == record.protocol["names"] == 12
    assert {record.scores[name] for name in ("exact_name", "word_f1", "exact_style", "exact_name g1")} == {100.0}
    assert words_tasks.chosen_names(bench, "train", 5) == words_tasks.chosen_names(bench, "train", None)[:5]
    monkeypatch.setattr(bench.model, "caption", lambda images, *_, **__: ["dog 3, in noto style"] * len(images))
    scores = words_tasks.round_trip_records(bench, "train", None)[0].scores
    assert scores["exact_name"] == 0.0 and 0.0 < scores["word_f1"] < 50.0


def test_styles_that_are_drawn_as_asked_are_seen_and_one_style_for_all_is_worth_chance(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style_tasks, "CLASSIFIER", SMALL)
    rows = bench.open("train").rows
    draws(bench, monkeypatch, {row.text: i for i, row in enumerate(rows)})
    (record,) = style_tasks.style_records(bench, "train", None)
    assert record.scores["classifier_accuracy"] == record.scores["style_agreement"] == 100.0
    draws(bench, monkeypatch, {row.text: 1 for row in rows})
    scores = style_tasks.style_records(bench, "train", None)[0].scores
    assert scores["style_agreement"] == scores["chance_style_agreement"] == scores["style_agreement_mean"] == 50.0
    assert (scores["style_agreement fluent"], scores["style_agreement noto"]) == (0.0, 100.0)
    # What it learned stays with the set: a second measurement judges by the same weights and trains nothing.
    assert len(list(folder.glob("style-classifier-*.safetensors"))) == 1
    monkeypatch.setattr("flowtok.evaluate.style_classifier.learn_styles", None)
    again = Bench(model=bench.model, folder=folder, model_folder=bench.model_folder)
    (second,) = style_tasks.style_records(again, "train", 4)
    assert second.protocol["classifier"] == record.protocol["classifier"]


def test_a_set_of_one_style_is_refused_before_any_work(home: Path, bench: Bench) -> None:
    with pytest.raises(DataError, match="1 style"):
        style_tasks.check_styles(Bench(model=bench.model, folder=home / "set"), None)
