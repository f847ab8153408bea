"""All stages in their order on one set of captioned pictures: from nothing to a model folder.

Knows which stage hands what to the next, and caches what they share; how a stage learns stands in its own file.
"""

import hashlib
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowtok.checkpoints.store import load_component, save_component
from flowtok.config import to_dict
from flowtok.data.captioned import EmojiSet, Row, load
from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments, cached, moments_of
from flowtok.errors import FlowTokError
from flowtok.flow.grid import uniform_grid
from flowtok.flow.guidance import guided, tabled
from flowtok.flow.solver import euler
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig
from flowtok.text.decoder import TextDecoder, TextDecoderConfig
from flowtok.text.encoder import TextEncoder, TextEncoderConfig
from flowtok.text.projector import TextProjector, TextProjectorConfig
from flowtok.train.captioner import CaptionerStage, CaptionerStageConfig
from flowtok.train.flow import FlowStage, FlowStageConfig
from flowtok.train.loop import Stage, TrainingConfig, train
from flowtok.train.runtime import Runtime
from flowtok.train.text import TextSide, TextStage, TextStageConfig
from flowtok.train.tokenizer import TokenizerStage, TokenizerStageConfig

STAGES = ("tokenizer", "text", "flow", "captioner")

Report = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model and how it is trained, stage by stage.

    Attributes:
        name: Name of the model.
        image_tokenizer: Shape of the image tokenizer.
        text_encoder: What the frozen language encoder must be.
        text_projector: Shape of the text projector.
        text_decoder: Shape of the text decoder.
        velocity: Shape of the velocity network.
        captions_per_picture: Captions that training knows of each picture, its canonical one among them.
        tokenizer_stage: Losses of the first stage.
        tokenizer_training: Length and rate of the first stage.
        text_stage: Losses of the text side.
        text_training: Length and rate of the text side.
        flow_stage: Draws of the flow stage.
        flow_training: Length and rate of the flow stage.
        captioner_stage: Draws of the last stage.
        captioner_training: Length and rate of the last stage.
    """

    name: str
    image_tokenizer: ImageTokenizerConfig
    text_encoder: TextEncoderConfig
    text_projector: TextProjectorConfig
    text_decoder: TextDecoderConfig
    velocity: VelocityTransformerConfig
    captions_per_picture: int
    tokenizer_stage: TokenizerStageConfig
    tokenizer_training: TrainingConfig
    text_stage: TextStageConfig
    text_training: TrainingConfig
    flow_stage: FlowStageConfig
    flow_training: TrainingConfig
    captioner_stage: CaptionerStageConfig
    captioner_training: TrainingConfig

    def __post_init__(self) -> None:
        if self.captions_per_picture < 1:
            raise ValueError(f"captions_per_picture must be at least 1, not {self.captions_per_picture}")
        if self.text_projector.noise_std is not None and self.text_stage.kl > 0:
            raise ValueError("text_stage.kl has no effect on text tokens of fixed noise_std; set it to 0")
        shapes = {
            "image_tokenizer": (self.image_tokenizer.num_tokens, self.image_tokenizer.token_channels),
            "text_projector": (self.text_projector.num_tokens, self.text_projector.token_channels),
            "text_decoder": (self.text_decoder.num_tokens, self.text_decoder.token_channels),
            "velocity": (self.velocity.num_tokens, self.velocity.token_channels),
        }
        if len(set(shapes.values())) > 1:
            raise ValueError(f"text and image must become tokens of one shape (L, C), not {shapes}")
        if self.text_encoder.num_tokens != self.text_projector.num_tokens:
            raise ValueError(
                f"the text encoder gives {self.text_encoder.num_tokens} features, "
                f"the projector takes {self.text_projector.num_tokens}"
            )


class Course:
    """One recipe on one data set in one folder; every stage finds what the earlier ones left there.

    The folder holds a run for each stage (`tokenizer/`, `text/`, ...), `cache/` with moments and features, and
    `model/` with the weights that are ready.
    """

    def __init__(
        self, recipe: Recipe, data: Path, folder: Path, text_encoder: Path, runtime: Runtime, report: Report | None
    ) -> None:
        self.recipe, self.folder, self.runtime = recipe, Path(folder), runtime
        self.report = report
        self.model = self.folder / "model"
        self.pictures: dict[str, EmojiSet] = {
            split: load(data, split) for split in ("train", "validation", "unseen_concept")
        }
        if len(self.pictures["train"]) < 2:
            raise FlowTokError(f"{data} has {len(self.pictures['train'])} training pictures; training needs at least 2")
        self.table = CaptionTable.of(
            [_captions_of(row, recipe.captions_per_picture) for row in self.pictures["train"].rows]
        )
        self.text_encoder = TextEncoder.from_folder(text_encoder, recipe.text_encoder)
        self.data_digest = hashlib.sha256("\n".join(self.table.captions).encode())
        for pictures in self.pictures.values():
            self.data_digest.update("\n".join(row.file_name for row in pictures.rows).encode())

    def tokenizer(self) -> None:
        """Stage 1: pictures to tokens and back."""
        recipe = self.recipe
        unseen_N3YX = self.pictures["unseen_concept"].images_N3YX[:256]
        stage = TokenizerStage(
            recipe.image_tokenizer,
            recipe.tokenizer_stage,
            self.pictures["train"].images_N3YX,
            unseen_N3YX if len(unseen_N3YX) else self.pictures["train"].images_N3YX[:64],
        )
        trained = self._train(stage, recipe.tokenizer_training, recipe.image_tokenizer, recipe.tokenizer_stage)
        self._keep("image_tokenizer", trained)
        moments = self._image_moments("train")
        self._keep("latent_scale", LatentScale.fitted(moments.mean_NLC, moments.logvar_NLC))

    def text(self) -> None:
        """Stage 2: captions to tokens and back, aligned with the pictures' tokens."""
        recipe = self.recipe
        stage = TextStage(
            recipe.text_projector,
            recipe.text_decoder,
            recipe.text_stage,
            captions=self._caption_features(),
            table=self.table,
            moments=self._image_moments("train"),
            scale=self._latent_scale(),
            word_table_VE=self.text_encoder.word_table_VE.float(),
            padding_id=self.text_encoder.pad_id,
        )
        trained = self._train(
            stage, recipe.text_training, recipe.text_projector, recipe.text_decoder, recipe.text_stage
        )
        assert isinstance(trained, TextSide)
        self._keep("text_projector", trained.projector)
        self._keep("text_decoder", trained.decoder)
        self._keep("text_decoder_first", trained.decoder, folder=self.folder / "cache")

    def flow(self) -> None:
        """Stage 3: the velocity between the two, for both directions."""
        recipe = self.recipe
        count = min(48, len(self.table.captions))
        stage = FlowStage(
            recipe.velocity,
            recipe.flow_stage,
            image=self._image_moments("train"),
            text=self._text_moments(),
            table=self.table,
            scale=self._latent_scale(),
            tokenizer=self._tokenizer(),
            preview_captions=self.table.choices_NK[torch.linspace(0, len(self.table.choices_NK) - 1, count).long(), 0],
        )
        self._keep("velocity", self._train(stage, recipe.flow_training, recipe.velocity, recipe.flow_stage))

    def captioner(self) -> None:
        """Stage 4: words from the tokens that the flow brings back."""
        recipe = self.recipe
        weights = self.folder / "cache"
        decoder = load_component(weights, "text_decoder_first", lambda: TextDecoder(recipe.text_decoder)).train()
        decoder.tie(self.text_encoder.word_table_VE.float())
        features = self._caption_features()
        held_out = self.pictures["validation"]
        texts = [row.text for row in held_out.rows[:512]]
        canonical_N = self.table.choices_NK[:, 0]
        split = "validation" if texts else "train"
        stage = CaptionerStage(
            decoder,
            recipe.captioner_stage,
            flowed_RNLC=self._flowed("train", recipe.captioner_stage.draws),
            text=self._text_moments(),
            ids_NS=features.ids_MS[canonical_N],
            caption_N=canonical_N,
            held_out=(
                self._flowed(split, 1)[0][:512],
                self.text_encoder.encode(texts).ids_BS if texts else features.ids_MS[canonical_N[:512]],
            ),
            padding_id=self.text_encoder.pad_id,
        )
        self._keep("text_decoder", self._train(stage, recipe.captioner_training, recipe.captioner_stage))

    def _train(self, stage: Stage, training: TrainingConfig, *configs: Any) -> nn.Module:
        def report(step: int, metrics: dict[str, float]) -> None:
            if self.report is not None:
                self.report(stage.name, step, training.num_steps, metrics)

        resolved = {type(config).__name__: to_dict(config) for config in configs}
        return train(stage, training, self.folder / stage.name, self.runtime, resolved=resolved, report=report)

    def _keep(self, name: str, module: nn.Module, folder: Path | None = None) -> None:
        if self.runtime.is_main:
            save_component(folder or self.model, name, module.state_dict())
        self.runtime.wait_for_all()

    def _tokenizer(self) -> ImageTokenizer:
        return load_component(self.model, "image_tokenizer", lambda: ImageTokenizer(self.recipe.image_tokenizer))

    def _latent_scale(self) -> LatentScale:
        recipe = self.recipe.image_tokenizer
        return load_component(self.model, "latent_scale", lambda: LatentScale(recipe.num_tokens, recipe.token_channels))

    def _cache(self, name: str, *components: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A cached result, computed anew when the captions or the weights that it came from have changed."""
        digest = self.data_digest.copy()
        for component in components:
            digest.update((self.model / f"{component}.safetensors").read_bytes())
        path = self.folder / "cache" / f"{name}-{digest.hexdigest()[:12]}.safetensors"
        if self.runtime.is_main:
            cached(path, compute)
        self.runtime.wait_for_all()
        return cached(path, compute)

    def _image_moments(self, split: str) -> Moments:
        def compute() -> dict[str, Tensor]:
            tokenizer = self._tokenizer()

            def encode(images_B3YX: Tensor) -> tuple[Tensor, Tensor]:
                posterior = tokenizer.encode(images_B3YX.float() / 255.0)
                return posterior.mean_BLC, posterior.logvar_BLC

            moments = moments_of(encode, self.pictures[split].images_N3YX)
            return {"mean": moments.mean_NLC, "logvar": moments.logvar_NLC}

        tensors = self._cache(f"image-{split}", "image_tokenizer", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def _caption_features(self) -> CaptionFeatures:
        def compute() -> dict[str, Tensor]:
            captions = list(self.table.captions)
            parts = [self.text_encoder.encode(captions[i : i + 256]) for i in range(0, len(captions), 256)]
            return {
                "features": torch.cat([part.features_BSE.half() for part in parts]),
                "ids": torch.cat([part.ids_BS for part in parts]),
            }

        tensors = self._cache("captions", compute=compute)
        return CaptionFeatures(features_MSE=tensors["features"], ids_MS=tensors["ids"])

    def _text_moments(self) -> Moments:
        def compute() -> dict[str, Tensor]:
            projector = load_component(self.model, "text_projector", lambda: TextProjector(self.recipe.text_projector))

            def encode(features_BSE: Tensor) -> tuple[Tensor, Tensor]:
                tokens = projector(features_BSE.float())
                return tokens.mean_BLC, tokens.logvar_BLC

            moments = moments_of(encode, self._caption_features().features_MSE)
            return {"mean": moments.mean_NLC, "logvar": moments.logvar_NLC}

        tensors = self._cache("text", "text_projector", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def _flowed(self, split: str, draws: int) -> Tensor:
        """Pictures carried to the text side, (R, N, L, C) in float16."""

        def compute() -> dict[str, Tensor]:
            network = load_component(self.model, "velocity", lambda: VelocityTransformer(self.recipe.velocity))
            grid = uniform_grid(self.recipe.captioner_stage.num_steps).reversed()
            scale, moments = self._latent_scale(), self._image_moments(split)
            generator = torch.Generator().manual_seed(0)
            indices_N = torch.arange(len(moments.mean_NLC))
            rounds = []
            with torch.no_grad():
                velocity = guided(tabled(network, grid.told), 1.0)
                for _ in range(draws):
                    parts = [
                        euler(velocity, scale.to_flow(moments.sample(part, generator)), grid.times)
                        for part in indices_N.split(256)
                    ]
                    rounds.append(torch.cat(parts).half())
            return {"flowed": torch.stack(rounds)}

        steps = self.recipe.captioner_stage.num_steps
        return self._cache(f"flowed-{split}-{draws}-{steps}", "velocity", "image_tokenizer", compute=compute)["flowed"]


def _captions_of(row: Row, count: int) -> list[str]:
    """The canonical caption and some others of a picture, always the same ones."""
    others = list(row.texts[1:])
    chosen = random.Random(zlib.crc32(row.file_name.encode())).sample(others, min(count - 1, len(others)))
    return [row.texts[0], *chosen]


def run_course(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    text_encoder: Path,
    runtime: Runtime,
    stages: Sequence[str] = STAGES,
    report: Report | None = None,
) -> Path:
    """Trains the named stages in their order; a stage that was finished before is not trained again.

    Args:
        recipe: What is trained and how.
        data: Folder of captioned pictures, as `flowtok data emoji` writes it.
        folder: Where runs, caches and the model go.
        text_encoder: Folder of the frozen language encoder, in transformers' layout.
        runtime: Where.
        stages: Some of STAGES.
        report: Called with stage, step, number of steps and metrics.

    Returns:
        The folder with the weights.

    Raises:
        FlowTokError: If a stage is unknown, or the data or an earlier stage's weights are missing.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise FlowTokError(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    course = Course(recipe, Path(data), Path(folder), Path(text_encoder), runtime, report)
    for name in STAGES:
        if name in stages:
            getattr(course, name)()
    return course.model
