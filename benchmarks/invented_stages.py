"""Every training stage on invented data, ours and the plain way of doing the same; training.py measures them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.data.batch_streams import BatchConfig
from flowtok.data.collect import CollectConfig
from flowtok.data.latent_folders import open_latents
from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig
from flowtok.recipes import EMOJI, TINY, TOKENIZER_256, VELOCITY_NETWORKS
from flowtok.text.decoder import TextDecoder, TextDecoderConfig
from flowtok.text.encoder import CLIP_L14, TextEncoder, TextEncoderConfig
from flowtok.text.projector import TextProjector, TextProjectorConfig
from flowtok.train.cached import CachedPairs
from flowtok.train.captioner import CaptionerStage, CaptionerStageConfig
from flowtok.train.flow import FlowStage, FlowStageConfig, MomentPairs, Sketch
from flowtok.train.frozen import Pairs, Pixels, TextTokens
from flowtok.train.joint import JointStage, JointStageConfig
from flowtok.train.loop import LossTerms, Stage
from flowtok.train.runtime import Precision, Runtime
from flowtok.train.samples import PairSet, PictureSet, ReadingSet
from flowtok.train.streaming import StreamedData, StreamingConfig, StreamSamples
from flowtok.train.text import TextStage, TextStageConfig
from flowtok.train.tokenizer import Shown, TokenizerStage, TokenizerStageConfig

STAGES = ("tokenizer", "text", "flow", "joint", "captioner")
SAMPLES = 256
_FLOW_STEPS = 8  # of the plain way of making the last stage's tokens


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The shapes of what is trained."""

    tokenizer: ImageTokenizerConfig
    encoder: TextEncoderConfig
    projector: TextProjectorConfig
    decoder: TextDecoderConfig
    velocity: VelocityTransformerConfig


def networks(size: str) -> Networks:
    """`tiny`, `small` (the shipped model's) or one of the paper's sizes; the tokenizer is guided by text, as there."""
    recipe = TINY if size == "tiny" else EMOJI
    guided = replace(
        recipe.image_tokenizer, text_width=recipe.text_encoder.width, num_text_tokens=recipe.text_encoder.num_tokens
    )
    assert recipe.text_decoder is not None
    small = Networks(
        tokenizer=guided,
        encoder=recipe.text_encoder,
        projector=recipe.text_projector,
        decoder=recipe.text_decoder,
        velocity=recipe.velocity,
    )
    if size in ("tiny", "small"):
        return small
    words = {"vocabulary_size": CLIP_L14.vocabulary_size, "tied_width": CLIP_L14.width, "num_tokens": 77}
    return Networks(
        tokenizer=TOKENIZER_256,
        encoder=CLIP_L14,
        projector=TextProjectorConfig(),
        decoder=replace(small.decoder, **words),
        velocity=VELOCITY_NETWORKS[size],
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        stage: Which stage.
        plain: Whether it is the reference.
        size: Of the networks.
        batch: Samples of an update.
        micro_batch: Samples computed at a time.
        width: Of the velocity network, where it is another than the size's.
        tokens: Of text and image, where they are others.
        precision: Of the matrix products.
        compiled: Whether the losses are compiled.
        device: Where.
        seconds: How long it is measured, after a step or two that are not.
        data: Folder of shards to read as they come, `pictures` or `moments` of them.
        until: It ends at this second of the monotonic clock, measured or not.
    """

    stage: str
    plain: bool = False
    size: str
    batch: int
    micro_batch: int | None = None
    width: int | None = None
    tokens: int | None = None
    precision: Precision = "float32"
    compiled: bool = False
    device: str = "cpu"
    seconds: float = 1.5
    data: str | None = None
    until: float = math.inf

    def networks(self) -> Networks:
        """The size's networks with this case's changes."""
        found = networks(self.size)
        if self.width is not None:
            velocity = replace(found.velocity, width=self.width, num_heads=max(1, self.width // 64))
            found = replace(found, velocity=velocity)
        if self.tokens is not None:
            found = replace(
                found,
                encoder=replace(found.encoder, num_tokens=self.tokens),
                projector=replace(found.projector, num_tokens=self.tokens),
                velocity=replace(found.velocity, num_tokens=self.tokens),
            )
        return found


class Bench:
    """Stages on invented data, for one case. Lives in the measuring process alone."""

    def __init__(self, case: Case) -> None:
        self.case, self.networks = case, case.networks()
        self.runtime = Runtime.start(device=case.device)
        self.generator = torch.Generator().manual_seed(0)
        shape = self.networks.velocity.num_tokens, self.networks.velocity.token_channels
        self.shape, self.scale = shape, LatentScale(*shape)
        length = self.networks.encoder.num_tokens
        self.ids_MS = torch.randint(
            1, self.networks.encoder.vocabulary_size, (SAMPLES, length), generator=self.generator
        )
        self.files = [f"picture {number}" for number in range(SAMPLES)]
        self.table = CaptionTable.of([[f"caption {number}"] for number in range(SAMPLES)])

    def moments(self) -> Moments:
        """Posteriors as a tokenizer might give them."""
        mean_NLC = torch.randn(SAMPLES, *self.shape, generator=self.generator)
        return Moments(mean_NLC=mean_NLC, logvar_NLC=torch.full_like(mean_NLC, -4.0))

    def captions(self) -> CaptionFeatures:
        """Cached text features."""
        size = (SAMPLES, self.networks.encoder.num_tokens, self.networks.encoder.width)
        return CaptionFeatures(features_MSE=torch.randn(*size, generator=self.generator).half(), ids_MS=self.ids_MS)

    def images(self) -> Tensor:
        """Pictures, uint8."""
        side = self.networks.tokenizer.image_size
        return torch.randint(0, 256, (SAMPLES, 3, side, side), dtype=torch.uint8, generator=self.generator)

    def tokenizer(self) -> ImageTokenizer:
        """An image tokenizer that is not trained."""
        tokenizer = ImageTokenizer(self.networks.tokenizer)
        tokenizer.initialize(self.generator)
        return tokenizer

    def text_encoder(self) -> Callable[[Tensor], Tensor]:
        """Ids to features on the device: the shipped encoder, or CLIP's text tower with invented weights."""
        if self.networks.encoder.family == "bert":
            folder = shipped_folder() / "emoji" / "text_encoder"
            return TextEncoder.from_folder(folder, self.networks.encoder).to(self.runtime.device).features
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        network: Any = CLIPTextModel(config).eval().requires_grad_(False).to(self.runtime.device)
        return lambda ids_BS: network(input_ids=ids_BS).last_hidden_state

    def projector(self) -> TextProjector:
        """A text projector that is not trained."""
        projector = TextProjector(self.networks.projector)
        projector.initialize(self.generator)
        return projector.eval().requires_grad_(False).to(self.runtime.device)

    def sketch(self) -> Sketch:
        """Previews, of which none is drawn."""
        tokenizer = ImageTokenizer(TINY.image_tokenizer)
        return Sketch(features_BSE=torch.zeros(1, 1, 1), tokenizer=tokenizer, scale=self.scale)

    # The stages, with all that can be cached in memory

    def make_tokenizer(self) -> Stage:
        model = self.networks.tokenizer
        images_N3YX, captions = self.images(), self.captions()
        shown = Shown(images_N3YX=images_N3YX[:1], features_NSE=captions.features_MSE[:1])
        samples = PictureSet(self.files, images_N3YX, captions, self.table)
        return TokenizerStage(model, TokenizerStageConfig(), samples, shown)

    def make_text(self) -> Stage:
        return TextStage(
            self.networks.projector,
            self.networks.decoder,
            TextStageConfig(kl=0.0, random_words=2048),
            captions=self.captions(),
            table=self.table,
            moments=self.moments(),
            scale=self.scale,
            word_table_VE=self.word_table(),
            padding_id=0,
            end_id=1,
            files=self.files,
        )

    def make_flow(self) -> Stage:
        pairs = MomentPairs(
            files=tuple(self.files), image=self.moments(), text=self.moments(), table=self.table, scale=self.scale
        )
        return FlowStage(self.networks.velocity, FlowStageConfig(), pairs=pairs, sketch=self.sketch())

    def make_joint(self) -> Stage:
        pairs = PairSet(self.files, self.captions(), self.moments(), self.table, self.scale, 1.0)
        config = JointStageConfig()
        return JointStage(self.networks.velocity, self.networks.projector, config, samples=pairs, sketch=self.sketch())

    def make_captioner(self) -> Stage:
        decoder = TextDecoder(self.networks.decoder)
        decoder.initialize(self.generator)
        decoder.tie(self.word_table())
        flowed_RNLC = torch.randn(1, SAMPLES, *self.shape, generator=self.generator).half()
        number_N = torch.arange(SAMPLES)
        samples = ReadingSet(self.files, flowed_RNLC, self.moments(), self.ids_MS, number_N, 0.0)
        held_out = (flowed_RNLC[0, :1], self.ids_MS[:1])
        return CaptionerStage(
            decoder, CaptionerStageConfig(), samples=samples, held_out=held_out, padding_id=0, end_id=1
        )

    def word_table(self) -> Tensor:
        """The words that the text decoder is tied to."""
        config = self.networks.encoder
        return torch.randn(config.vocabulary_size, config.width, generator=self.generator) * 0.1

    # The reference: what ours takes from a cache is made anew

    def plainly(self, name: str, stage: Stage) -> Stage:
        """The stage with a loss that first makes its inputs."""
        anew = {
            "tokenizer": self.features_as("text_BSE"),
            "text": self.features_as("features_BSE"),
            "flow": self.projected,
            "joint": self.features_as("features_BSE"),
            "captioner": self.carried,
        }[name]()
        loss, runtime = stage.loss, self.runtime

        def plain_loss(batch: dict[str, Any]) -> LossTerms:
            with runtime.frozen():
                made = anew(batch)
            return loss(batch | made)

        stage.loss = plain_loss  # type: ignore[method-assign]
        return stage

    def features_as(self, key: str) -> Callable[[], Callable[[dict[str, Any]], dict[str, Tensor]]]:
        """Text features under the name that a stage takes them by."""

        def prepared() -> Callable[[dict[str, Any]], dict[str, Tensor]]:
            encode, ids_MS = self.text_encoder(), self.ids_MS.to(self.runtime.device)
            return lambda batch: {key: encode(ids_MS[: len(batch["noise_BLC"])])}

        return prepared

    def projected(self) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
        """Text tokens from words."""
        encode, projector, ids_MS = self.text_encoder(), self.projector(), self.ids_MS.to(self.runtime.device)

        def made(batch: dict[str, Any]) -> dict[str, Tensor]:
            z_text_BLC = batch["z_text_BLC"]
            return {"z_text_BLC": projector(encode(ids_MS[: len(z_text_BLC)])).sample(torch.randn_like(z_text_BLC))}

        return made

    def carried(self) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
        """Tokens at the text end from pictures."""
        device = self.runtime.device
        tokenizer = self.tokenizer().eval().requires_grad_(False).to(device)
        velocity = VelocityTransformer(self.networks.velocity).eval().requires_grad_(False)
        velocity.initialize(self.generator)
        unused: Any = None
        pairs = Pairs(unused, tokenizer, self.scale.to(device))
        view = TextTokens(pairs, unused, velocity.to(device), text_share=0.0, num_steps=_FLOW_STEPS)
        images_N3YX = self.images().to(device)

        def made(batch: dict[str, Any]) -> dict[str, Tensor]:
            z_BLC = batch["z_BLC"]
            return {"z_BLC": view.carried(images_N3YX[: len(z_BLC)], torch.randn_like(z_BLC))}

        return made

    # Data that is read as it comes

    def make_streamed(self, folder: Path) -> Stage:
        """The stage with samples from shards: pictures for the tokenizer, moments for the joint stage."""
        encoder = TextEncoder.from_folder(shipped_folder() / "emoji" / "text_encoder", self.networks.encoder)
        encoder.to(self.runtime.device)
        workers = 1 if self.case.device == "cpu" else 8
        if self.case.data == "moments":
            settings = BatchConfig(batch_size=1, num_workers=workers)
            pairs = CachedPairs(open_latents(folder / "moments"), settings, encoder, self.scale, self.runtime)
            return JointStage(
                self.networks.velocity, self.networks.projector, JointStageConfig(), samples=pairs, sketch=self.sketch()
            )
        model = replace(self.networks.tokenizer, text_width=None)
        reading = StreamingConfig(num_workers=workers, hold_out=False)
        data = StreamedData(str(folder / "pictures"), model.image_size, CollectConfig(), reading)
        samples = StreamSamples(data, Pixels(None), encoder, self.runtime)
        shown = Shown(images_N3YX=self.images()[:1], features_NSE=None)
        return TokenizerStage(model, TokenizerStageConfig(), samples, shown)
