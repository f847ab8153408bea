"""What the stages of a course share: pictures, captions, earlier stages' weights, and what is computed from them once.

Moments and features are cached under names that follow from what they came from. The stages stand in course.py.
"""

import hashlib
import logging
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from flowtok.checkpoints.store import component_file, load_component, load_into, load_state, save_component
from flowtok.data.captioned import Row
from flowtok.data.collect import open_captioned
from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments, cached, moments_of
from flowtok.data.views import random_views
from flowtok.errors import FlowTokError
from flowtok.flow.grid import uniform_grid
from flowtok.flow.guidance import guided, tabled
from flowtok.flow.solver import euler
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.text.decoder import TextDecoder
from flowtok.text.encoder import TextEncoder
from flowtok.text.projector import TextProjector
from flowtok.train.flow import Sketch
from flowtok.train.recipe import Recipe
from flowtok.train.runtime import Runtime
from flowtok.train.tokenizer import GuidingText

LOG = logging.getLogger("flowtok")


class Inputs:
    """Data, weights and caches of one course, in one folder.

    The folder holds a run for each stage (`tokenizer/`, `text/`, ...), `cache/` with moments and features, and
    `model/` with the weights that are ready.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: str | Path,
        folder: Path,
        text_encoder: Path,
        runtime: Runtime,
        start: Path | None = None,
    ) -> None:
        """Opens the data.

        Args:
            recipe: What is trained.
            data: Captioned pictures; see data/collect.py.
            folder: Where runs, caches and weights go.
            text_encoder: Folder of the frozen language encoder.
            runtime: Where.
            start: A model folder whose weights the stages start from; None for fresh weights.

        Raises:
            FlowTokError: If there are too few pictures, or the data cannot be read.
        """
        self.recipe, self.folder, self.runtime, self.start = recipe, folder, runtime, start
        self.model = folder / "model"
        collected = open_captioned(data, recipe.image_tokenizer.image_size)
        if runtime.is_main:
            for line in collected.tally.lines():
                LOG.warning("left out: %s", line)
        self.pictures = {split: collected.split(split) for split in ("train", "validation", "unseen_concept")}
        if len(self.pictures["train"]) < 2:
            raise FlowTokError(f"{data} has {len(self.pictures['train'])} training pictures; training needs at least 2")
        self.table = CaptionTable.of(
            [_captions_of(row, recipe.captions_per_picture) for row in self.pictures["train"].rows]
        )
        # A row of weight 1 comes twice in an epoch if the lightest rows, of weight 0.5, come once.
        weight_N = torch.tensor([row.weight for row in self.pictures["train"].rows])
        copies_N = (weight_N / weight_N.min()).round().long()
        self.epoch_M = torch.arange(len(weight_N)).repeat_interleave(copies_N)
        self.text_encoder = TextEncoder.from_folder(text_encoder, recipe.text_encoder)
        self.data_digest = hashlib.sha256("\n".join(self.table.captions).encode())
        for pictures in self.pictures.values():
            self.data_digest.update(pictures.images_N3YX.numpy().tobytes())
        for file in ("model.safetensors", "tokenizer.json"):
            self.data_digest.update((Path(text_encoder) / file).read_bytes())

    def begin(self, name: str, module: nn.Module) -> None:
        """Fills a stage's network with the weights that training starts from, if it does not start fresh."""
        if self.start is not None:
            load_into(module, load_state(component_file(self.start, name)), what=f"{name} of {self.start}")

    def begin_digest(self, *names: str) -> str | None:
        """A short hash of the weights that these components start from; None for fresh ones."""
        if self.start is None:
            return None
        return "-".join(self.fingerprint(name, folder=self.start) for name in names)

    def keep(self, name: str, module: nn.Module, folder: Path | None = None) -> None:
        if self.runtime.is_main:
            save_component(folder or self.model, name, module.state_dict())
        self.runtime.wait_for_all()

    def fingerprint(self, name: str, folder: Path | None = None) -> str:
        """A short hash of a component's weights, which an earlier stage has left.

        It is taken of the numbers: the bytes of a safetensors file may differ from one saving to the next.
        """
        path = (folder or self.model) / f"{name}.safetensors"
        if not path.is_file():
            raise FlowTokError(f"this stage needs {path}, which an earlier stage leaves there; run the stages in order")
        digest = hashlib.sha256()
        for key, tensor in sorted(load_state(path).items()):
            digest.update(key.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokenizer(self) -> ImageTokenizer:
        return load_component(self.model, "image_tokenizer", lambda: ImageTokenizer(self.recipe.image_tokenizer))

    def latent_scale(self) -> LatentScale:
        recipe = self.recipe.image_tokenizer
        return load_component(self.model, "latent_scale", lambda: LatentScale(recipe.num_tokens, recipe.token_channels))

    def _cache(self, name: str, *components: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A cached result, computed anew when the captions or the weights that it came from have changed."""
        digest = self.data_digest.copy()
        for component in components:
            digest.update(self.fingerprint(component).encode())
        path = self.folder / "cache" / f"{name}-{digest.hexdigest()[:12]}.safetensors"
        if self.runtime.is_main:
            cached(path, compute)
        self.runtime.wait_for_all()
        return cached(path, compute)

    def image_moments(self, split: str) -> Moments:
        def compute() -> dict[str, Tensor]:
            tokenizer = self.tokenizer()

            def encode(images_B3YX: Tensor) -> tuple[Tensor, Tensor]:
                posterior = tokenizer.encode(images_B3YX.float() / 255.0)
                return posterior.mean_BLC, posterior.logvar_BLC

            moments = moments_of(encode, self.pictures[split].images_N3YX)
            return {"mean": moments.mean_NLC, "logvar": moments.logvar_NLC}

        tensors = self._cache(f"image-{split}", "image_tokenizer", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def image_views(self, split: str) -> Moments:
        """Posteriors of random views of the pictures, in rounds laid end to end; the first round is not changed."""

        def compute() -> dict[str, Tensor]:
            tokenizer, generator = self.tokenizer(), torch.Generator().manual_seed(0)

            def encode(images_B3YX: Tensor) -> tuple[Tensor, Tensor]:
                posterior = tokenizer.encode(random_views(images_B3YX.float() / 255.0, generator))
                return posterior.mean_BLC, posterior.logvar_BLC

            images_N3YX = self.pictures[split].images_N3YX
            rounds = [self.image_moments(split)]
            rounds += [moments_of(encode, images_N3YX) for _ in range(self.recipe.views_per_picture - 1)]
            return {
                "mean": torch.cat([moments.mean_NLC for moments in rounds]),
                "logvar": torch.cat([moments.logvar_NLC for moments in rounds]),
            }

        name = f"views-{split}-{self.recipe.views_per_picture}"
        tensors = self._cache(name, "image_tokenizer", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def decoder(self, name: str | None) -> TextDecoder:
        """A text decoder that an earlier stage has left in the cache, or a fresh one; tied to its words."""
        decoder = TextDecoder(self.recipe.text_decoder)
        if name is None:
            decoder.initialize(torch.Generator().manual_seed(self.recipe.flow_training.seed))
        else:
            self.fingerprint(name, folder=self.folder / "cache")
            decoder = load_component(self.folder / "cache", name, lambda: decoder).train()
        decoder.tie(self.text_encoder.word_table_VE.float())
        return decoder

    def held_out_captions(self) -> tuple[str, int, Tensor]:
        """Where the readers' figures come from: a split, how many of its first pictures, and their captions' ids."""
        texts = [row.text for row in self.pictures["validation"].rows[:512]]
        if texts:
            return "validation", len(texts), self.text_encoder.encode(texts).ids_BS
        canonical_N = self.table.choices_NK[:512, 0]
        return "train", len(canonical_N), self.caption_features().ids_MS[canonical_N]

    def caption_features(self) -> CaptionFeatures:
        def compute() -> dict[str, Tensor]:
            captions = list(self.table.captions)
            parts = [self.text_encoder.encode(captions[i : i + 256]) for i in range(0, len(captions), 256)]
            return {
                "features": torch.cat([part.features_BSE.half() for part in parts]),
                "ids": torch.cat([part.ids_BS for part in parts]),
            }

        tensors = self._cache("captions", compute=compute)
        return CaptionFeatures(features_MSE=tensors["features"], ids_MS=tensors["ids"])

    def text_moments(self) -> Moments:
        def compute() -> dict[str, Tensor]:
            projector = load_component(self.model, "text_projector", lambda: TextProjector(self.recipe.text_projector))

            def encode(features_BSE: Tensor) -> tuple[Tensor, Tensor]:
                tokens = projector(features_BSE.float())
                return tokens.mean_BLC, tokens.logvar_BLC

            moments = moments_of(encode, self.caption_features().features_MSE)
            return {"mean": moments.mean_NLC, "logvar": moments.logvar_NLC}

        tensors = self._cache("text", "text_projector", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def guiding_text(self, shown: list[str]) -> GuidingText | None:
        """The text features that guide the tokenizer's decoder, if it takes any; those of `shown` for previews."""
        if self.recipe.image_tokenizer.text_width is None:
            return None
        return GuidingText(
            features_MSE=self.caption_features().features_MSE,
            table=self.table,
            preview_BSE=self.text_encoder.encode(shown).features_BSE,
        )

    def sketch(self) -> Sketch:
        """Pictures of 48 training captions, with which the flow shows how far it is."""
        canonical_N = self.table.choices_NK[:, 0]
        shown = torch.linspace(0, len(canonical_N) - 1, min(48, len(canonical_N))).long()
        tokenizer, features_BSE = self.tokenizer(), None
        if tokenizer.config.text_width is not None:
            features_BSE = self.caption_features().features_MSE[canonical_N[shown]].float()
        return Sketch(
            captions_B=canonical_N[shown],
            tokenizer=tokenizer,
            scale=self.latent_scale(),
            features_BSE=features_BSE,
        )

    def flowed(self, split: str, draws: int) -> Tensor:
        """Pictures carried to the text side, (R, N, L, C) in float16."""

        def compute() -> dict[str, Tensor]:
            network = load_component(self.model, "velocity", lambda: VelocityTransformer(self.recipe.velocity))
            grid = uniform_grid(self.recipe.captioner_stage.num_steps).reversed()
            scale, moments = self.latent_scale(), self.image_moments(split)
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
