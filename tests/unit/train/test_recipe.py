"""Recipes as they are kept: those of earlier versions stay readable, and anything else is refused."""

from typing import Any

import pytest

from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.checkpoints.folder import read_config
from flowtok.config import apply_overrides, to_dict
from flowtok.errors import FlowTokError
from flowtok.recipes import RECIPES, TINY
from flowtok.train.recipe import read_recipe


def stored(**changes: Any) -> dict[str, Any]:
    """The plain data of a recipe, without the field that an earlier version had in another form."""
    data = to_dict(TINY)
    del data["random_views"]
    return data | changes


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_kept_is_read_back(name: str) -> None:
    assert read_recipe(to_dict(RECIPES[name]), where=name) == RECIPES[name]


@pytest.mark.parametrize(("views", "random"), [(1, False), (4, True)])
def test_a_recipe_of_an_earlier_version_is_read(views: int, random: bool) -> None:
    # A model is kept for years: it must still be packed, gone on with and named by what it was trained with.
    assert read_recipe(stored(views_per_picture=views), where="a model").random_views is random


def test_every_shipped_model_holds_a_recipe_that_can_be_read() -> None:
    models = [path.parent for path in sorted(shipped_folder().glob("*/config.json"))]
    assert models
    for model in models:
        recipe = read_recipe(read_config(model).provenance["recipe"], where=model.name)
        assert recipe.image_tokenizer.image_size == (read_config(model).image_tokenizer or {})["image_size"]


@pytest.mark.parametrize(
    "changes", [{"views": 4}, {"views_per_picture": "four"}, {"views_per_picture": 4, "random_views": False}]
)
def test_other_keys_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FlowTokError, match="a model.*views"):
        read_recipe(stored(**changes), where="a model")


def test_noise_wants_a_decoder_that_is_told_of_it() -> None:
    with pytest.raises(
        FlowTokError, match=r"noise is for a decoder that is told of it: set image_tokenizer.flow_noise"
    ):
        apply_overrides(RECIPES["emoji"], ["tokenizer_stage.noise=0.5", "image_tokenizer.flow_noise=0"])


@pytest.mark.parametrize(
    "change",
    [
        "flow_stage.time=logit_normal",
        "flow_stage.null_probability=0.2",
        "joint_stage.cosine_margin=0.5",
        "joint_stage.gather_negatives=true joint_stage.alignment_weight=0",
        "joint_stage.gather_negatives=true joint_stage.alignment_loss=cosine",
        "joint_stage.canonical_share=0.5",
        "captions_per_picture=4",
        "random_views=true",
    ],
)
def test_a_setting_without_effect_is_refused(change: str) -> None:
    # Whoever compares it with the default would compare a training with itself, and weeks later.
    with pytest.raises(FlowTokError, match="no effect") as caught:
        apply_overrides(RECIPES["paper-256-stage1"], change.split())
    assert change.split("=")[0].split(".")[-1] in str(caught.value) and "\n" not in str(caught.value)
    assert "time" not in change or "set it to uniform" in str(caught.value)
    assert apply_overrides(RECIPES["paper-256-stage1"], ["joint_stage.time=uniform"])
