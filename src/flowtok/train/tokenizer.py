"""The first stage: the image tokenizer learns to write and read pictures.

Knows the tokenizer and its losses; the loop is loop.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowtok.data.sheets import contact_sheet
from flowtok.image.losses import ReconstructionLossConfig, psnr_B, reconstruction_terms
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig
from flowtok.train.loop import LossTerms


@dataclass(frozen=True, kw_only=True)
class TokenizerStageConfig:
    """How the image tokenizer is trained.

    Attributes:
        losses: Weights of the losses.
        first_logvar: Log-variance of the posterior at the start; a small one lets the decoder see the encoder's
            signal before the divergence pulls the two together.
        flip: Probability of a horizontal flip.
        first_weights: `normal`, N(0, 0.02) as in the paper's recipes, or `fan_in` for narrow networks.
    """

    losses: ReconstructionLossConfig = ReconstructionLossConfig()
    first_logvar: float = -5.0
    flip: float = 0.0
    first_weights: Literal["normal", "fan_in"] = "normal"


class TokenizerStage:
    """Reconstruction with a Gaussian posterior.

    Source: section 5.1 of the paper; losses of the TA-TiTok recipe without its perceptual networks.
    """

    name = "tokenizer"

    def __init__(
        self,
        model: ImageTokenizerConfig,
        config: TokenizerStageConfig,
        images_N3YX: Tensor,
        preview_N3YX: Tensor,
        seed: int = 1234,
    ) -> None:
        """Builds a fresh tokenizer.

        Args:
            model: Shape of the network.
            config: How it is trained.
            images_N3YX: Training pictures, uint8.
            preview_N3YX: Pictures that are never trained on, uint8, for previews.
            seed: Fixes the first weights.
        """
        self.config = config
        self.images_N3YX, self.preview_N3YX = images_N3YX, preview_N3YX
        self.num_samples = len(images_N3YX)
        tokenizer = ImageTokenizer(model)
        tokenizer.initialize(torch.Generator().manual_seed(seed), fan_in=config.first_weights == "fan_in")
        with torch.no_grad():
            tokenizer.encoder.to_moments.bias[model.token_channels :] = config.first_logvar
        self.modules: nn.Module = tokenizer
        self.tokenizer = tokenizer

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        image_B3YX = self.images_N3YX[indices_B].float() / 255.0
        if self.config.flip:
            flip_B = torch.rand(len(indices_B), generator=generator) < self.config.flip
            image_B3YX = torch.where(flip_B[:, None, None, None], image_B3YX.flip(-1), image_B3YX)
        model = self.tokenizer.config
        noise_BLC = torch.randn(len(indices_B), model.num_tokens, model.token_channels, generator=generator)
        return {"image_B3YX": image_B3YX, "noise_BLC": noise_BLC}

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        posterior = self.tokenizer.encode(batch["image_B3YX"])
        rebuilt_B3YX = self.tokenizer.decode(posterior.sample(batch["noise_BLC"]))
        terms = reconstruction_terms(batch["image_B3YX"], rebuilt_B3YX, posterior)
        weights = self.config.losses
        total = (
            weights.squared * terms["squared"]
            + weights.absolute * terms["absolute"]
            + weights.gradient * terms["gradient"]
            + weights.kl * terms["kl"]
        )
        return LossTerms(total=total, terms={name: value.detach() for name, value in terms.items()})

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        assert isinstance(modules, ImageTokenizer)
        device = modules.latent_tokens.device
        image_B3YX = self.preview_N3YX.to(device).float() / 255.0
        rebuilt = [modules.decode(modules.encode(part).mean_BLC).float() for part in image_B3YX.split(64)]
        rebuilt_B3YX = torch.cat(rebuilt)
        shown = torch.stack([image_B3YX[:32], rebuilt_B3YX[:32]], dim=1).flatten(0, 1)
        contact_sheet(shown.cpu(), columns=16).save(path)
        return {"preview_psnr": psnr_B(image_B3YX, rebuilt_B3YX).mean().item()}
