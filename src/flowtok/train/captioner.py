"""The last stage: the text decoder learns to read the tokens that the flow brings back from pictures.

Where the tokens come from is in samples.py (carried there once, in memory) and frozen.py (as pictures are read). The
loop is loop.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowtok.text.decoder import TextDecoder, reading_loss
from flowtok.train.loop import LossTerms
from flowtok.train.samples import ReadsSamples, Samples


@dataclass(frozen=True, kw_only=True)
class CaptionerStageConfig:
    """How the text decoder is tuned.

    Attributes:
        text_share: Share of samples whose tokens come from the caption itself, so that reading those is kept; with 1 no
            picture is looked at.
        draws: Times that each picture in memory is carried to the text side, each from a fresh draw of its posterior;
            of a stream every picture is carried anew.
        num_steps: Euler steps of the flow from the image to the text.
    """

    text_share: float = 0.25
    draws: int = 2
    num_steps: int = 8

    def __post_init__(self) -> None:
        if not 0.0 <= self.text_share <= 1.0 or min(self.draws, self.num_steps) < 1:
            raise ValueError(f"text_share must lie in [0, 1], draws and num_steps must be positive: {self}")


class CaptionerStage(ReadsSamples):
    """Cross entropy of the canonical caption, read from flowed tokens.

    Source: section 4.2 of the paper (image to text); tuning the decoder on flowed tokens is our own.
    """

    name = "captioner"

    def __init__(
        self,
        decoder: TextDecoder,
        config: CaptionerStageConfig,
        *,
        samples: Samples,
        held_out: tuple[Tensor, Tensor],
        padding_id: int,
        end_id: int,
    ) -> None:
        """Goes on from a trained decoder.

        Args:
            decoder: The text decoder of the text stage, or a fresh one.
            config: How it is tuned.
            samples: Tokens at the text end with the ids of their captions.
            held_out: Flowed tokens (M, L, C) and ids (M, S), best of pictures that are not trained on, for the figures.
            padding_id: Id of the padding.
            end_id: Id of the end mark.
        """
        self.config, self.samples, self.held_out = config, samples, held_out
        self.padding_id, self.end_id, self.decoder = padding_id, end_id, decoder
        self.modules: nn.Module = decoder

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        return self.samples.take(indices_B, generator)

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        batch = self.samples.complete(batch)
        reading = reading_loss(self.decoder, batch["z_BLC"], batch["ids_BS"], self.padding_id)
        return LossTerms(total=reading, terms={"reading": reading.detach()})

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Share of held-out captions read to the letter; the picture shows which ids were right."""
        assert isinstance(modules, TextDecoder)
        z_BLC, ids_BS = self.held_out
        device = modules.positions_LD.device
        read = [modules.read(part.to(device), self.end_id).cpu() for part in z_BLC.float().split(128)]
        right_BS = (torch.cat(read) == ids_BS) | (ids_BS == self.padding_id)
        Image.fromarray(right_BS[:256].byte().numpy() * 255).save(path)
        return {"preview_exact": right_BS.all(1).float().mean().item()}
