"""Planning a training for pictures of one's own: what is promised to fit into the minutes does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowtok.errors import FlowTokError
from flowtok.recipes import EMOJI, TINY
from flowtok.train.fit import SHARE_OF_TRAINING, FitPlan, measured_rates, plan_fit, recipe_for

RATES = {"tokenizer": 50.0, "text": 80.0, "flow": 100.0}


def plan(num_pictures: int = 5000, minutes: float = 60.0, start: Path | None = None) -> FitPlan:
    return plan_fit(EMOJI, name="mine", num_pictures=num_pictures, minutes=minutes, rates=RATES, start=start)


@pytest.mark.parametrize("start", [None, Path("emoji")])
@pytest.mark.parametrize("minutes", [5.0, 60.0])
def test_the_stages_take_the_minutes_allowed(minutes: float, start: Path | None) -> None:
    recipe = plan(minutes=minutes, start=start).recipe
    seconds = sum(
        training.num_steps * training.batch_size / RATES[stage]
        for stage in RATES
        if (training := getattr(recipe, f"{stage}_training")) is not None
    )
    assert seconds == pytest.approx(60.0 * minutes * SHARE_OF_TRAINING, rel=0.05)


def test_few_pictures_are_not_learned_by_heart_all_night() -> None:
    made = plan(num_pictures=20, minutes=600.0)
    assert made.recipe.tokenizer_training.num_steps * made.recipe.tokenizer_training.batch_size <= 400 * 20
    assert any("by heart" in reason for reason in made.reasons)


def test_starting_from_a_model_keeps_its_text_side_and_learns_more_gently() -> None:
    fresh, started = plan().recipe, plan(start=Path("emoji")).recipe
    assert fresh.text_training is not None and started.text_training is None
    assert started.flow_training.optimizer.learning_rate == fresh.flow_training.optimizer.learning_rate / 2
    assert started.flow_stage.reading > 0, "nothing else teaches it to caption"


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(FlowTokError, match="3 pictures are too few"):
        plan(num_pictures=3)
    with pytest.raises(FlowTokError, match="--minutes"):
        plan(minutes=0.0)
    for size in (65, 8):
        with pytest.raises(FlowTokError, match=f"size {size} does not fit"):
            recipe_for(EMOJI, size)


def test_a_larger_picture_has_as_many_patches() -> None:
    tokenizer = recipe_for(EMOJI, 128).image_tokenizer
    assert (tokenizer.image_size, tokenizer.grid) == (128, EMOJI.image_tokenizer.grid)


def test_rates_are_measured_on_the_recipes_own_networks() -> None:
    # Half the batch at half the cost must come out at about the same rate; here only that every stage has one.
    small = replace(TINY, tokenizer_training=replace(TINY.tokenizer_training, batch_size=2))
    rates = measured_rates(small, torch.device("cpu"), seconds=0.0)
    assert set(rates) == {"tokenizer", "text", "flow"} and min(rates.values()) > 0
