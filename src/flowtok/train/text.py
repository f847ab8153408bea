"""The text side: the projector learns tokens that keep the meaning, the decoder learns to read them.

Works on cached text features and, for the alignment with pictures, on cached image tokens. The loop is loop.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments
from flowtok.image.latents import LatentScale
from flowtok.text.decoder import TextDecoder, TextDecoderConfig, candidates, reading_loss
from flowtok.text.projector import TextProjector, TextProjectorConfig, contrastive_loss, cosine_loss, draw_linear_layers
from flowtok.train.loop import LossTerms


@dataclass(frozen=True, kw_only=True)
class TextStageConfig:
    """How the text side is trained before the flow.

    Attributes:
        reading: Weight of the cross entropy of the words read back.
        reads: Which words: the caption's own (`own`), or those of the picture's canonical caption (`canonical`), which
            makes tokens say what is meant, in whatever words it was asked for.
        alignment: Weight of the contrastive loss between a caption's tokens and its picture's.
        agreement: Weight of one minus the cosine between a caption's tokens and those of its picture's canonical
            caption, which learn nothing from it: other words for a thing come to lie where the flow knows its name.
        kl: Weight of the divergence of the text tokens from the standard normal.
        noise_std: Deviation of the noise under which tokens are read and aligned, so that captions are kept apart by
            more than the flow's own noise asks for; None takes the projector's.
        canonical_share: Share of the draws that take a picture's canonical caption.
        head_width: Hidden width of the head that brings image tokens to the text tokens' space for the alignment.
        random_words: Words are told from those of all captions and this many drawn ones; None takes the vocabulary.
    """

    reading: float = 1.0
    reads: Literal["own", "canonical"] = "own"
    alignment: float = 1.0
    agreement: float = 0.0
    kl: float = 1e-4
    noise_std: float | None = None
    canonical_share: float = 0.4
    head_width: int = 1024
    random_words: int | None = None

    def __post_init__(self) -> None:
        if min(self.reading, self.alignment, self.agreement, self.kl) < 0 or not 0 <= self.canonical_share <= 1:
            raise ValueError(f"weights must not be negative and canonical_share must lie in [0, 1]: {self}")
        if self.noise_std is not None and self.noise_std <= 0:
            raise ValueError(f"noise_std must be above 0, or null for the projector's, not {self.noise_std}")


class TextSide(nn.Module):
    """What is trained here: projector, decoder, and the image head and temperature that serve the alignment only."""

    def __init__(self, projector: TextProjectorConfig, decoder: TextDecoderConfig, head_width: int) -> None:
        super().__init__()
        size = decoder.num_tokens * decoder.token_channels
        self.projector = TextProjector(projector)
        self.decoder = TextDecoder(decoder)
        self.image_head = nn.Sequential(nn.Linear(size, head_width), nn.GELU(), nn.Linear(head_width, size))
        self.log_temperature = nn.Parameter(torch.tensor(2.66))

    def initialize(self, generator: torch.Generator) -> None:
        """Draws fresh weights of all parts, in the order in which they stand above."""
        self.projector.initialize(generator)
        self.decoder.initialize(generator)
        draw_linear_layers(self.image_head, generator)


class TextStage:
    """Projector and decoder as an autoencoder of captions whose tokens agree with the picture's.

    Source: the losses of section 4.1 of the paper. It differs in order: here the text tokens are settled before the
    flow, so that the flow's own loss cannot pull them together (docs/lab-notes.md).
    """

    name = "text"

    def __init__(
        self,
        projector: TextProjectorConfig,
        decoder: TextDecoderConfig,
        config: TextStageConfig,
        *,
        captions: CaptionFeatures,
        table: CaptionTable,
        moments: Moments,
        scale: LatentScale,
        word_table_VE: Tensor,
        padding_id: int,
        end_id: int,
        files: Sequence[str],
        seed: int = 1234,
    ) -> None:
        """Builds fresh networks.

        Args:
            projector: Shape of the text projector.
            decoder: Shape of the text decoder.
            config: How both are trained.
            captions: Text features and ids of the captions of `table`.
            table: Which captions belong to which picture.
            moments: Posteriors of the pictures.
            scale: Between the tokenizer's tokens and the flow's.
            word_table_VE: The text encoder's words, which the decoder is tied to.
            padding_id: Id of the padding.
            end_id: Id of the end mark.
            files: Names of the pictures.
            seed: Fixes the first weights.
        """
        self.config, self.captions, self.table = config, captions, table
        self.moments, self.scale, self.padding_id, self.end_id = moments, scale, padding_id, end_id
        self.num_samples, self.files = len(moments.mean_NLC), tuple(files)
        self.side = TextSide(projector, decoder, config.head_width)
        self.side.initialize(torch.Generator().manual_seed(seed))
        self.side.decoder.tie(word_table_VE)
        self.known_U = captions.ids_MS.unique()
        self.modules: nn.Module = self.side

    def names(self, indices_B: Tensor) -> list[str]:
        return [self.files[index] for index in indices_B.tolist()]

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        chosen_B = self.table.choose(indices_B, self.config.canonical_share, generator)
        read_B = chosen_B if self.config.reads == "own" else self.table.choices_NK[indices_B, 0]
        z_image_BLC = self.scale.to_flow(self.moments.sample(indices_B, generator))
        canonical = {}
        if self.config.agreement:
            canonical["canonical_BSE"] = self.captions.features_MSE[self.table.choices_NK[indices_B, 0]].float()
        return canonical | {
            "among_K": candidates(
                self.known_U, self.side.decoder.config.vocabulary_size, self.config.random_words, generator
            ),
            "features_BSE": self.captions.features_MSE[chosen_B].float(),
            "ids_BS": self.captions.ids_MS[read_B],
            "z_image_BLC": z_image_BLC,
            "noise_BLC": torch.randn(z_image_BLC.shape, generator=generator),
        }

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        tokens = self.side.projector(batch["features_BSE"])
        noise_std = self.config.noise_std or tokens.std_BLC
        z_text_BLC = tokens.mean_BLC + noise_std * batch["noise_BLC"]
        reading = reading_loss(self.side.decoder, z_text_BLC, batch["ids_BS"], self.padding_id, batch["among_K"])
        seen_BK = self.side.image_head(batch["z_image_BLC"].flatten(1))
        alignment = contrastive_loss(z_text_BLC, seen_BK.view_as(z_text_BLC), self.side.log_temperature)
        kl = tokens.kl_B().mean()
        weights = self.config
        total = weights.reading * reading + weights.alignment * alignment + weights.kl * kl
        terms = {
            "reading": reading.detach(),
            "alignment": alignment.detach(),
            "kl": kl.detach(),
            "mean_std": tokens.mean_BLC.detach().std(0).mean(),
            "sigma": tokens.std_BLC.detach().mean(),
        }
        if weights.agreement:
            with torch.no_grad():
                named_BLC = self.side.projector(batch["canonical_BSE"]).mean_BLC
            apart = cosine_loss(tokens.mean_BLC.flatten(1), named_BLC.flatten(1))
            terms["agreement"] = apart.detach()
            total = total + weights.agreement * apart
        return LossTerms(total=total, terms=terms)

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Text tokens of 64 canonical captions as rows of a picture, and the share that is read back to the letter."""
        assert isinstance(modules, TextSide)
        device = modules.log_temperature.device
        shown = torch.linspace(0, self.num_samples - 1, min(256, self.num_samples)).long()
        picked = self.table.choices_NK[shown, 0]
        ids_BS = self.captions.ids_MS[picked].to(device)
        tokens = modules.projector(self.captions.features_MSE[picked].float().to(device))
        noise_BLC = torch.randn(tokens.mean_BLC.shape, generator=torch.Generator().manual_seed(0)).to(device)
        read_BS = modules.decoder.read(tokens.sample(noise_BLC), end_id=self.end_id)
        right_B = ((read_BS == ids_BS) | (ids_BS == self.padding_id)).all(1)
        rows = (tokens.mean_BLC[:64].flatten(1).float().cpu() * 48 + 128).clamp(0, 255).byte()
        Image.fromarray(rows.numpy()).save(path)
        return {"preview_read": right_B.float().mean().item()}
