"""The named models have the paper's sizes: a wrong width or depth would still train, and nobody would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flowtok.checkpoints import official
from flowtok.components import check_fit
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.perceptual import PerceptualConfig
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.recipes import PAPER_MODELS, RECIPES, VELOCITY_NETWORKS
from flowtok.released.card import SIZES
from flowtok.text.decoder import TextDecoder
from flowtok.text.encoder import CLIP_L14
from flowtok.text.projector import AlignmentHead, AlignmentHeadConfig, TextProjector
from flowtok.train.joint import JointModules
from flowtok.train.tokenizer import AdversaryConfig

# Velocity network, text projector and alignment head together; the paper writes 153M, 698M and 1.1B.
PAPER_COUNTS = {"B": 153_925_185, "XL": 698_083_905, "H": 1_092_095_553}
KEYS = {"B": 237, "XL": 397, "H": 477}


def build(model: dict[str, Any]) -> tuple[VelocityTransformer, TextProjector, AlignmentHead, ImageTokenizer]:
    with torch.device("meta"):
        return (
            VelocityTransformer(model["velocity"]),
            TextProjector(model["text_projector"]),
            AlignmentHead(model["alignment_head"]),
            ImageTokenizer(model["image_tokenizer"]),
        )


def count(*networks: nn.Module) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_the_papers_models_have_its_sizes(name: str) -> None:
    size, pixels = name.split("-")
    model = PAPER_MODELS[name]
    velocity, projector, head, tokenizer = build(model)
    if size in PAPER_COUNTS:
        assert count(velocity, projector, head) == PAPER_COUNTS[size]
        assert len(official.released_velocity(velocity, projector, head)) == KEYS[size]
    assert count(projector) == 23_665_184
    assert count(head) - 1 == 664_592  # without the temperature
    assert tokenizer.config.image_size == int(pixels)
    assert count(tokenizer.encoder) + tokenizer.latent_tokens.numel() == 85_803_296
    assert count(tokenizer.decoder) == 304_047_924
    assert len(official.released_tokenizer(tokenizer)) == 461
    check_fit(name, {part: config for part, config in model.items() if part != "alignment_head"})


def test_every_size_is_there_at_both_resolutions() -> None:
    assert set(PAPER_MODELS) == {f"{size}-{pixels}" for size in ("S", "B", "L", "XL", "H") for pixels in (256, 512)}


def test_imported_models_are_called_by_the_recipes_names() -> None:
    sizes = {name: (config.depth, config.width) for name, config in VELOCITY_NETWORKS.items()}
    assert {name: size for size, name in SIZES.items()} == sizes


def test_released_widths_have_the_recipes_heads() -> None:
    """Heads cannot be seen in a file's shapes; wrong ones load and draw noise."""
    for config in VELOCITY_NETWORKS.values():
        assert official.VELOCITY_HEADS[config.width] == config.num_heads
    projector = PAPER_MODELS["XL-256"]["text_projector"]
    assert projector.num_heads == official.PROJECTOR_HEADS[projector.text_width]


PAPER = [name for name in RECIPES if name.startswith("paper-")]


def test_the_papers_recipes_are_there_for_its_sizes() -> None:
    stages = ("paper-256-stage1", "paper-256-stage2", "paper-512", "paper-captions")
    sizes = ("", "-b", "-xl", "-h")
    assert set(PAPER) == {"paper-tokenizer"} | {f"{stage}{size}" for stage in stages for size in sizes}
    assert all(RECIPES[stage] == RECIPES[f"{stage}-xl"] for stage in stages)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_trains_networks_of_the_papers_sizes(name: str) -> None:
    """On the meta device, which holds no numbers: a wrong width would be found after weeks."""
    recipe = RECIPES[name]
    size = (name.rpartition("-")[2] if name.endswith(("-b", "-h")) else "xl").upper()
    with torch.device("meta"):
        tokenizer = ImageTokenizer(recipe.image_tokenizer)
        joint = JointModules(recipe.velocity, recipe.text_projector, AlignmentHeadConfig())
        decoder = TextDecoder(recipe.text_decoder) if recipe.text_decoder else None
    assert count(joint) == PAPER_COUNTS[size]
    assert count(tokenizer.encoder) + tokenizer.latent_tokens.numel() == 85_803_296
    assert count(tokenizer.decoder) == 304_047_924
    assert tokenizer.config.image_size == (512 if "512" in name else 256)
    assert recipe.text_encoder == CLIP_L14 and recipe.stream is not None
    if decoder is not None:
        assert len(decoder.blocks) == 6


def test_the_papers_numbers_are_the_papers() -> None:
    """Table 6, the filters of table 5, and the recipe of the tokenizer."""
    first, second = (RECIPES[f"paper-256-{stage}"] for stage in ("stage1", "stage2"))
    assert first.flow_training is not None and second.flow_training is not None
    found = [
        (one.num_steps, one.batch_size, one.optimizer.learning_rate, one.optimizer.warmup_steps)
        for one in (first.flow_training, second.flow_training)
    ]
    assert found == [(250_000, 4096, 4e-4, 10_000), (150_000, 4096, 2e-4, 0)]
    for recipe in (first, second):
        assert recipe.flow_training is not None
        rule = recipe.flow_training.optimizer
        assert (rule.name, rule.betas, rule.weight_decay, rule.schedule) == ("adamw", (0.9, 0.95), 0.03, "constant")
        filters = recipe.data.filters
        assert (filters.min_longer_side, filters.max_aspect, filters.watermark_at_most) == (256, 2.0, 0.5)
        assert recipe.data.captions.recaption_share == 0.95
    assert (first.data.filters.aesthetic_above, second.data.filters.aesthetic_above) == (5.0, 6.0)
    tokenizer = RECIPES["paper-tokenizer"]
    training, stage = tokenizer.tokenizer_training, tokenizer.tokenizer_stage
    assert training is not None and tokenizer.trained_stages == ("tokenizer",)
    assert (training.num_steps, training.batch_size, training.ema_decay) == (650_000, 1024, 0.999)
    rule = training.optimizer
    assert (rule.learning_rate, rule.betas, rule.weight_decay, rule.decay_all) == (1e-4, (0.9, 0.999), 1e-4, False)
    assert (rule.warmup_steps, rule.schedule, rule.final_share, rule.clip_norm) == (10_000, "cosine", 0.1, 1.0)
    assert (stage.losses.squared, stage.losses.absolute, stage.losses.kl) == (1.0, 0.0, 1e-6)
    assert (stage.first_logvar, stage.flip) == (0.0, 0.5)
    assert stage.perceptual == PerceptualConfig() and stage.adversary == AdversaryConfig()
    assert tokenizer.data.filters.aesthetic_above is None and tokenizer.data.filters.min_longer_side == 256
