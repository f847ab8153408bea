"""Where the components of a course begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowtok import recipes
from flowtok.checkpoints.store import save_component
from flowtok.errors import FlowTokError
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.text.encoder import TextEncoder
from flowtok.train.runtime import Runtime
from flowtok.train.weights import Weights, fingerprint_of_words

MODELS = Path(__file__).parents[3] / "models"


def test_a_tokenizer_for_larger_pictures_begins_with_the_weights_of_a_smaller_one(tmp_path: Path) -> None:
    """The paper's way to 512 px; only the tables of positions belong to the size."""
    config = replace(recipes.TINY.image_tokenizer, image_size=16)
    small, large = ImageTokenizer(config), ImageTokenizer(replace(config, image_size=32))
    for seed, tokenizer in enumerate((small, large)):
        tokenizer.initialize(torch.Generator().manual_seed(seed))
    save_component(tmp_path / "small", "image_tokenizer", small.state_dict())
    tables = {name: table.clone() for name, table in large.state_dict().items() if "freqs" in name}
    weights = Weights(recipes.TINY, tmp_path, Runtime(device=torch.device("cpu")), start=[tmp_path / "small"])
    weights.begin("image_tokenizer", large)
    found = large.state_dict()
    assert tables and all(torch.equal(found[name], table) for name, table in tables.items())
    assert all(torch.equal(found[name], value) for name, value in small.state_dict().items() if "freqs" not in name)


def test_a_flow_without_maps_of_positions_goes_on_as_one_that_has_them(tmp_path: Path) -> None:
    """It draws what it drew before, and learns what each position means from there."""
    config = replace(recipes.TINY.velocity, position_maps=False)
    plain, mapped = VelocityTransformer(config), VelocityTransformer(replace(config, position_maps=True))
    for seed, network in enumerate((plain, mapped)):
        network.initialize(torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(plain.head.linear.weight)
    save_component(tmp_path / "plain", "velocity", plain.state_dict())
    Weights(recipes.TINY, tmp_path, Runtime(device=torch.device("cpu")), start=[tmp_path / "plain"]).begin(
        "velocity", mapped
    )
    z_BLC = torch.randn(2, config.num_tokens, config.token_channels, generator=torch.Generator().manual_seed(0))
    told = torch.tensor([0.2, 0.9]), torch.tensor([False, True])
    torch.testing.assert_close(mapped(z_BLC, *told), plain(z_BLC, *told))


def test_a_deeper_network_goes_on_as_the_one_that_it_starts_from(tmp_path: Path) -> None:
    """A model may grow without forgetting: its further layers add nothing until they have learned something."""
    flow, tokenizer = recipes.TINY.velocity, replace(recipes.TINY.image_tokenizer, flow_noise=0.0)
    deeper = replace(
        tokenizer, encoder=replace(tokenizer.encoder, depth=3), decoder=replace(tokenizer.decoder, depth=2)
    )
    small, large = VelocityTransformer(flow), VelocityTransformer(replace(flow, depth=3))
    short, tall = ImageTokenizer(tokenizer), ImageTokenizer(deeper)
    for seed, network in enumerate((small, large, short, tall)):
        network.initialize(torch.Generator().manual_seed(seed))
    for weight in small.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    save_component(tmp_path / "small", "velocity", small.state_dict())
    save_component(tmp_path / "small", "image_tokenizer", short.state_dict())
    weights = Weights(recipes.TINY, tmp_path, Runtime(device=torch.device("cpu")), start=[tmp_path / "small"])
    weights.begin("velocity", large)
    weights.begin("image_tokenizer", tall)
    z_BLC = torch.randn(2, flow.num_tokens, flow.token_channels)
    told = torch.tensor([0.2, 0.9]), torch.tensor([False, True])
    torch.testing.assert_close(large(z_BLC, *told), small(z_BLC, *told))
    image_B3YX = torch.rand(2, 3, tokenizer.image_size, tokenizer.image_size)
    torch.testing.assert_close(tall.encode(image_B3YX).mean_BLC, short.encode(image_B3YX).mean_BLC)
    torch.testing.assert_close(tall.decode(z_BLC), short.decode(z_BLC))
    large(z_BLC, *told).square().sum().backward()
    gates = large.blocks[2].modulation.weight.grad
    assert gates is not None and gates.abs().max() > 0, "the further layers must be able to learn"


@pytest.mark.parametrize(("depth", "lost"), [(1, "blocks."), (3, "blocks.1."), (3, "blocks.2.feed_forward.")])
def test_a_start_that_has_lost_layers_is_no_shallower_network(tmp_path: Path, depth: int, lost: str) -> None:
    """What is missing within a row of layers, or all of it, would be random in silence."""
    network = VelocityTransformer(replace(recipes.TINY.velocity, depth=depth))
    state = {name: one for name, one in network.state_dict().items() if not name.startswith(lost)}
    save_component(tmp_path / "small", "velocity", state)
    weights = Weights(recipes.TINY, tmp_path, Runtime(device=torch.device("cpu")), start=[tmp_path / "small"])
    with pytest.raises(FlowTokError, match="missing"):
        weights.begin("velocity", network)


def test_a_text_side_that_is_kept_must_know_the_features_of_the_recipe(tmp_path: Path) -> None:
    """Shapes would fit, and every caption would mean nothing."""
    recipe = replace(recipes.EMOJI, text_encoder=replace(recipes.EMOJI.text_encoder, activation="quick_gelu"))
    weights = Weights(recipe, tmp_path, Runtime(device=torch.device("cpu")), start=[MODELS / "emoji"])
    with pytest.raises(FlowTokError, match="text_encoder of .*emoji does not fit recipe emoji: activation is gelu"):
        weights.check_features("text_projector")


def test_features_of_one_encoder_with_other_padding_are_other_features() -> None:
    """Else cached ones of before would be trained on, silently."""
    folder = MODELS / "emoji" / "text_encoder"
    found = {
        fingerprint_of_words(TextEncoder.from_folder(folder, replace(recipes.EMOJI.text_encoder, padding=padding)))
        for padding in ("states", "sentence")
    }
    assert len(found) == 2
