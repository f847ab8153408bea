"""The flow stage: the velocity network learns the straight path between text tokens and image tokens.

Works on cached moments of both sides; text and image networks are not run here. The loop is loop.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowtok.data.latents import CaptionTable, Moments
from flowtok.data.sheets import contact_sheet
from flowtok.flow import path as straight
from flowtok.flow.grid import uniform_grid
from flowtok.flow.guidance import guided, tabled
from flowtok.flow.solver import euler
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.train.loop import LossTerms


@dataclass(frozen=True, kw_only=True)
class FlowStageConfig:
    """How the velocity network is trained.

    Attributes:
        time: Name of the time sampler.
        ends_share: Share of the samples whose time is put exactly to 0 or 1 (half each), where sampling starts.
        null_probability: Share of samples that train the unconditional branch.
        canonical_share: Share of the draws that take a picture's canonical caption.
    """

    time: Literal["uniform", "logit_normal"] = "uniform"
    ends_share: float = 0.1
    null_probability: float = 0.1
    canonical_share: float = 0.6

    def __post_init__(self) -> None:
        shares = (self.ends_share, self.null_probability, self.canonical_share)
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise ValueError(f"ends_share, null_probability and canonical_share must lie in [0, 1], not {shares}")


class FlowStage:
    """Flow matching between the two sides; one network for both directions.

    Source: equations 1 to 3 of the paper; the null branch by drawing, see flow/path.py.
    """

    name = "flow"

    def __init__(
        self,
        velocity: VelocityTransformerConfig,
        config: FlowStageConfig,
        *,
        image: Moments,
        text: Moments,
        table: CaptionTable,
        scale: LatentScale,
        tokenizer: ImageTokenizer,
        preview_captions: Tensor,
        seed: int = 1234,
    ) -> None:
        """Builds a fresh velocity network.

        Args:
            velocity: Shape of the network.
            config: How it is trained.
            image: Posteriors of the pictures.
            text: Posteriors of the captions of `table`.
            table: Which captions belong to which picture.
            scale: Between the tokenizer's tokens and the flow's.
            tokenizer: Decodes previews; not trained.
            preview_captions: Numbers of the captions that previews draw.
            seed: Fixes the first weights.
        """
        self.config, self.image, self.text, self.table = config, image, text, table
        self.scale, self.tokenizer, self.preview_captions = scale, tokenizer, preview_captions
        self.num_samples = len(image.mean_NLC)
        network = VelocityTransformer(velocity)
        network.initialize(torch.Generator().manual_seed(seed))
        self.modules: nn.Module = network
        self.network = network

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        chosen_B = self.table.choose(indices_B, self.config.canonical_share, generator)
        null_B = straight.draw_nulls(len(indices_B), self.config.null_probability, generator)
        t_B = straight.TIME_SAMPLERS[self.config.time](len(indices_B), generator)
        draw_B = torch.rand(len(indices_B), generator=generator) / max(self.config.ends_share, 1e-12)
        t_B = torch.where(draw_B < 1.0, (draw_B < 0.5).float(), t_B)
        z_image_BLC = self.scale.to_flow(self.image.sample(indices_B, generator))
        return {
            "z_text_BLC": self.text.sample(chosen_B, generator),
            "z_image_BLC": straight.rotate_null_targets(z_image_BLC, null_B),
            "t_B": t_B,
            "null_B": null_B,
        }

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        here = straight.point(batch["z_text_BLC"], batch["z_image_BLC"], batch["t_B"])
        velocity_BLC = self.network(here.z_BLC, here.t_B, batch["null_B"]).float()
        error_B = (velocity_BLC - here.velocity_BLC).square().flatten(1).mean(1)
        null_B = batch["null_B"]
        terms = {
            "conditional": error_B[~null_B].mean().detach(),
            "null": error_B[null_B].sum().detach() / null_B.sum().clamp_min(1),
        }
        return LossTerms(total=error_B.mean(), terms=terms)

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Pictures of the preview captions with eight guided steps."""
        assert isinstance(modules, VelocityTransformer)
        device, grid = modules.positions_1LD.device, uniform_grid(8)
        start_BLC = self.text.sample(self.preview_captions, torch.Generator().manual_seed(0)).to(device)
        velocity = guided(tabled(modules, grid.told, device=device), 2.0)
        z_BLC = euler(velocity, start_BLC, grid.times)
        image_B3YX = self.tokenizer.decode(self.scale.from_flow(z_BLC.float().cpu()))
        contact_sheet(image_B3YX, columns=12).save(path)
        return {"preview_std": z_BLC.std().item()}
