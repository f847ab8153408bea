"""The flow stage: the velocity network learns the straight path between text tokens and image tokens.

Works on cached moments of both sides; text and image networks are not run here. The loop is loop.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

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
from flowtok.text.decoder import TextDecoder, candidates, reading_loss
from flowtok.train.loop import LossTerms

# Nearer to the picture what the words mean is seen in it, and the way back to them begins there.
LEARNS_GUIDANCE_BEFORE = 0.9


@dataclass(frozen=True, kw_only=True)
class FlowStageConfig:
    """How the velocity network is trained.

    Attributes:
        time: Name of the time sampler.
        ends_share: Share of the samples whose time is put exactly to 0 or 1 (half each), where sampling starts.
        null_probability: Share of samples that train the unconditional branch.
        canonical_share: Share of the draws that take a picture's canonical caption.
        text_noise: Largest deviation of further noise on the text tokens of every second sample, drawn evenly from 0.
            Words that no caption has lead to tokens between those of captions; so the flow learns where these lead, to
            what the nearest captions mean.
        guidance_scale: Guidance that the network learns into its weights, so that it draws without a second evaluation
            what it would draw with this scale; 1 learns none. Source: the targets of model guidance (Tang et al. 2025),
            whose weight here is 1 - 1 / scale, by which the scale is what it says.
        reading: Weight of the cross entropy of the caption, read by the text decoder after one step from t = 1 to
            t = 0; its gradient reaches decoder and velocity network. 0 trains the velocity alone, as the paper does.
        reading_share: Share of a batch that is read so; these samples stand at t = 1 with their canonical caption.
        random_words: As in the text stage.
    """

    time: Literal["uniform", "logit_normal", "early"] = "uniform"
    ends_share: float = 0.1
    null_probability: float = 0.1
    canonical_share: float = 0.6
    text_noise: float = 0.0
    guidance_scale: float = 1.0
    reading: float = 0.0
    reading_share: float = 0.3
    random_words: int | None = None

    def __post_init__(self) -> None:
        shares = (self.ends_share, self.null_probability, self.canonical_share, self.reading_share)
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise ValueError(
                f"ends_share, null_probability, canonical_share and reading_share must lie in [0, 1], not {shares}"
            )
        if self.reading < 0 or self.text_noise < 0:
            raise ValueError(f"reading and text_noise must not be negative, not {self.reading} and {self.text_noise}")
        if self.guidance_scale < 1.0:
            raise ValueError(f"guidance_scale must be at least 1, which is none, not {self.guidance_scale}")


class Posteriors(Protocol):
    """Pictures that give their tokens."""

    def sample(self, indices_B: Tensor, generator: torch.Generator) -> Tensor:
        """A fresh draw of the tokens of these pictures, (B, L, C), before they are scaled for the flow."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the flow stage needs to read captions back while it learns.

    Attributes:
        decoder: The text decoder of the text stage, tied to its words.
        ids_NS: Ids of the pictures' canonical captions.
        known_U: Ids that occur in any caption.
        pictures: Posteriors of the pictures that are read: as they are, or of a new view each time.
        held_out: Image tokens (M, L, C) and ids (M, S) of pictures that are not trained on, for the figures.
        padding_id: Id of the padding.
        end_id: Id of the end mark.
    """

    decoder: TextDecoder
    ids_NS: Tensor
    known_U: Tensor
    pictures: Posteriors
    held_out: tuple[Tensor, Tensor]
    padding_id: int
    end_id: int


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """How a flow shows what it draws while it learns.

    Attributes:
        features_BSE: Text features of the captions that are drawn.
        tokenizer: Turns tokens into pixels; not trained.
        scale: Between the tokenizer's tokens and the flow's, on the same device.
        captions_B: Numbers of the captions, where they have some.
    """

    features_BSE: Tensor
    tokenizer: ImageTokenizer
    scale: LatentScale
    captions_B: Tensor | None = None

    def draw(
        self, network: VelocityTransformer, z_text_BLC: Tensor, path: Path, guidance_scale: float = 2.0
    ) -> dict[str, float]:
        """Writes a sheet of pictures, eight steps each, and returns the spread of their tokens."""
        device, grid = network.positions_1LD.device, uniform_grid(8)
        velocity = guided(tabled(network, grid.told, device=device), guidance_scale)
        return self.show(euler(velocity, z_text_BLC.to(device), grid.times), path)

    def show(self, z_BLC: Tensor, path: Path) -> dict[str, float]:
        """Writes a sheet of the pictures of these tokens, and returns their spread."""
        there = self.tokenizer.latent_tokens.device
        guide_BSE = None if self.tokenizer.config.text_width is None else self.features_BSE.float().to(there)
        image_B3YX = self.tokenizer.decode_drawn(self.scale.from_flow(z_BLC.float().to(there)), guide_BSE)
        contact_sheet(image_B3YX.float().cpu(), columns=12).save(path)
        return {"preview_std": z_BLC.std().item()}


@dataclass(frozen=True, kw_only=True)
class MomentPairs:
    """Cached moments of both ends of the flow.

    Attributes:
        files: Names of the pictures.
        image: Posteriors of the pictures.
        text: Posteriors of the captions of `table`.
        table: Which captions belong to which picture.
        scale: Between the tokenizer's tokens and the flow's.
    """

    files: tuple[str, ...]
    image: Moments
    text: Moments
    table: CaptionTable
    scale: LatentScale


class TwoWay(nn.Module):
    """What is trained here: the velocity network and, where captions are read, the text decoder."""

    def __init__(self, network: VelocityTransformer, decoder: TextDecoder | None) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder


def text_end(network: VelocityTransformer, z_BLC: Tensor) -> Tensor:
    """Tokens at t = 0 by a single step from image tokens at t = 1: the mean of the texts that the picture may have."""
    ones_B = torch.ones(len(z_BLC), device=z_BLC.device)
    return z_BLC - network(z_BLC, ones_B, torch.zeros_like(ones_B, dtype=torch.bool)).float()


class FlowStage:
    """Flow matching between the two sides; one network for both directions.

    With `reading`, part of a batch is put to the image end, t = 1, which only the way back to the text visits: there
    the network learns, through the text decoder, to tell what it sees. The way from text to image is not touched.

    Source: equations 1 to 3 of the paper; the null branch by drawing, see flow/path.py; reading is our own.
    """

    name = "flow"

    def __init__(
        self,
        velocity: VelocityTransformerConfig,
        config: FlowStageConfig,
        *,
        pairs: MomentPairs,
        sketch: Sketch,
        reading: Reading | None = None,
        seed: int = 1234,
    ) -> None:
        """Builds a fresh velocity network.

        Args:
            velocity: Shape of the network.
            config: How it is trained.
            pairs: What it learns from.
            sketch: Draws the previews.
            reading: What reading captions needs; given exactly if the configuration asks for it.
            seed: Fixes the first weights.
        """
        assert (reading is not None) == (config.reading > 0), "reading is given exactly if its weight is above 0"
        self.config, self.pairs, self.sketch = config, pairs, sketch
        self.num_samples = len(pairs.files)
        network = VelocityTransformer(velocity)
        network.initialize(torch.Generator().manual_seed(seed))
        self.reading = reading
        self.two_way = TwoWay(network, reading.decoder if reading else None)
        self.modules: nn.Module = self.two_way

    def names(self, indices_B: Tensor) -> list[str]:
        return [self.pairs.files[index] for index in indices_B.tolist()]

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        count = round(self.config.reading_share * len(indices_B)) if self.reading else 0
        drawn = self._drawn(indices_B[count:], generator)
        if self.reading is None or not count:
            return drawn
        read_R = indices_B[:count]
        first = {
            "z_text_BLC": self.pairs.text.mean_NLC[self.pairs.table.choices_NK[read_R, 0]].float(),
            "z_image_BLC": self.pairs.scale.to_flow(self.reading.pictures.sample(read_R, generator)),
            "t_B": torch.ones(count),
            "null_B": torch.zeros(count, dtype=torch.bool),
        }
        vocabulary_size = self.reading.decoder.config.vocabulary_size
        return {name: torch.cat([first[name], drawn[name]]) for name in first} | {
            "ids_RS": self.reading.ids_NS[read_R],
            "among_K": candidates(self.reading.known_U, vocabulary_size, self.config.random_words, generator),
        }

    def _drawn(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Samples anywhere on the path, some of them null."""
        chosen_B = self.pairs.table.choose(indices_B, self.config.canonical_share, generator)
        null_B = straight.draw_nulls(len(indices_B), self.config.null_probability, generator)
        t_B = straight.TIME_SAMPLERS[self.config.time](len(indices_B), generator)
        draw_B = torch.rand(len(indices_B), generator=generator) / max(self.config.ends_share, 1e-12)
        t_B = torch.where(draw_B < 1.0, (draw_B < 0.5).float(), t_B)
        z_image_BLC = self.pairs.scale.to_flow(self.pairs.image.sample(indices_B, generator))
        z_text_BLC = self.pairs.text.sample(chosen_B, generator)
        if self.config.text_noise:
            astray_B = (torch.rand(len(indices_B), generator=generator) - 0.5).clamp_min(0.0) * 2.0
            noise_BLC = torch.randn(z_text_BLC.shape, generator=generator)
            z_text_BLC = z_text_BLC + self.config.text_noise * astray_B[:, None, None] * noise_BLC
        return {
            "z_text_BLC": z_text_BLC,
            "z_image_BLC": straight.rotate_null_targets(z_image_BLC, null_B),
            "t_B": t_B,
            "null_B": null_B,
        }

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        here = straight.point(batch["z_text_BLC"], batch["z_image_BLC"], batch["t_B"])
        velocity_BLC = self.two_way.network(here.z_BLC, here.t_B, batch["null_B"]).float()
        count = len(batch["ids_RS"]) if self.reading else 0
        null_B = batch["null_B"]
        rest_B = torch.arange(len(null_B), device=null_B.device) >= count
        target_BLC = here.velocity_BLC
        if self.config.guidance_scale > 1.0:
            guided_B = rest_B & ~null_B & (here.t_B < LEARNS_GUIDANCE_BEFORE)
            target_BLC = self._guided_targets(here, velocity_BLC, guided_B)
        error_B = (velocity_BLC - target_BLC).square().flatten(1).mean(1)
        terms = {
            "conditional": error_B[~null_B & rest_B].mean().detach(),
            "null": error_B[null_B].sum().detach() / null_B.sum().clamp_min(1),
            "text_rms": batch["z_text_BLC"].square().mean().sqrt(),
            "image_rms": batch["z_image_BLC"].square().mean().sqrt(),
        }
        total = error_B.mean()
        if self.reading is not None:
            decoder = self.two_way.decoder
            assert decoder is not None
            z_text_RLC = here.z_BLC[:count] - velocity_BLC[:count]
            reading = reading_loss(decoder, z_text_RLC, batch["ids_RS"], self.reading.padding_id, batch["among_K"])
            terms |= {"backwards": error_B[:count].mean().detach(), "reading": reading.detach()}
            total = total + self.config.reading * reading
        return LossTerms(total=total, terms=terms)

    @torch.no_grad()
    def _guided_targets(self, here: straight.PathPoint, velocity_BLC: Tensor, guided_B: Tensor) -> Tensor:
        """The velocities of the path, at some samples moved on from what the network says without their words."""
        at_G = guided_B.nonzero().squeeze(1)
        null_G = torch.ones(len(at_G), dtype=torch.bool, device=at_G.device)
        without_GLC = self.two_way.network(here.z_BLC[at_G], here.t_B[at_G], null_G).float()
        share = 1.0 - 1.0 / self.config.guidance_scale
        return here.velocity_BLC.index_add(0, at_G, share * (velocity_BLC[at_G] - without_GLC))

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Pictures of the preview captions with eight steps, guided, and how many unseen pictures are read rightly."""
        assert isinstance(modules, TwoWay)
        network = modules.network
        assert self.sketch.captions_B is not None, "captions in memory have numbers"
        start_BLC = self.pairs.text.sample(self.sketch.captions_B, torch.Generator().manual_seed(0))
        is_guided = self.config.guidance_scale > 1.0  # already, by its weights
        figures = self.sketch.draw(network, start_BLC, path, 1.0 if is_guided else 2.0)
        if self.reading is not None and modules.decoder is not None:
            z_image_MLC, ids_MS = self.reading.held_out
            z_text_MLC = text_end(network, z_image_MLC.to(network.positions_1LD.device))
            read_MS = modules.decoder.read(z_text_MLC, self.reading.end_id).cpu()
            right_MS = (read_MS == ids_MS) | (ids_MS == self.reading.padding_id)
            figures["preview_exact"] = right_MS.all(1).float().mean().item()
        return figures
