"""What the stages of a course share where pictures are read as they come: a stream, and frozen networks on the device.

Nothing is cached: what other networks make of a picture is computed whenever it is read. The same for pictures in
memory is inputs.py; the stages are in course.py.
"""

import hashlib
import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowtok.data.batch_streams import BatchConfig
from flowtok.data.epochs import EpochConfig
from flowtok.data.filters import RULES
from flowtok.data.latent_folders import open_latents
from flowtok.data.latent_shards import LatentSource
from flowtok.data.latent_streams import UNKNOWN_SIZE, LatentStream
from flowtok.data.latents import Moments
from flowtok.data.refusals import Tally
from flowtok.data.samples import Source
from flowtok.errors import DataError
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.text.encoder import TextEncoder
from flowtok.train.cached import CachedPairs
from flowtok.train.flow import Sketch
from flowtok.train.frozen import Pairs, Pixels, TextTokens, View
from flowtok.train.recipe import Recipe
from flowtok.train.samples import Samples
from flowtok.train.streaming import StreamedData, StreamSamples
from flowtok.train.tokenizer import Shown
from flowtok.train.weights import Weights, fingerprint_of_weights, fingerprint_of_words

LOG = logging.getLogger("flowtok")

# Pictures by which the scale of the tokens is measured: 5 million numbers for the paper's tokens.
_MEASURED = 4096
_SHOWN = 48

Module = TypeVar("Module", bound=nn.Module)


class StreamInputs:
    """The data of one course as streams, and networks that stay as they are."""

    epoch_M = None

    def __init__(self, recipe: Recipe, data: str | Path, text_encoder: Path, weights: Weights) -> None:
        """Opens the data; it is read by the stages.

        Args:
            recipe: What is trained.
            data: Captioned pictures; see data/sources.py.
            text_encoder: Folder of the frozen language encoder.
            weights: Of the course.

        Raises:
            FlowTokError: The data or the text encoder cannot be opened.
        """
        assert recipe.stream is not None, "the recipe reads a stream"
        self.recipe, self.weights, self.runtime, self.stream = recipe, weights, weights.runtime, recipe.stream
        self.text_encoder = self._frozen(TextEncoder.from_folder(text_encoder, recipe.text_encoder))
        source = self._open(data)
        self.data_digest = hashlib.sha256(repr((tuple(source.parts), source.num_samples)).encode())
        for file in ("model.safetensors", "tokenizer.json"):
            self.data_digest.update((Path(text_encoder) / file).read_bytes())
        if recipe.text_encoder.padding != "states":  # runs from before there was a choice keep their digest
            self.data_digest.update(recipe.text_encoder.padding.encode())

    def _open(self, data: str | Path) -> Source:
        self.data = StreamedData(data, self.recipe.image_tokenizer.image_size, self.recipe.data, self.stream)
        return self.data.source

    def resolved(self) -> dict[str, Any]:
        """What a run's record says of the data beside its digest."""
        return {"CollectConfig": self.recipe.data, "StreamingConfig": self.stream}

    def tell_left_out(self, samples: Samples) -> None:
        """Says what all ranks left out of a stage since the start, with the reasons."""
        assert isinstance(samples, StreamSamples | CachedPairs), "nobody else gives samples here"
        total = Tally()
        for tally in self.runtime.gather(samples.tally):
            total.add(tally)
        if self.runtime.is_main and total.seen > total.used:
            LOG.warning("used %s of %s samples; left out: %s", total.used, total.seen, "; ".join(total.reasons()))

    def picture_samples(self) -> tuple[Samples, Shown]:
        """Pictures for the tokenizer, and what it shows."""
        training = self.recipe.tokenizer_training
        assert training is not None, "nobody else asks"
        text_encoder = self.text_encoder if self.recipe.image_tokenizer.text_width is not None else None
        shown = self.data.shown(_SHOWN)
        features_NSE = None
        if text_encoder is not None:
            features_NSE = self._features(shown.captions)
        samples = self._samples(Pixels(text_encoder), training.seed)
        return samples, Shown(images_N3YX=shown.image_B3YX, features_NSE=features_NSE)

    def pair_samples(self) -> Samples:
        """Text features and image tokens for the joint stage."""
        training = self.recipe.flow_training
        assert training is not None, "nobody else asks"
        return self._samples(self._pairs(), training.seed)

    def reading_samples(self) -> tuple[Samples, tuple[Tensor, Tensor]]:
        """Tokens at the text end for the captioner; and such of pictures to look at, with the ids of their captions."""
        training, config = self.recipe.captioner_training, self.recipe.captioner_stage
        assert training is not None, "nobody else asks"
        projector, velocity = self._frozen(self.weights.projector()), self._frozen(self.weights.velocity())
        view = TextTokens(self._pairs(), projector, velocity, text_share=config.text_share, num_steps=config.num_steps)
        shown = self.data.shown(_SHOWN)
        noise_BLC = view.pairs.draw(len(shown.keys), torch.Generator().manual_seed(0))["image_noise_BLC"]
        device = self.runtime.device
        with self.runtime.frozen():
            z_BLC = view.carried(shown.image_B3YX.to(device), noise_BLC.to(device)).cpu()
        return self._samples(view, training.seed), (z_BLC, self.text_encoder.ids(shown.captions))

    def posteriors(self) -> Moments:
        """Posteriors of the first training pictures, from which the scale of the tokens follows."""
        tokenizer, means, logvars = self._tokenizer, [], []
        for batch in self.data.first(_MEASURED):
            with self.runtime.frozen():
                posterior = tokenizer.encode(batch.image_B3YX.to(self.runtime.device).float() / 255.0)
            means.append(posterior.mean_BLC.cpu())
            logvars.append(posterior.logvar_BLC.cpu())
        return Moments(mean_NLC=torch.cat(means), logvar_NLC=torch.cat(logvars))

    def sketch(self) -> Sketch:
        """Pictures of 48 captions, with which the flow shows how far it is."""
        return Sketch(
            features_BSE=self._features(self._shown_captions()),
            tokenizer=self._tokenizer,
            scale=self._scale,
        )

    def _shown_captions(self) -> tuple[str, ...]:
        return self.data.shown(_SHOWN).captions

    def _features(self, captions: tuple[str, ...]) -> Tensor:
        with self.runtime.frozen():
            return self.text_encoder.encode(list(captions)).features_BSE.cpu()

    def _pairs(self) -> Pairs:
        return Pairs(self.text_encoder, self._tokenizer, self._scale)

    @cached_property
    def _tokenizer(self) -> ImageTokenizer:
        """As the first stage has left it."""
        return self._frozen(self.weights.tokenizer())

    @cached_property
    def _scale(self) -> LatentScale:
        return self._frozen(self.weights.latent_scale())

    def _samples(self, view: View, seed: int) -> StreamSamples:
        return StreamSamples(self.data, view, self.text_encoder, self.runtime, seed=seed)

    def _frozen(self, network: Module) -> Module:
        return network.eval().requires_grad_(False).to(self.runtime.device)


class MomentInputs(StreamInputs):
    """Cached moments in the place of pictures: for the flow, which sees no more of a picture."""

    def _open(self, data: str | Path) -> LatentSource:
        model = self.recipe.image_tokenizer
        made_by = fingerprint_of_weights(self.weights.tokenizer().state_dict())
        self.moments = open_latents(
            data,
            shape=(model.num_tokens, model.token_channels),
            tokenizer=made_by,
            text_encoder=fingerprint_of_words(self.text_encoder),
        )
        config = self.recipe.data
        self.settings = BatchConfig(
            batch_size=_SHOWN,
            filters=config.filters,
            captions=config.captions,
            split=self.stream.split,
            max_refused=config.max_refused,
        )
        return self.moments

    def pair_samples(self) -> Samples:
        training = self.recipe.flow_training
        assert training is not None, "nobody else asks"
        settings = replace(self.settings, num_workers=self.stream.num_workers, epochs=self.stream.epochs(training.seed))
        return CachedPairs(self.moments, settings, self.text_encoder, self.weights.latent_scale(), self.runtime)

    def _shown_captions(self) -> tuple[str, ...]:
        in_order = replace(self.settings, epochs=EpochConfig(num_epochs=1, shuffle_buffer=0))
        stream = LatentStream(self.moments, in_order)
        batch = next(iter(stream), None)
        if batch is not None:
            return batch.captions
        reasons = stream.tally.reasons()
        advice = ""
        if any(UNKNOWN_SIZE in reason for reason in reasons):
            without = " ".join(f"data.filters.{name}=null" for name in RULES)
            advice = (
                "; moments in the release's layout keep neither sizes nor scores: filter the pictures before they are "
                f"encoded, and train with {without}"
            )
        raise DataError(
            f"no sample of {self.moments.name} is left to train on: {'; '.join(reasons) or 'it is empty'}{advice}"
        )
