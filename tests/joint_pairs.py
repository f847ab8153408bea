"""The paper's joint stage on a few invented pairs, small enough for any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments
from flowtok.flow.transformer import VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.text.projector import AlignmentHeadConfig, TextProjectorConfig
from flowtok.train.flow import Sketch
from flowtok.train.joint import JointModules, JointStage, JointStageConfig, joint_losses
from flowtok.train.samples import PairSet

COUNT, LENGTH, CHANNELS, WIDTH = 16, 4, 2, 8
VELOCITY = VelocityTransformerConfig(depth=1, width=16, num_heads=2, num_tokens=LENGTH, token_channels=CHANNELS)
PROJECTOR = TextProjectorConfig(
    text_width=WIDTH, num_tokens=LENGTH, token_channels=CHANNELS, num_layers=1, num_heads=2, hidden=16, dropout=0.0
)


def joint_modules() -> JointModules:
    """Velocity, projector and head with fixed weights, none of them zero where a gradient would stop."""
    joint = JointModules(VELOCITY, PROJECTOR, AlignmentHeadConfig(text_width=WIDTH, token_channels=CHANNELS, hidden=8))
    joint.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(joint.network.head.linear.weight, generator=torch.Generator().manual_seed(1))
    return joint


def joint_batch() -> dict[str, Tensor]:
    """Eight samples, none of them null: nulls are given each other's pictures within a part."""
    generator = torch.Generator().manual_seed(2)
    return {
        "features_BSE": torch.randn(8, LENGTH, WIDTH, generator=generator),
        "noise_BLC": torch.randn(8, LENGTH, CHANNELS, generator=generator),
        "z_image_BLC": torch.randn(8, LENGTH, CHANNELS, generator=generator),
        "t_B": torch.rand(8, generator=generator),
        "null_B": torch.zeros(8, dtype=torch.bool),
    }


def joint_gradients(joint: JointModules, config: JointStageConfig, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of all three losses by the names of the weights; zeros where there is none."""
    losses = joint_losses(joint, config, batch)
    (losses["flow_B"].mean() + losses["alignment"] + losses["kl"]).backward()
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in joint.named_parameters()
    }


def joint_stage() -> JointStage:
    """The stage on pairs in memory."""
    generator = torch.Generator().manual_seed(3)
    mean_NLC = torch.randn(COUNT, LENGTH, CHANNELS, generator=generator)
    features_MSE = torch.randn(COUNT, LENGTH, WIDTH, generator=generator)
    captions = CaptionFeatures(features_MSE=features_MSE, ids_MS=torch.zeros(COUNT, LENGTH, dtype=torch.long))
    table = CaptionTable.of([[f"pair {number}"] for number in range(COUNT)])
    moments = Moments(mean_NLC=mean_NLC, logvar_NLC=torch.full_like(mean_NLC, -4.0))
    scale = LatentScale(LENGTH, CHANNELS)
    samples = PairSet([f"pair {number}" for number in range(COUNT)], captions, moments, table, scale, 1.0)
    vision = VisionTransformerConfig(width=16, depth=1, num_heads=2)
    tokenizer = ImageTokenizerConfig(
        image_size=8, patch_size=4, num_tokens=LENGTH, token_channels=CHANNELS, encoder=vision, decoder=vision,
        text_width=None,
    )  # fmt: skip
    sketch = Sketch(features_BSE=features_MSE[:2], tokenizer=ImageTokenizer(tokenizer), scale=scale)
    config = JointStageConfig(head_hidden=8)
    return JointStage(VELOCITY, PROJECTOR, config, samples=samples, sketch=sketch)
