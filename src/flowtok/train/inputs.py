"""What the stages of a course share where all pictures lie in memory: pictures, captions, and what is computed of them.

Moments and features are cached under names that follow from what they came from. Data that does not fit is read by
stream_inputs.py; the weights are in weights.py, the stages in course.py.
"""

import hashlib
import logging
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowtok.data.captioned import Row
from flowtok.data.collect import Collected, open_captioned
from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments, cached, moments_of
from flowtok.errors import FlowTokError
from flowtok.text.decoder import TextDecoder
from flowtok.text.encoder import TextEncoder
from flowtok.train.flow import MomentPairs, Posteriors, Reading, Sketch
from flowtok.train.frozen import to_text_end
from flowtok.train.recipe import Recipe
from flowtok.train.runtime import ON_CPU
from flowtok.train.samples import PairSet, PictureSet, ReadingSet, Samples
from flowtok.train.tokenizer import Shown
from flowtok.train.views import RandomViews
from flowtok.train.weights import Weights

LOG = logging.getLogger("flowtok")


class Inputs:
    """Data and caches of one course, in one folder.

    The folder holds a run for each stage (`tokenizer/`, `text/`, ...), `cache/` with moments and features, and
    `model/` with the weights that are ready.
    """

    def __init__(self, recipe: Recipe, data: str | Path | Collected, text_encoder: Path, weights: Weights) -> None:
        """Opens the data.

        Args:
            recipe: What is trained.
            data: Captioned pictures, see data/collect.py; or such as were collected before for this recipe.
            text_encoder: Folder of the frozen language encoder.
            weights: Of the course.

        Raises:
            FlowTokError: If there are too few pictures, or the data cannot be read.
        """
        self.recipe, self.weights, self.runtime = recipe, weights, weights.runtime
        if isinstance(data, Collected):
            collected = data
        else:
            collected = open_captioned(data, recipe.image_tokenizer.image_size, recipe.data)
            if self.runtime.is_main:
                for line in collected.tally.lines():
                    LOG.warning("left out: %s", line)
        self.pictures = {split: collected.split(split) for split in ("train", "validation", "unseen_concept")}
        rows = self.pictures["train"].rows
        if len(rows) < 2:
            raise FlowTokError(f"there are {len(rows)} training pictures; training needs at least 2")
        self.files = tuple(row.file_name for row in rows)
        self.table = CaptionTable.of([_captions_of(row, recipe.captions_per_picture) for row in rows])
        # A row of weight 1 comes twice in an epoch if the lightest rows, of weight 0.5, come once.
        weight_N = torch.tensor([row.weight for row in rows])
        copies_N = (weight_N / weight_N.min()).round().long()
        self.epoch_M = torch.arange(len(weight_N)).repeat_interleave(copies_N)
        self.text_encoder = TextEncoder.from_folder(text_encoder, recipe.text_encoder)
        self.data_digest = hashlib.sha256("\n".join(self.table.captions).encode())
        for pictures in self.pictures.values():
            self.data_digest.update(pictures.images_N3YX.numpy().tobytes())
        for file in ("model.safetensors", "tokenizer.json"):
            self.data_digest.update((Path(text_encoder) / file).read_bytes())
        if recipe.text_encoder.padding != "states":  # runs from before there was a choice keep their digest
            self.data_digest.update(recipe.text_encoder.padding.encode())

    def resolved(self) -> dict[str, Any]:
        """What a run's record says of the data beside its digest."""
        return {}

    def tell_left_out(self, _samples: Samples) -> None:
        """It was told when the data was opened."""

    # Samples

    def picture_samples(self) -> tuple[PictureSet, Shown]:
        """Pictures for the tokenizer, and what it shows."""
        pictures, guided = self.pictures["train"], self.recipe.image_tokenizer.text_width is not None
        shown, count = self.pictures["unseen_concept"], 256
        if not len(shown):
            shown, count = pictures, 64
        texts = [row.text for row in shown.rows[:count]]
        return (
            PictureSet(
                self.files,
                pictures.images_N3YX,
                self.caption_features() if guided else None,
                self.table if guided else None,
            ),
            Shown(
                images_N3YX=shown.images_N3YX[:count],
                features_NSE=self.text_encoder.encode(texts).features_BSE if guided else None,
            ),
        )

    def pair_samples(self) -> PairSet:
        """Text features and image tokens for the joint stage."""
        assert self.recipe.joint_stage is not None, "nobody else asks"
        share = self.recipe.joint_stage.canonical_share
        moments, scale = self.image_moments("train"), self.weights.latent_scale()
        return PairSet(self.files, self.caption_features(), moments, self.table, scale, share)

    def moment_pairs(self) -> MomentPairs:
        """Tokens of both ends for the flow stage, or for the one that teaches it to jump."""
        return MomentPairs(
            files=self.files,
            image=self.image_moments("train"),
            text=self.text_moments(),
            table=self.table,
            scale=self.weights.latent_scale(),
        )

    def reading_samples(self) -> tuple[ReadingSet, tuple[Tensor, Tensor]]:
        """Tokens at the text end for the captioner; and held-out ones, with the ids of their captions."""
        config, canonical_N = self.recipe.captioner_stage, self.table.choices_NK[:, 0]
        split, count, ids_MS = self.held_out_captions()
        samples = ReadingSet(
            self.files,
            self.flowed("train", config.draws),
            self.text_moments(),
            self.caption_features().ids_MS[canonical_N],
            canonical_N,
            config.text_share,
        )
        return samples, (self.flowed(split, 1)[0][:count], ids_MS)

    def posteriors(self) -> Moments:
        """Posteriors of training pictures, from which the scale of the tokens follows."""
        return self.image_moments("train")

    def reading(self, decoder: TextDecoder) -> Reading:
        """What the flow stage needs to read captions."""
        split, count, ids_MS = self.held_out_captions()
        features = self.caption_features()
        z_image_MLC = self.weights.latent_scale().to_flow(self.image_moments(split).mean_NLC[:count])
        return Reading(
            decoder=decoder,
            ids_NS=features.ids_MS[self.table.choices_NK[:, 0]],
            known_U=features.ids_MS.unique(),
            pictures=self._read_pictures(),
            held_out=(z_image_MLC[:128], ids_MS[:128]),
            padding_id=self.text_encoder.pad_id,
            end_id=self.text_encoder.end_id,
        )

    def sketch(self) -> Sketch:
        """Pictures of 48 training captions, with which the flow shows how far it is."""
        canonical_N = self.table.choices_NK[:, 0]
        shown = torch.linspace(0, len(canonical_N) - 1, min(48, len(canonical_N))).long()
        return Sketch(
            captions_B=canonical_N[shown],
            features_BSE=self.caption_features().features_MSE[canonical_N[shown]].float(),
            tokenizer=self.weights.tokenizer(),
            scale=self.weights.latent_scale(),
        )

    # What is computed once

    def _cache(self, name: str, *components: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A cached result, computed anew when the captions or the weights that it came from have changed."""
        digest = self.data_digest.copy()
        for component in components:
            digest.update(self.weights.fingerprint(component).encode())
        path = self.weights.cache / f"{name}-{digest.hexdigest()[:12]}.safetensors"
        if self.runtime.is_main:
            # What bfloat16 takes from these numbers is far below the noise that they are trained with.
            with ON_CPU.autocast("auto"):
                cached(path, compute)
        self.runtime.wait_for_all()
        return cached(path, compute)

    def image_moments(self, split: str) -> Moments:
        def compute() -> dict[str, Tensor]:
            tokenizer = self.weights.tokenizer()

            def encode(images_B3YX: Tensor) -> tuple[Tensor, Tensor]:
                posterior = tokenizer.encode(images_B3YX.float() / 255.0)
                return posterior.mean_BLC, posterior.logvar_BLC

            moments = moments_of(encode, self.pictures[split].images_N3YX)
            return {"mean": moments.mean_NLC, "logvar": moments.logvar_NLC}

        tensors = self._cache(f"image-{split}", "image_tokenizer", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def _read_pictures(self) -> Posteriors:
        """What captions are read from."""
        if not self.recipe.random_views:
            return self.image_moments("train")
        return RandomViews(self.pictures["train"].images_N3YX, self.weights.tokenizer())

    def held_out_captions(self) -> tuple[str, int, Tensor]:
        """Where the readers' figures come from: a split, how many of its first pictures, and their captions' ids."""
        texts = [row.text for row in self.pictures["validation"].rows[:512]]
        if texts:
            return "validation", len(texts), self.text_encoder.ids(texts)
        canonical_N = self.table.choices_NK[:512, 0]
        return "train", len(canonical_N), self.caption_features().ids_MS[canonical_N]

    def caption_features(self) -> CaptionFeatures:
        def compute() -> dict[str, Tensor]:
            ids_MS = self.text_encoder.ids(self.table.captions)
            features_MSE = torch.empty(*ids_MS.shape, self.recipe.text_encoder.width, dtype=torch.float16)
            # Captions of one length together: what stands behind their words takes no time then.
            for part in (ids_MS != self.text_encoder.pad_id).sum(1).argsort().split(256):
                features_MSE[part] = self.text_encoder.features(ids_MS[part], cut=True).half()
            return {"features": features_MSE, "ids": ids_MS}

        tensors = self._cache("captions", compute=compute)
        return CaptionFeatures(features_MSE=tensors["features"], ids_MS=tensors["ids"])

    def text_moments(self) -> Moments:
        features_MSE = self.caption_features().features_MSE  # not in `compute`, where one rank would wait alone

        def compute() -> dict[str, Tensor]:
            projector = self.weights.projector()

            def encode(features_BSE: Tensor) -> tuple[Tensor, Tensor]:
                tokens = projector(features_BSE.float())
                return tokens.mean_BLC, tokens.logvar_BLC

            moments = moments_of(encode, features_MSE)
            return {"mean": moments.mean_NLC, "logvar": moments.logvar_NLC}

        tensors = self._cache("text", "text_projector", compute=compute)
        return Moments(mean_NLC=tensors["mean"], logvar_NLC=tensors["logvar"])

    def flowed(self, split: str, draws: int) -> Tensor:
        """Pictures carried to the text side, (R, N, L, C) in float16."""
        steps, moments = self.recipe.captioner_stage.num_steps, self.image_moments(split)

        def compute() -> dict[str, Tensor]:
            network, scale = self.weights.velocity(), self.weights.latent_scale()
            generator = torch.Generator().manual_seed(0)
            indices_N = torch.arange(len(moments.mean_NLC))
            rounds = []
            with torch.no_grad():
                for _ in range(draws):
                    parts = [
                        to_text_end(network, scale.to_flow(moments.sample(part, generator)), steps)
                        for part in indices_N.split(256)
                    ]
                    rounds.append(torch.cat(parts))
            return {"flowed": torch.stack(rounds).half()}

        return self._cache(f"flowed-{split}-{draws}-{steps}", "velocity", "image_tokenizer", compute=compute)["flowed"]


def _captions_of(row: Row, count: int) -> list[str]:
    """The canonical caption and some others of a picture, always the same ones."""
    others = list(row.texts[1:])
    chosen = random.Random(zlib.crc32(row.file_name.encode())).sample(others, min(count - 1, len(others)))
    return [row.texts[0], *chosen]
