"""The paper's joint training: its choices do what they say. Its numbers are proven in tests/parity."""

from typing import Any

import pytest
import torch

from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.text.projector import AlignmentHeadConfig, TextProjectorConfig
from flowtok.train.joint import JointModules, JointStageConfig, joint_losses

BATCH, LENGTH, CHANNELS, WIDTH = 6, 4, 2, 8


def modules() -> JointModules:
    velocity = VelocityTransformerConfig(depth=1, width=16, num_heads=2, num_tokens=LENGTH, token_channels=CHANNELS)
    projector = TextProjectorConfig(
        text_width=WIDTH, num_tokens=LENGTH, token_channels=CHANNELS, num_layers=1, num_heads=2, hidden=16, dropout=0.0
    )
    joint = JointModules(velocity, projector, AlignmentHeadConfig(text_width=WIDTH, token_channels=CHANNELS, hidden=8))
    joint.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(joint.network.head.linear.weight, generator=torch.Generator().manual_seed(1))
    return joint


def batch(size: int = BATCH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "features_BSE": torch.randn(size, LENGTH, WIDTH, generator=generator),
        "noise_BLC": torch.randn(size, LENGTH, CHANNELS, generator=generator),
        "z_image_BLC": torch.randn(size, LENGTH, CHANNELS, generator=generator),
        "t_B": torch.rand(size, generator=generator),
        "null_B": torch.zeros(size, dtype=torch.bool),
    }


def test_the_flows_loss_reaches_the_projector() -> None:
    # This is what makes the source part of the model; text.py's way of training it has no such gradient.
    joint = modules()
    joint_losses(joint, JointStageConfig(), batch())["flow_B"].mean().backward()
    gradient = joint.projector.to_moments.weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_the_divergence_does_not_grow_with_the_batch() -> None:
    joint = modules()
    one = batch()
    twice = {name: torch.cat([value, value]) for name, value in one.items()}
    small, large = (joint_losses(joint, JointStageConfig(), part)["kl"] for part in (one, twice))
    assert torch.allclose(small, large)


def test_every_alignment_of_the_paper_is_another_loss() -> None:
    joint = modules()
    losses = {
        (target, loss): joint_losses(joint, JointStageConfig(alignment_target=target, alignment_loss=loss), batch())[
            "alignment"
        ].item()
        for target in ("mlp", "average_pool")
        for loss in ("contrastive", "cosine")
    }
    assert len(set(losses.values())) == 4, losses
    with_margin = joint_losses(joint, JointStageConfig(alignment_loss="cosine", cosine_margin=0.5), batch())
    assert with_margin["alignment"] < losses["mlp", "cosine"]


def test_kl_of_the_paper_pulls_where_the_releases_is_flat() -> None:
    joint = modules()
    with torch.no_grad():
        joint.projector.to_moments.bias[:CHANNELS] = 2.0
    terms = {kl: joint_losses(joint, JointStageConfig(kl=kl), batch())["kl"] for kl in ("paper", "release")}
    assert terms["paper"] > 2.0 * terms["release"]


def test_a_frozen_projector_stays_as_it_is() -> None:
    """Image to text alone would pull the words together, since nothing would hold the projector back."""
    config = JointStageConfig(projector="frozen", alignment_weight=0.0, kl_weight=0.0)
    velocity = VelocityTransformerConfig(depth=1, width=16, num_heads=2, num_tokens=LENGTH, token_channels=CHANNELS)
    projector = TextProjectorConfig(
        text_width=WIDTH, num_tokens=LENGTH, token_channels=CHANNELS, num_layers=1, num_heads=2, hidden=16, dropout=0.5
    )
    head = AlignmentHeadConfig(text_width=WIDTH, token_channels=CHANNELS, hidden=8)
    joint = JointModules(velocity, projector, head, frozen_projector=True).train()
    joint.initialize(torch.Generator().manual_seed(0))
    assert joint.network.training and torch.equal(
        *[joint.projector(batch()["features_BSE"]).mean_BLC for _ in range(2)]
    )
    joint_losses(joint, config, batch())["flow_B"].mean().backward()
    assert all(weight.grad is None for weight in (*joint.projector.parameters(), *joint.head.parameters()))
    assert joint.network.head.linear.weight.grad is not None
    with pytest.raises(ValueError, match="no effect on a frozen projector"):
        JointStageConfig(projector="frozen")


@pytest.mark.parametrize("field", ["alignment_weight", "kl_weight", "cosine_margin", "null_probability"])
def test_weights_below_zero_are_refused(field: str) -> None:
    wrong: dict[str, Any] = {field: -1.0}
    with pytest.raises(ValueError, match=field if field != "alignment_weight" else "weights"):
        JointStageConfig(**wrong)
