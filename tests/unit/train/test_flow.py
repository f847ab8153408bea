"""The flow stage: what a batch holds, and what reading captions trains."""

from pathlib import Path

import pytest
import torch

from flowtok.data.latents import CaptionTable, Moments
from flowtok.flow.path import point
from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.text.decoder import TextDecoder, TextDecoderConfig
from flowtok.train.flow import (
    LEARNS_GUIDANCE_BEFORE,
    FlowStage,
    FlowStageConfig,
    MomentPairs,
    Reading,
    Sketch,
    text_end,
)

LENGTH, CHANNELS, PICTURES = 4, 2, 6
VELOCITY = VelocityTransformerConfig(depth=1, width=16, num_heads=2, num_tokens=LENGTH, token_channels=CHANNELS)
DECODER = TextDecoderConfig(
    vocabulary_size=9, num_tokens=LENGTH, token_channels=CHANNELS, width=16, depth=1, num_heads=2, causal=True
)
TOKENIZER = ImageTokenizerConfig(
    image_size=8,
    patch_size=4,
    num_tokens=LENGTH,
    token_channels=CHANNELS,
    encoder=VisionTransformerConfig(width=8, depth=1, num_heads=1),
    decoder=VisionTransformerConfig(width=8, depth=1, num_heads=1),
    text_width=None,
)


def moments(count: int, seed: int) -> Moments:
    mean_NLC = torch.randn(count, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return Moments(mean_NLC=mean_NLC, logvar_NLC=torch.full_like(mean_NLC, -4.0))


def stage(config: FlowStageConfig) -> FlowStage:
    ids_NS = torch.randint(3, 9, (PICTURES, LENGTH), generator=torch.Generator().manual_seed(3))
    decoder, tokenizer = TextDecoder(DECODER), ImageTokenizer(TOKENIZER)
    decoder.initialize(torch.Generator().manual_seed(4))
    tokenizer.initialize(torch.Generator().manual_seed(5))
    image = moments(PICTURES, 1)
    views = Moments(mean_NLC=image.mean_NLC + 7.0, logvar_NLC=image.logvar_NLC)
    reading = Reading(
        decoder=decoder,
        ids_NS=ids_NS,
        known_U=ids_NS.unique(),
        pictures=views,
        held_out=(image.mean_NLC, ids_NS),
        padding_id=0,
        end_id=2,
    )
    return FlowStage(
        VELOCITY,
        config,
        pairs=MomentPairs(
            files=tuple(f"{number}.png" for number in range(PICTURES)),
            image=image,
            text=moments(PICTURES, 2),
            table=CaptionTable.of([[f"picture {i}"] for i in range(PICTURES)]),
            scale=LatentScale(LENGTH, CHANNELS),
        ),
        sketch=Sketch(
            captions_B=torch.arange(2),
            features_BSE=torch.zeros(2, LENGTH, 4),
            tokenizer=tokenizer,
            scale=LatentScale(LENGTH, CHANNELS),
        ),
        reading=reading if config.reading else None,
    )


def test_the_samples_that_are_read_stand_at_the_image_end_with_their_own_caption() -> None:
    # Were one of them null or elsewhere on the path, the network would be taught to read what it cannot see.
    ours = stage(FlowStageConfig(reading=1.0, reading_share=0.5, random_words=3))
    assert ours.reading is not None
    batch = ours.batch(torch.tensor([5, 1, 2, 3]), torch.Generator().manual_seed(0))
    assert batch["t_B"][:2].tolist() == [1.0, 1.0] and not batch["null_B"][:2].any()
    assert torch.equal(batch["ids_RS"], ours.reading.ids_NS[[5, 1]])
    assert torch.equal(batch["z_text_BLC"][:2], ours.pairs.text.mean_NLC[[5, 1]])
    assert torch.allclose(batch["z_image_BLC"][:2], ours.pairs.image.mean_NLC[[5, 1]] + 7.0, atol=1.0), "views of them"
    assert len(batch["z_text_BLC"]) == 4


def test_reading_teaches_network_and_decoder() -> None:
    ours = stage(FlowStageConfig(reading=1.0, reading_share=0.5, null_probability=0.0))
    optimizer = torch.optim.AdamW(ours.modules.parameters(), lr=1e-2)
    losses = []
    for step in range(150):
        batch = ours.batch(torch.arange(PICTURES).roll(step), torch.Generator().manual_seed(step))
        losses.append(ours.loss(batch))
        optimizer.zero_grad()
        losses[-1].total.backward()
        if step == 1:  # at step 0 the network's last layer is zero
            for part in (ours.two_way.network.blocks, ours.two_way.decoder):
                assert part is not None
                assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
        optimizer.step()
    assert losses[-1].terms["reading"] < 0.3 * losses[0].terms["reading"]


def test_without_reading_only_the_velocity_is_trained(tmp_path: Path) -> None:
    ours = stage(FlowStageConfig())
    batch = ours.batch(torch.arange(4), torch.Generator().manual_seed(0))
    assert "ids_RS" not in batch and ours.two_way.decoder is None
    losses = ours.loss(batch)
    assert set(losses.terms) == {"conditional", "null", "text_rms", "image_rms"}
    assert "preview_exact" not in ours.preview(ours.modules, tmp_path / "preview.png")


def test_text_tokens_of_every_second_sample_are_further_off() -> None:
    """Free words lead to tokens that no caption has; unseen, the flow would draw anything from there."""
    indices_B = torch.arange(PICTURES).repeat(200)
    plain, noisy = (
        stage(FlowStageConfig(text_noise=noise)).batch(indices_B, torch.Generator().manual_seed(0))["z_text_BLC"]
        for noise in (0.0, 2.0)
    )
    off_B = (noisy - plain).square().mean((1, 2)).sqrt()
    assert 0.4 < (off_B == 0.0).float().mean() < 0.6
    assert 1.0 < off_B.max() < 6.0 and 0.8 < off_B[off_B > 0.0].square().mean().sqrt() < 1.5  # 2 / sqrt(3) in the mean


def test_guidance_is_learned_into_the_weights() -> None:
    """Where the branches differ by d, targets move by d (1 - 1 / scale), so that they end scale times as far apart."""
    plain, guided = (
        stage(FlowStageConfig(guidance_scale=scale, null_probability=0.4, ends_share=0.0)) for scale in (1.0, 4.0)
    )
    for ours in (plain, guided):
        for number, weight in enumerate(ours.modules.parameters()):
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(number))
    batch = plain.batch(torch.arange(PICTURES).repeat(4), torch.Generator().manual_seed(0))
    here = point(batch["z_text_BLC"], batch["z_image_BLC"], batch["t_B"])
    network = guided.two_way.network
    own_BLC, without_BLC = (network(here.z_BLC, here.t_B, null) for null in (batch["null_B"], batch["null_B"] | True))
    moved_B = ~batch["null_B"] & (here.t_B < LEARNS_GUIDANCE_BEFORE)
    assert moved_B.any() and not moved_B.all()
    target_BLC = here.velocity_BLC + 0.75 * moved_B[:, None, None] * (own_BLC - without_BLC).detach()
    found, before = guided.loss(batch), plain.loss(batch)
    torch.testing.assert_close(found.total, (own_BLC - target_BLC).square().mean())
    assert found.terms["null"] == before.terms["null"] and found.terms["conditional"] != before.terms["conditional"]
    found.total.backward()
    expected = torch.autograd.grad((own_BLC - target_BLC).square().mean(), [network.head.linear.weight])[0]
    torch.testing.assert_close(network.head.linear.weight.grad, expected)


def test_one_step_brings_the_text_end() -> None:
    # The caption command takes this step with the solver; both must mean the same.
    network = stage(FlowStageConfig()).two_way.network
    torch.nn.init.normal_(network.head.linear.weight)
    z_BLC = torch.randn(3, LENGTH, CHANNELS)
    velocity_BLC = network(z_BLC, torch.ones(3), torch.zeros(3, dtype=torch.bool))
    assert torch.allclose(text_end(network, z_BLC), z_BLC - velocity_BLC)


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="reading"):
        FlowStageConfig(reading=-0.1)
    with pytest.raises(ValueError, match="guidance_scale must be at least 1"):
        FlowStageConfig(guidance_scale=0.5)
