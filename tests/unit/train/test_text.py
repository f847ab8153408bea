"""The text stage: under which noise captions are read and kept apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments
from flowtok.image.latents import LatentScale
from flowtok.text.decoder import TextDecoderConfig
from flowtok.text.projector import TextProjectorConfig
from flowtok.train.text import TextStage, TextStageConfig

LENGTH, CHANNELS, PICTURES, WIDTH = 4, 3, 5, 8


def stage(config: TextStageConfig) -> TextStage:
    draws = torch.Generator().manual_seed(0)
    mean_NLC = torch.randn(PICTURES, LENGTH, CHANNELS, generator=draws)
    return TextStage(
        TextProjectorConfig(
            text_width=WIDTH, num_tokens=LENGTH, token_channels=CHANNELS, num_layers=1, num_heads=2, hidden=8,
            dropout=0.0, noise_std=0.2,
        ),
        TextDecoderConfig(
            vocabulary_size=9, num_tokens=LENGTH, token_channels=CHANNELS, width=8, depth=1, num_heads=2,
            tied_width=WIDTH, causal=True,
        ),
        config,
        captions=CaptionFeatures(
            features_MSE=torch.randn(PICTURES, LENGTH, WIDTH, generator=draws).half(),
            ids_MS=torch.randint(3, 9, (PICTURES, LENGTH), generator=draws),
        ),
        table=CaptionTable.of([[f"picture {i}", f"picture {(i + 1) % PICTURES}"] for i in range(PICTURES)]),
        moments=Moments(mean_NLC=mean_NLC, logvar_NLC=torch.full_like(mean_NLC, -9.0)),
        scale=LatentScale(LENGTH, CHANNELS),
        word_table_VE=torch.randn(9, WIDTH, generator=draws),
        padding_id=0,
        end_id=2,
        files=[f"{i}.png" for i in range(PICTURES)],
    )  # fmt: skip


@pytest.mark.parametrize(("noise_std", "expected"), [(None, 0.2), (0.7, 0.7)])
def test_words_are_read_under_the_stages_noise_and_the_flow_keeps_the_projectors(
    noise_std: float | None, expected: float
) -> None:
    """Under the flow's little noise alone captions may lie so close that the flow cannot tell them apart."""
    ours = stage(TextStageConfig(kl=0.0, noise_std=noise_std))
    seen: list[Any] = []
    read = ours.side.decoder.states
    ours.side.decoder.states = lambda z_BLC, ids_BT: seen.append(z_BLC) or read(z_BLC, ids_BT)  # type: ignore[method-assign]
    batch = ours.batch(torch.arange(PICTURES), torch.Generator().manual_seed(1))
    ours.loss(batch)
    tokens = ours.side.projector(batch["features_BSE"])
    torch.testing.assert_close(seen[0], tokens.mean_BLC + expected * batch["noise_BLC"])
    assert tokens.std_BLC.unique().tolist() == pytest.approx([0.2])


@pytest.mark.parametrize("reads", ["own", "canonical"])
def test_words_that_are_read_are_the_captions_own_or_the_pictures_name(reads: Any) -> None:
    ours = stage(TextStageConfig(reads=reads, canonical_share=0.0))
    pictures_B = torch.arange(PICTURES).repeat(8)
    batch = ours.batch(pictures_B, torch.Generator().manual_seed(1))
    asked_B = torch.stack([(ours.captions.features_MSE == one.half()).all(2).all(1).nonzero()[0, 0]
                           for one in batch["features_BSE"]])  # fmt: skip
    canonical_B = ours.table.choices_NK[pictures_B, 0]
    assert not torch.equal(asked_B, canonical_B), "other captions are asked for too"
    expected_B = asked_B if reads == "own" else canonical_B
    assert torch.equal(batch["ids_BS"], ours.captions.ids_MS[expected_B])


def test_other_words_are_drawn_to_the_name_and_not_the_name_to_them() -> None:
    """The flow knows a thing by its name's tokens: were they pulled away by every description, it would forget it."""
    plain, agreeing = (
        stage(TextStageConfig(canonical_share=0.0, agreement=weight, noise_std=0.5)) for weight in (0.0, 3.0)
    )
    batch = agreeing.batch(torch.arange(PICTURES), torch.Generator().manual_seed(1))
    found, before = agreeing.loss(batch), plain.loss(batch)
    tokens_BX, named_BX = (
        agreeing.side.projector(batch[name]).mean_BLC.flatten(1) for name in ("features_BSE", "canonical_BSE")
    )
    apart = (1.0 - torch.cosine_similarity(tokens_BX, named_BX.detach())).mean()
    torch.testing.assert_close(found.total, before.total + 3.0 * apart)
    weight = agreeing.side.projector.to_moments.weight
    expected = torch.autograd.grad(before.total, [plain.side.projector.to_moments.weight])[0]
    expected = expected + 3.0 * torch.autograd.grad(apart, [weight])[0]
    torch.testing.assert_close(torch.autograd.grad(found.total, [weight])[0], expected)
    assert "canonical_BSE" not in plain.batch(torch.arange(PICTURES), torch.Generator().manual_seed(1))


def test_no_noise_below_zero() -> None:
    with pytest.raises(ValueError, match="noise_std must be above 0"):
        TextStageConfig(noise_std=0.0)
