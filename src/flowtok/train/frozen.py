"""What networks that are not trained make of pictures and captions, on the device, while another one learns from it.

One class for each kind of samples (samples.py); where pictures and captions come from is in streaming.py.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from flowtok.flow.grid import uniform_grid
from flowtok.flow.guidance import guided, tabled
from flowtok.flow.solver import euler
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.text.encoder import TextEncoder
from flowtok.text.projector import TextProjector


class View(Protocol):
    """How pictures and the ids of their captions become what a stage learns from."""

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What is drawn at random for the samples; on the CPU."""
        ...

    def made(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What the networks make of `image_B3YX` (uint8), `ids_BS` and the draws; on the device."""
        ...


class Pixels:
    """Pictures for the tokenizer, and text features where its decoder is guided by text."""

    def __init__(self, text_encoder: TextEncoder | None) -> None:
        self.text_encoder = text_encoder

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def made(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        found = {"image_B3YX": batch["image_B3YX"].float() / 255.0}
        if self.text_encoder is not None:
            found["text_BSE"] = self.text_encoder.features(batch["ids_BS"])
        return found


class Pairs:
    """Text features, and a draw of the picture's tokens as the flow sees them."""

    def __init__(self, text_encoder: TextEncoder, tokenizer: ImageTokenizer, scale: LatentScale) -> None:
        self.text_encoder, self.tokenizer, self.scale = text_encoder, tokenizer, scale

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = self.tokenizer.config.num_tokens, self.tokenizer.config.token_channels
        return {"image_noise_BLC": torch.randn(batch, *shape, generator=generator)}

    def made(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        posterior = self.tokenizer.encode(batch["image_B3YX"].float() / 255.0)
        return {
            "features_BSE": self.text_encoder.features(batch["ids_BS"]),
            "z_image_BLC": self.scale.to_flow(posterior.sample(batch["image_noise_BLC"])),
        }


class TextTokens:
    """Tokens at the text end: of the caption itself, or brought back from its picture by the flow."""

    def __init__(
        self,
        pairs: Pairs,
        projector: TextProjector,
        velocity: VelocityTransformer,
        *,
        text_share: float,
        num_steps: int,
    ) -> None:
        """Takes the networks.

        Args:
            pairs: Makes features and tokens of pictures.
            projector: From features to tokens.
            velocity: Carries pictures to the text end.
            text_share: Share of samples whose tokens come from the caption itself.
            num_steps: Steps of the flow.
        """
        self.pairs, self.projector, self.velocity, self.text_share = pairs, projector, velocity, text_share
        self.num_steps = num_steps

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = self.pairs.draw(batch, generator)
        noise_BLC = torch.randn(drawn["image_noise_BLC"].shape, generator=generator)
        return drawn | {"text_noise_BLC": noise_BLC, "own_B": torch.rand(batch, generator=generator) < self.text_share}

    def made(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`z_BLC`, with each sample by one of the two ways; no way is gone for nothing."""
        own_B, noise_BLC = batch["own_B"], batch["text_noise_BLC"]
        z_BLC = torch.empty_like(noise_BLC)
        if own_B.any():
            features_BSE = self.pairs.text_encoder.features(batch["ids_BS"][own_B])
            z_BLC[own_B] = self.projector(features_BSE).sample(noise_BLC[own_B])
        if not own_B.all():
            z_BLC[~own_B] = self.carried(batch["image_B3YX"][~own_B], batch["image_noise_BLC"][~own_B])
        return {"z_BLC": z_BLC}

    def carried(self, image_B3YX: Tensor, noise_BLC: Tensor) -> Tensor:
        """Pictures (uint8) as tokens at the text end."""
        posterior = self.pairs.tokenizer.encode(image_B3YX.float() / 255.0)
        return to_text_end(self.velocity, self.pairs.scale.to_flow(posterior.sample(noise_BLC)), self.num_steps)


def to_text_end(network: VelocityTransformer, z_image_BLC: Tensor, num_steps: int) -> Tensor:
    """Image tokens carried to the text end of the flow, without guidance."""
    grid = uniform_grid(num_steps).reversed()
    velocity = guided(tabled(network, grid.told, device=z_image_BLC.device), 1.0)
    return euler(velocity, z_image_BLC, grid.times)
