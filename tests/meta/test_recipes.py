"""The named models have the paper's sizes: a wrong width or depth would still train, and nobody would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flowtok.checkpoints import official
from flowtok.components import check_fit
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.recipes import PAPER_MODELS, VELOCITY_NETWORKS
from flowtok.released.card import SIZES
from flowtok.text.projector import AlignmentHead, TextProjector

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
