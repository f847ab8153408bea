"""Cached moments and the table of captions."""

from pathlib import Path

import torch

from flowtok.data.latents import CaptionTable, Moments, cached, moments_of
from flowtok.data.sheets import contact_sheet

TEXTS = [["a cat, in x style", "a cat"], ["a dog, in x style"], ["a cat, in y style", "a cat", "cat"]]


def test_shared_captions_are_kept_once_and_the_canonical_one_comes_first() -> None:
    table = CaptionTable.of(TEXTS)
    assert sorted(table.captions) == sorted({text for texts in TEXTS for text in texts})
    assert [table.captions[number] for number in table.choices_NK[:, 0]] == [texts[0] for texts in TEXTS]


def test_a_picture_is_only_ever_given_its_own_captions() -> None:
    table, generator = CaptionTable.of(TEXTS), torch.Generator().manual_seed(0)
    seen = [set(), set(), set()]
    for _ in range(200):
        for picture, number in enumerate(table.choose(torch.arange(3), 0.2, generator).tolist()):
            seen[picture].add(table.captions[number])
    assert seen == [set(texts) for texts in TEXTS]
    always = table.choose(torch.arange(3), 1.0, generator)
    assert torch.equal(always, table.choices_NK[:, 0])


def test_moments_keep_the_order_of_the_inputs_and_are_drawn_around_their_means() -> None:
    moments = moments_of(lambda x: (x, torch.full_like(x, -30.0)), torch.arange(7.0)[:, None, None], batch_size=3)
    drawn = moments.sample(torch.tensor([5, 0]), torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.flatten(), torch.tensor([5.0, 0.0]), atol=1e-5)
    wide = Moments(mean_NLC=torch.zeros(1, 100, 100), logvar_NLC=torch.full((1, 100, 100), 2 * 0.6931472))
    assert abs(wide.sample(torch.tensor([0]), torch.Generator().manual_seed(0)).std().item() - 2.0) < 0.05


def test_a_cached_result_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.arange(3)}

    first, second = (cached(tmp_path / "a" / "x.safetensors", compute) for _ in range(2))
    assert torch.equal(first["x"], second["x"])
    assert len(calls) == 1


def test_a_sheet_shows_every_picture_at_its_place() -> None:
    pictures = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.5, 2.0)])
    sheet = contact_sheet(pictures, columns=2, gap=1)
    assert sheet.size == (11, 11)
    assert [sheet.getpixel(place) for place in ((1, 1), (6, 1), (1, 6), (6, 6), (0, 0))] == [
        (0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 255, 255), (255, 255, 255)
    ]  # fmt: skip
