"""The paper's own training of the flow: projector, alignment and velocity together, on cached features and moments.

The recipe `emoji` departs from it (text.py, then flow.py; docs/lab-notes.md says why). The loop is loop.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowtok.flow import path as straight
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.text.projector import (
    AlignmentHead,
    AlignmentHeadConfig,
    TextProjector,
    TextProjectorConfig,
    average_pool_target,
    contrastive_loss,
    cosine_loss,
    paper_kl,
    release_kl,
)
from flowtok.train.flow import Sketch
from flowtok.train.loop import LossTerms
from flowtok.train.runtime import of_all_ranks
from flowtok.train.samples import ReadsSamples, Samples


@dataclass(frozen=True, kw_only=True)
class JointStageConfig:
    """How projector and velocity network are trained together; the defaults are the authors' release.

    Attributes:
        time: Name of the time sampler.
        null_probability: Share of samples that train the unconditional branch.
        alignment_target: What text tokens are aligned with: text features through the learned head (`mlp`), or pooled
            to the tokens' channels (`average_pool`).
        alignment_loss: `contrastive` within the batch, or `cosine` for each token by itself.
        alignment_weight: Weight of the alignment; 0 leaves it out.
        cosine_margin: Distance that costs nothing with the cosine loss.
        gather_negatives: Takes the negatives of the contrastive loss from all ranks, not from one rank's batch.
        kl: `release`, whose means may spread up to 3 for nothing, or `paper`, the true divergence.
        kl_weight: Weight of the divergence of one sample. The release sums over a rank's batch of 128 with weight
            0.01, which is 1.28 here; here it does not change with the batch.
        canonical_share: Share of the draws that take a picture's canonical caption, where pictures lie in memory; a
            stream draws captions by data.captions.
        head_hidden: Hidden width of the alignment head.
        projector: `trained`, or `frozen` as it was at the start: then nothing but the velocity is learned, and both
            weights must be 0.

    Source: sections 4.1 and 4.2 of the paper, and 5.3, where alignment target, loss and weight are compared.
    """

    time: Literal["uniform", "logit_normal", "early"] = "logit_normal"
    null_probability: float = 0.1
    alignment_target: Literal["mlp", "average_pool"] = "mlp"
    alignment_loss: Literal["contrastive", "cosine"] = "contrastive"
    alignment_weight: float = 1.0
    cosine_margin: float = 0.0
    gather_negatives: bool = False
    kl: Literal["release", "paper"] = "release"
    kl_weight: float = 1.28
    canonical_share: float = 0.6
    head_hidden: int = 512
    projector: Literal["trained", "frozen"] = "trained"

    def __post_init__(self) -> None:
        if not 0.0 <= self.null_probability <= 1.0 or not 0.0 <= self.canonical_share <= 1.0:
            raise ValueError(f"null_probability and canonical_share must lie in [0, 1]: {self}")
        if min(self.alignment_weight, self.kl_weight, self.cosine_margin) < 0 or self.head_hidden < 1:
            raise ValueError(f"weights and cosine_margin must not be negative, head_hidden must be positive: {self}")
        if self.projector == "frozen" and (self.alignment_weight or self.kl_weight):
            raise ValueError(
                "alignment_weight and kl_weight have no effect on a frozen projector; set both to 0, not "
                f"{self.alignment_weight} and {self.kl_weight}"
            )
        if self.cosine_margin and self.alignment_loss != "cosine":
            raise ValueError(
                f"cosine_margin {self.cosine_margin} has no effect on alignment_loss {self.alignment_loss}; set it to 0"
            )
        if self.gather_negatives and (self.alignment_loss != "contrastive" or not self.alignment_weight):
            raise ValueError(
                "gather_negatives has no effect without the contrastive loss at an alignment_weight above 0, not "
                f"{self.alignment_loss} at {self.alignment_weight}; set it to false"
            )


class JointModules(nn.Module):
    """What is trained here: the velocity network, the text projector, and the head that serves the alignment only."""

    def __init__(
        self,
        velocity: VelocityTransformerConfig,
        projector: TextProjectorConfig,
        head: AlignmentHeadConfig,
        *,
        frozen_projector: bool = False,
    ) -> None:
        super().__init__()
        self.network = VelocityTransformer(velocity)
        self.projector = TextProjector(projector)
        self.head = AlignmentHead(head)
        self.frozen_projector = frozen_projector
        if frozen_projector:
            self.projector.requires_grad_(False)
            self.head.requires_grad_(False)

    def train(self, mode: bool = True) -> "JointModules":
        """As of any module; a frozen projector knows no dropout."""
        super().train(mode)
        if self.frozen_projector:
            self.projector.eval()
        return self

    def initialize(self, generator: torch.Generator) -> None:
        """Draws fresh weights of all three, in the order in which they stand above."""
        self.network.initialize(generator)
        self.projector.initialize(generator)
        self.head.initialize(generator)


def joint_losses(modules: JointModules, config: JointStageConfig, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The three losses of one batch.

    Args:
        modules: The networks.
        config: Which losses.
        batch: features_BSE, noise_BLC, z_image_BLC (before nulls are given each other's images), t_B and null_B.

    Returns:
        `flow_B`, the squared error of each sample; `alignment` and `kl`, scalars without their weights.
    """
    tokens = modules.projector(batch["features_BSE"])
    z_text_BLC = tokens.sample(batch["noise_BLC"])
    null_B = batch["null_B"]
    z_image_BLC = straight.rotate_null_targets(batch["z_image_BLC"], null_B)
    here = straight.point(z_text_BLC, z_image_BLC, batch["t_B"])
    velocity_BLC = modules.network(here.z_BLC, here.t_B, null_B).float()
    divergence = {"release": release_kl, "paper": paper_kl}[config.kl](tokens) / len(null_B)
    return {
        "flow_B": (velocity_BLC - here.velocity_BLC).square().flatten(1).mean(1),
        "alignment": _alignment(modules.head, config, z_text_BLC, batch["features_BSE"]),
        "kl": divergence,
    }


def _alignment(head: AlignmentHead, config: JointStageConfig, z_BLC: Tensor, features_BSE: Tensor) -> Tensor:
    if config.alignment_target == "mlp":
        target_BLC = head(features_BSE)
    else:
        target_BLC = average_pool_target(features_BSE, z_BLC.shape[-1])
    if config.alignment_loss == "cosine":
        return cosine_loss(z_BLC, target_BLC, config.cosine_margin)
    if config.gather_negatives:  # every rank computes the same loss
        z_BLC, target_BLC = of_all_ranks(z_BLC), of_all_ranks(target_BLC)
    return contrastive_loss(z_BLC, target_BLC, head.log_temperature)


class JointStage(ReadsSamples):
    """Flow matching whose source is learned at the same time, as in the paper.

    The gradient of the flow's loss reaches the projector through the source and through the target. Nothing but the
    divergence and the alignment keeps the source from collapsing: watch `mean_std` and `sigma`.

    Source: section 4.2 of the paper; losses and draws as in the authors' release, but for the null branch, which
    trains at any batch size (flow/path.py).
    """

    name = "flow"

    def __init__(
        self,
        velocity: VelocityTransformerConfig,
        projector: TextProjectorConfig,
        config: JointStageConfig,
        *,
        samples: Samples,
        sketch: Sketch,
        seed: int = 1234,
    ) -> None:
        """Builds fresh networks.

        Args:
            velocity: Shape of the velocity network.
            projector: Shape of the text projector.
            config: How both are trained.
            samples: Pairs of text features and image tokens.
            sketch: Draws the previews.
            seed: Fixes the first weights.
        """
        self.config, self.samples, self.sketch = config, samples, sketch
        head = AlignmentHeadConfig(
            text_width=projector.text_width, token_channels=projector.token_channels, hidden=config.head_hidden
        )
        joint = JointModules(velocity, projector, head, frozen_projector=config.projector == "frozen")
        joint.initialize(torch.Generator().manual_seed(seed))
        self.modules: nn.Module = joint
        self.joint = joint

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        config = self.joint.network.config
        return self.samples.take(indices_B, generator) | {
            "noise_BLC": torch.randn(len(indices_B), config.num_tokens, config.token_channels, generator=generator),
            "t_B": straight.TIME_SAMPLERS[self.config.time](len(indices_B), generator),
            "null_B": straight.draw_nulls(len(indices_B), self.config.null_probability, generator),
        }

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        batch = self.samples.complete(batch)
        losses = joint_losses(self.joint, self.config, batch)
        null_B, flow_B = batch["null_B"], losses["flow_B"]
        weights = self.config
        total = flow_B.mean() + weights.alignment_weight * losses["alignment"] + weights.kl_weight * losses["kl"]
        with torch.no_grad():
            tokens = self.joint.projector(batch["features_BSE"][:32])
        terms = {
            "conditional": flow_B[~null_B].mean().detach(),
            "null": flow_B[null_B].sum().detach() / null_B.sum().clamp_min(1),
            "alignment": losses["alignment"].detach(),
            "kl": losses["kl"].detach(),
            "mean_std": tokens.mean_BLC.std(0).mean(),
            "sigma": tokens.std_BLC.mean(),
            "text_rms": (tokens.mean_BLC.square() + tokens.std_BLC.square()).mean().sqrt(),
            "image_rms": batch["z_image_BLC"].square().mean().sqrt(),
        }
        return LossTerms(total=total, terms=terms)

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Pictures of the preview captions with eight guided steps."""
        assert isinstance(modules, JointModules)
        device = modules.network.positions_1LD.device
        tokens = modules.projector(self.sketch.features_BSE.float().to(device))
        noise_BLC = torch.randn(tokens.mean_BLC.shape, generator=torch.Generator().manual_seed(0)).to(device)
        return self.sketch.draw(modules.network, tokens.sample(noise_BLC), path)
