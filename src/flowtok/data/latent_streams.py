"""Batches of cached moments: of shards of any size as a stream, or of all samples at once in memory.

How workers read batches is in batch_streams.py, as for pictures (streams.py); the shards are in latent_shards.py. Knows
no network.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowtok.data.admission import row_of
from flowtok.data.batch_streams import BatchConfig, BatchStream
from flowtok.data.captioned import Row
from flowtok.data.collect import MAX_BYTES
from flowtok.data.epochs import EpochConfig, Walk
from flowtok.data.filters import choose_caption, why_not
from flowtok.data.latent_shards import LatentSample, LatentSource
from flowtok.data.latents import CaptionFeatures, Moments
from flowtok.data.refusals import Refusal, Refused, Tally
from flowtok.data.samples import Item
from flowtok.errors import DataError

# Why a sample is left out where a rule asks for the picture's size and nobody noted it.
UNKNOWN_SIZE = "no size"


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Some cached samples.

    Attributes:
        moments: Posteriors of the B pictures, in the type they were stored in; N is B here.
        captions: One for each.
        keys: Their names.
        epochs: The epoch each belongs to, from 0.
        features_BSE: Text features of the captions, where they are cached.
        ids_BS: Ids of the captions (int64), where features are cached.
    """

    moments: Moments
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    epochs: tuple[int, ...]
    features_BSE: Tensor | None
    ids_BS: Tensor | None

    def sample(self, generator: torch.Generator) -> Tensor:
        """A fresh draw of every posterior, (B, L, C) in float32."""
        return self.moments.sample(torch.arange(len(self.keys)), generator)


class LatentStream(BatchStream["_Chosen", LatentBatch]):
    """Batches of one rank's share of cached samples; see `BatchStream`."""

    def __init__(
        self,
        source: LatentSource,
        config: BatchConfig,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares, as `BatchStream` does; `source` is what `open_latents` gives."""
        super().__init__(source, config, _Latents(config), rank=rank, num_ranks=num_ranks, position=position)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """A sample, the number of the text that was chosen, and the epoch."""

    sample: LatentSample
    text: int
    epoch: int


@dataclass(frozen=True)
class _Latents:
    """Takes cached samples and one of their texts."""

    config: BatchConfig

    def entry(self, item: Item, set_name: str, epoch: int, tally: Tally) -> _Chosen | None:
        sample = wanted(item, set_name, self.config, tally)
        if sample is None:
            return None
        generator = random.Random(f"{self.config.epochs.seed}/{epoch}/{sample.key}")
        caption = choose_caption(sample, self.config.captions, generator)
        return _Chosen(sample=sample, text=sample.texts.index(caption), epoch=epoch)

    def batch(self, entries: Sequence[_Chosen]) -> LatentBatch:
        return _batch(entries)


def wanted(item: Item, set_name: str, config: BatchConfig, tally: Tally) -> LatentSample | None:
    """A cached sample, or None if it is not used; then the tally knows why."""
    if not isinstance(item, LatentSample):
        assert isinstance(item, Refusal), "a source of moments gives nothing else"
        tally.refuse(item)
        return None
    try:
        unwanted = why_not(item, config.filters)
    except Refused:
        # Nobody noted the size of the picture, and it is not here to be looked at.
        unwanted = UNKNOWN_SIZE
    if unwanted is None and config.split is not None:
        split = row_of(item, set_name, config.captions).split
        unwanted = None if split == config.split else f"in the split {split}"
    if unwanted is not None:
        tally.leave_out(unwanted)
        return None
    tally.use()
    return item


def _batch(chosen: Sequence[_Chosen]) -> LatentBatch:
    """The chosen texts of some samples, and their moments."""
    features = [one.sample.features_KSE[one.text] for one in chosen if one.sample.features_KSE is not None]
    ids = [one.sample.ids_KS[one.text].long() for one in chosen if one.sample.ids_KS is not None]
    if len(features) not in (0, len(chosen)):
        raise DataError(
            f"{len(chosen) - len(features)} of {len(chosen)} samples beside each other have no text features; write "
            "all shards with --text or none"
        )
    return LatentBatch(
        moments=_moments([one.sample for one in chosen]),
        captions=tuple(one.sample.texts[one.text] for one in chosen),
        keys=tuple(one.sample.key for one in chosen),
        epochs=tuple(one.epoch for one in chosen),
        features_BSE=torch.stack(features) if features else None,
        ids_BS=torch.stack(ids) if ids else None,
    )


def _moments(samples: Sequence[LatentSample]) -> Moments:
    moments_N2LC = torch.stack([sample.moments_2LC for sample in samples])
    return Moments(mean_NLC=moments_N2LC[:, 0], logvar_NLC=moments_N2LC[:, 1])


@dataclass(frozen=True, kw_only=True)
class CollectedLatents:
    """Cached samples in memory.

    Attributes:
        moments: Posteriors of the N pictures.
        rows: What is known of them in words, as `collect` gives it of pictures.
        tally: What was used, left out and refused on the way.
        features: Text features (S, E) and ids (S,) of each different text, where they are cached.
    """

    moments: Moments
    rows: tuple[Row, ...]
    tally: Tally
    features: Mapping[str, tuple[Tensor, Tensor]]

    def caption_features(self, captions: Sequence[str]) -> CaptionFeatures:
        """The features of these captions, in their order.

        Raises:
            DataError: There are none of one of them.
        """
        missing = [caption for caption in captions if caption not in self.features]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(captions)} captions have no cached text features, first {missing[0]!r}; write "
                "the moments with --text"
            )
        found = [self.features[caption] for caption in captions]
        return CaptionFeatures(
            features_MSE=torch.stack([features for features, _ in found]), ids_MS=torch.stack([ids for _, ids in found])
        )


def collect_latents(
    source: LatentSource, config: BatchConfig | None = None, *, limit: int | None = None
) -> CollectedLatents:
    """Reads all cached samples, or the first ones, into memory, in the order of the shards.

    Args:
        source: The samples; see `open_latents`.
        config: Which of them; its batches, workers and order are not used.
        limit: Samples to take, all if None.

    Raises:
        DataError: Too much is refused, nothing is left, or it does not fit into memory.
    """
    config = config or BatchConfig(batch_size=1)
    tally, samples, size = Tally(), [], 0
    features: dict[str, tuple[Tensor, Tensor]] = {}
    for _, item in Walk(source, EpochConfig(num_epochs=1, shuffle_buffer=0)):
        sample = wanted(item, source.name, config, tally)
        if sample is not None:
            samples.append(sample)
            size += sample.moments_2LC.nbytes
            if sample.features_KSE is not None and sample.ids_KS is not None:
                for text, features_SE, ids_S in zip(sample.texts, sample.features_KSE, sample.ids_KS, strict=True):
                    if text not in features:
                        features[text] = (features_SE, ids_S.long())
                        size += features_SE.nbytes + ids_S.nbytes
        if size > MAX_BYTES:
            raise DataError(
                f"{source.name} holds more moments than fit into memory ({len(samples):,} samples are "
                f"{MAX_BYTES / 1e9:.0f} GB); read them as a stream"
            )
        if len(samples) == limit:
            break
        tally.check(config.max_refused, num_parts=len(source.parts), at_end=False)
    tally.check(config.max_refused, num_parts=len(source.parts), at_end=limit is None)
    if not samples:
        raise DataError(f"no sample of {source.name} is left: {'; '.join(tally.reasons()) or 'it is empty'}")
    return CollectedLatents(
        moments=_moments(samples),
        rows=tuple(row_of(sample, source.name, config.captions) for sample in samples),
        tally=tally,
        features=features,
    )
