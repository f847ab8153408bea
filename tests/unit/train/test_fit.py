"""Planning a training for pictures of one's own: what is promised to fit into the minutes does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.data.captioned import load
from flowtok.errors import FlowTokError
from flowtok.recipes import EMOJI, TINY
from flowtok.train.fit import (
    FitPlan,
    check_enough,
    choose_networks,
    plan_fit,
    plan_flow,
    rebuilt_psnr,
    recipe_for,
    seconds_of_stages,
)
from flowtok.train.rates import flow_rate, measured_rates
from flowtok.train.recipe import STAGES, Recipe

SMALL = Path(__file__).parents[2] / "data" / "emoji_small"
RATES = {"tokenizer": 50.0, "text": 80.0, "flow": 100.0}


def plan(
    num_pictures: int = 5000, seconds: float = 3600.0, start: Path | None = None, psnr: float | None = None
) -> FitPlan:
    return plan_fit(EMOJI, name="mine", num_pictures=num_pictures, seconds=seconds, rates=RATES, start=start, psnr=psnr)


@pytest.mark.parametrize("start", [None, Path("emoji")])
@pytest.mark.parametrize("seconds", [300.0, 3600.0])
def test_the_stages_take_the_time_allowed(seconds: float, start: Path | None) -> None:
    recipe = plan(seconds=seconds, start=start).recipe
    taken = sum(
        training.num_steps * training.batch_size / RATES[stage]
        for stage in RATES
        if (training := getattr(recipe, f"{stage}_training")) is not None
    )
    assert taken == pytest.approx(seconds, rel=0.05)


def test_the_flow_takes_the_time_that_the_earlier_stages_have_left() -> None:
    # Rates are rough: without this a slow tokenizer would make the whole fit late.
    first = plan()
    second = plan_flow(first, num_pictures=5000, seconds=600.0)
    assert second.recipe.flow_training.num_steps == int(600.0 * RATES["flow"] / EMOJI.flow_training.batch_size)
    assert second.recipe.tokenizer_training == first.recipe.tokenizer_training
    rates = {one.recipe.flow_training.optimizer.learning_rate for one in (first, second)}
    assert rates == {EMOJI.flow_training.optimizer.learning_rate}


def test_every_stage_ends_in_time_for_the_later_ones() -> None:
    # A machine that other work slows down would else train for hours where minutes were allowed.
    now = [0.0]
    fresh, started = plan().recipe, plan(start=Path("emoji"), psnr=20.0).recipe
    limits = seconds_of_stages(fresh, STAGES, lambda: 1000.0 - now[0])
    assert {stage: round(left()) for stage, left in limits.items()} == {"tokenizer": 382, "text": 468, "flow": 850}
    now[0] = 900.0
    assert limits["flow"]() == pytest.approx(-50.0)
    now[0] = 0.0
    limits = seconds_of_stages(started, STAGES, lambda: 1000.0 - now[0])
    assert {stage: round(left()) for stage, left in limits.items()} == {"tokenizer": 255, "flow": 850}
    limits = seconds_of_stages(fresh, STAGES[2:], lambda: 1000.0 - now[0])
    assert {stage: round(left()) for stage, left in limits.items()} == {"flow": 850}
    assert seconds_of_stages(fresh, STAGES, lambda: -5.0)["tokenizer"]() <= 0


def chosen(num_pictures: int, seconds: float, faster: float = 1.0) -> tuple[Recipe, str]:
    """The choice on a machine where networks twice as wide are four times as slow."""

    def rates_of(recipe: Recipe) -> dict[str, float]:
        slower = (recipe.velocity.width / 256) ** 2
        return {stage: faster * rate / slower for stage, rate in RATES.items()}

    recipe, rates, why = choose_networks(EMOJI, num_pictures=num_pictures, seconds=seconds, rates_of=rates_of)
    assert rates == rates_of(recipe), "the plan must count with the rates of what is trained"
    return recipe, why


def test_networks_follow_from_pictures_time_and_machine() -> None:
    recipe, why = chosen(num_pictures=5000, seconds=900.0)
    assert recipe.velocity.width < EMOJI.velocity.width and "60,000 samples in the tokenizer stage" in why
    recipe, why = chosen(num_pictures=5000, seconds=3600.0)
    assert recipe == EMOJI and "10,000 pictures" in why
    recipe, why = chosen(num_pictures=20_000, seconds=3600.0)
    assert recipe == EMOJI and "300,000 samples" in why
    assert chosen(num_pictures=20_000, seconds=3600.0, faster=50.0)[0].velocity.width > EMOJI.velocity.width
    recipe, why = chosen(num_pictures=100, seconds=36000.0, faster=50.0)
    assert recipe.velocity.width < EMOJI.velocity.width and "300 pictures" in why


def test_few_pictures_are_not_learned_by_heart_all_night() -> None:
    made = plan(num_pictures=20, seconds=36000.0)
    assert made.recipe.tokenizer_training.num_steps * made.recipe.tokenizer_training.batch_size <= 400 * 20
    assert any("by heart" in reason for reason in made.reasons)


def test_starting_from_a_model_keeps_its_text_side_and_changes_its_tokens_gently() -> None:
    fresh, started = plan().recipe, plan(start=Path("emoji"), psnr=20.0).recipe
    assert fresh.text_training is not None and started.text_training is None
    gentle, usual = (recipe.tokenizer_training.optimizer.learning_rate for recipe in (started, fresh))
    assert gentle == usual / 2
    assert started.flow_stage.reading > 0, "nothing else teaches it to caption"


def test_a_decoder_that_was_told_of_noise_does_not_forget_it() -> None:
    """What it draws is decoded as told, whatever it has learned since."""
    told = replace(EMOJI, image_tokenizer=replace(EMOJI.image_tokenizer, flow_noise=0.3))
    plain = replace(EMOJI, image_tokenizer=replace(EMOJI.image_tokenizer, flow_noise=0.0))
    for base, start, noise in ((told, Path("emoji"), 0.5), (told, None, 0.0), (plain, Path("emoji"), 0.0)):
        plan = plan_fit(base, name="mine", num_pictures=500, seconds=1000.0, rates=RATES, start=start, psnr=20.0)
        assert plan.recipe.tokenizer_stage.noise == noise


def test_a_tokenizer_that_knows_such_pictures_is_kept_and_the_flow_has_all_the_time() -> None:
    # A few minutes of training made the shipped tokenizer worse on icons that it gave back well from the start.
    made = plan(seconds=600.0, start=Path("emoji"), psnr=27.7)
    assert made.recipe.trained_stages == ("flow",) and any("27.7 dB" in reason for reason in made.reasons)
    assert made.recipe.flow_training.num_steps == int(600.0 * RATES["flow"] / EMOJI.flow_training.batch_size)


def test_how_truly_a_model_gives_pictures_back_is_seen_from_the_pictures() -> None:
    images_N3YX = load(SMALL).images_N3YX[:8]
    noise_N3YX = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start, device = shipped_folder() / "emoji", torch.device("cpu")
    known, unknown = (rebuilt_psnr(start, images, device) for images in (images_N3YX, noise_N3YX))
    assert known is not None and unknown is not None and known > 20.0 > unknown


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(FlowTokError, match="3 pictures are too few"):
        check_enough(3)
    for size in (65, 8):
        with pytest.raises(FlowTokError, match=f"size {size} does not fit"):
            recipe_for(EMOJI, size)


def test_a_larger_picture_has_as_many_patches() -> None:
    tokenizer = recipe_for(EMOJI, 128).image_tokenizer
    assert (tokenizer.image_size, tokenizer.grid) == (128, EMOJI.image_tokenizer.grid)


def test_new_views_of_pictures_take_their_time_too() -> None:
    # They are made on the CPU beside the training: on a GPU the slower one decides, on the same cores both add up.
    assert flow_rate(96, training=2.0, making=3.0, shared=False) == pytest.approx(96 / 3)
    assert flow_rate(96, training=2.0, making=1.0, shared=False) == pytest.approx(96 / 2)
    assert flow_rate(96, training=2.0, making=1.0, shared=True) == pytest.approx(96 / 3)


@pytest.mark.parametrize("guide", [{}, {"text_width": 384, "num_text_tokens": 32}], ids=["unguided", "guided by text"])
def test_rates_are_measured_on_the_recipes_own_networks(guide: dict[str, int]) -> None:
    # Half the batch at half the cost must come out at about the same rate; here only that every stage has one.
    tokenizer = replace(TINY.image_tokenizer, **guide)
    small = replace(TINY, image_tokenizer=tokenizer, tokenizer_training=replace(TINY.tokenizer_training, batch_size=2))
    rates = measured_rates(small, torch.device("cpu"), seconds=0.0)
    assert set(rates) == {"tokenizer", "text", "flow"} and min(rates.values()) > 0
