"""Writes the image tokenizer's moments of any captioned pictures as shards, and text features with them where asked.

A shard holds what certain parts of the source give, whoever makes it: shards may be made in any order, by any number of
ranks, and the rest of them after a stop. The folder is data/latent_folders.py's; a cluster is in encoding_ray.py.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowtok.checkpoints.store import load_component
from flowtok.config import load_data, to_dict
from flowtok.data.decoding import Decoding
from flowtok.data.filters import FilterConfig
from flowtok.data.images import Background
from flowtok.data.latent_folders import LatentsMade, ShardRecord, fingerprint_of_source, finish, shard_name
from flowtok.data.latent_shards import LatentSample, Layout, shard_writer, texts_read
from flowtok.data.refusals import Tally, check_share
from flowtok.data.samples import FieldsConfig, Sample, Source
from flowtok.data.sources import open_source
from flowtok.errors import DataError
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.text.encoder import TextEncoder
from flowtok.train.recipe import read_recipe
from flowtok.train.runtime import Precision, Runtime
from flowtok.train.weights import fingerprint_of_weights, fingerprint_of_words

CROP = "shorter side to image_size (bicubic, antialiased), centre"
_TYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """What is encoded and how it is stored.

    Attributes:
        layout: `flowtok`, or `release` as the authors' release reads cached moments, without names and features.
        dtype: Type of the stored moments and features.
        shard_size: Samples that a shard is filled up to with neighbouring parts of the source, where the number of its
            samples is known. A part is never cut: a tar file of pictures becomes one shard.
        batch_size: Pictures encoded at a time.
        num_workers: Processes that decode pictures; 0 decodes in the process itself.
        precision: Type of the networks' matrix products.
        num_text_tokens: Length of the captions in ids; the text encoder's own if None.
        fields: Names of columns, where they are not the usual ones.
        filters: Which samples are taken.
        background: What shows through transparent pictures.
        max_refused: Share of refused samples, or of broken parts, beyond which encoding stops.
    """

    layout: Layout = "flowtok"
    dtype: Literal["float16", "float32"] = "float16"
    shard_size: int = 4096
    batch_size: int = 64
    num_workers: int = 0
    precision: Precision = "float32"
    num_text_tokens: int | None = None
    fields: FieldsConfig = FieldsConfig()
    filters: FilterConfig = FilterConfig()
    background: Background = (255, 255, 255)
    max_refused: float = 0.05

    def __post_init__(self) -> None:
        if self.layout not in ("flowtok", "release") or self.dtype not in _TYPES:
            raise ValueError(
                f"layout is flowtok or release and dtype {' or '.join(_TYPES)}, not {self.layout} and {self.dtype}"
            )
        if self.layout == "release" and self.dtype != "float16":
            raise ValueError(f"the release's layout holds float16, not {self.dtype}")
        if min(self.shard_size, self.batch_size) < 1 or self.num_workers < 0:
            raise ValueError(
                f"shard_size and batch_size must be at least 1 and num_workers at least 0, not {self.shard_size}, "
                f"{self.batch_size} and {self.num_workers}"
            )
        check_share(self.max_refused)


@dataclass(frozen=True, kw_only=True)
class EncodingJob:
    """What is encoded, with what and where to, as plain values that can be sent to another machine.

    Attributes:
        place: The pictures; see `open_source`.
        folder: Where the shards go; all machines see the same one.
        tokenizer: A model, its image tokenizer alone, or the folder of a training; see `open_tokenizer`.
        text_encoder: A model or a text encoder; no text features if None.
        config: How.
    """

    place: str
    folder: Path
    tokenizer: str
    text_encoder: str | None
    config: EncodingConfig

    def open(self, runtime: Runtime) -> "Encoding":
        """Opens data and networks, and claims the folder.

        Raises:
            FlowTokError: Something is not there or damaged, or the folder holds something else.
        """
        config = self.config
        source = open_source(self.place, config.fields)
        text_encoder = None
        if self.text_encoder is not None:
            if config.layout == "release":
                raise DataError("the release's layout has no place for text features; leave them out")
            text_encoder = TextEncoder.from_pretrained(self.text_encoder, num_tokens=config.num_text_tokens)
        encoding = Encoding(source, self.folder, open_tokenizer(self.tokenizer), text_encoder, config, runtime)
        encoding.made.claim(self.folder)
        return encoding


def open_tokenizer(name: str) -> ImageTokenizer:
    """The image tokenizer of a model or of its own folder, or the one that a training has left so far.

    Args:
        name: A shipped model, a model folder, a tokenizer's folder, a Hub id, or the folder of a training.

    Raises:
        CheckpointError: There is none.
    """
    recipe, weights = Path(name) / "recipe.yaml", Path(name) / "model"
    if recipe.is_file() and (weights / "image_tokenizer.safetensors").is_file():
        config = read_recipe(load_data(recipe), where=str(recipe)).image_tokenizer
        return load_component(weights, "image_tokenizer", lambda: ImageTokenizer(config))
    return ImageTokenizer.from_pretrained(name).eval()


Report = Callable[[int], None]


class Encoding:
    """One folder of moments in the making."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        tokenizer: ImageTokenizer,
        text_encoder: TextEncoder | None,
        config: EncodingConfig,
        runtime: Runtime,
    ) -> None:
        self.source, self.folder, self.config, self.runtime = source, folder, config, runtime
        size = 1
        if source.num_samples:
            size = max(1, config.shard_size * len(source.parts) // source.num_samples)
        model = tokenizer.config
        words = None
        if text_encoder is not None:
            words = fingerprint_of_words(text_encoder)
        self.made = LatentsMade(
            source=f"{source.name} ({source.kind})",
            parts=fingerprint_of_source(source),
            num_shards=-(-len(source.parts) // size),
            parts_per_shard=size,
            tokenizer=fingerprint_of_weights(tokenizer.state_dict()),
            text_encoder=words,
            image_size=model.image_size,
            crop=CROP,
            shape=(model.num_tokens, model.token_channels),
            layout=config.layout,
            dtype=config.dtype,
            precision=config.precision,
            settings=_settings(config),
        )
        self.tokenizer = tokenizer.eval().to(runtime.device)
        self.text_encoder = None if text_encoder is None else text_encoder.to(runtime.device)

    def unfinished(self, rank: int = 0, num_ranks: int = 1) -> list[int]:
        """Which of a rank's shards are still to be made; those that are there are checked by their checksums.

        All ranks must ask before any of them makes one: records of shards that are made anew are taken away, so that
        no rank counts them as done.
        """
        numbers = range(rank, self.made.num_shards, num_ranks)
        records = {number: ShardRecord.read(self.folder, number) for number in numbers}
        wanted = [number for number, record in records.items() if not (record and record.is_whole(self.folder, number))]
        for number in wanted:
            ShardRecord.remove(self.folder, number)
        self.runtime.wait_for_all()
        return wanted

    def make(self, numbers: Sequence[int], report: Report | None = None) -> None:
        """Makes shards; each is there when it is whole.

        Args:
            numbers: Which ones.
            report: Called with the number of samples seen so far.

        Raises:
            DataError: Too much was refused, or moments are not finite.
            FlowTokError: The disk is full.
        """
        config = self.config
        decoding = Decoding(
            self.source,
            numbers,
            parts_per_shard=self.made.parts_per_shard,
            size=self.made.image_size,
            batch_size=config.batch_size,
            filters=config.filters,
            background=config.background,
        )
        seen, tallies = Tally(), {number: Tally() for number in numbers}
        with contextlib.ExitStack() as unfinished:
            writers: dict[int, tuple[contextlib.ExitStack, Callable[[LatentSample], None]]] = {}
            for load in DataLoader(decoding, batch_size=None, num_workers=config.num_workers):
                if load.error is not None:
                    raise DataError(load.error)
                number = load.shard
                if number not in writers:
                    stack = unfinished.enter_context(contextlib.ExitStack())
                    path = self.folder / shard_name(number)
                    writers[number] = (stack, stack.enter_context(shard_writer(path, self.config.layout)))
                stack, add = writers[number]
                for sample in self.encode(load.samples, load.image_B3YX):
                    add(sample)
                tallies[number].add(load.tally)
                seen.add(load.tally)
                seen.check(config.max_refused, num_parts=len(self.source.parts), at_end=False)
                if load.is_last:
                    stack.close()
                    del writers[number]
                    ShardRecord.write(self.folder, number, tallies.pop(number))
                if report is not None:
                    report(seen.seen)

    def finish(self) -> dict[str, Any] | None:
        """Completes the manifest if every shard is there; None if other ranks are not done.

        Raises:
            DataError: Too much was refused, or nothing is left.
        """
        return finish(self.folder, self.made, num_parts=len(self.source.parts), max_refused=self.config.max_refused)

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample], image_B3YX: Tensor | None) -> list[LatentSample]:
        """Samples with the moments of their pictures, uint8, and with the features of their texts."""
        if image_B3YX is None:
            return []
        dtype = _TYPES[self.config.dtype]
        with self._precisely():
            posterior = self.tokenizer.encode(image_B3YX.to(self.runtime.device).float() / 255.0)
        moments_B2LC = torch.stack([posterior.mean_BLC, posterior.logvar_BLC], dim=1).to("cpu", dtype)
        words = self._features([texts_read(sample) for sample in samples])
        return [
            LatentSample(
                key=sample.key,
                captions=sample.captions,
                recaption=sample.recaption,
                metadata=sample.metadata,
                moments_2LC=moments_2LC,
                features_KSE=features_KSE,
                ids_KS=ids_KS,
            )
            for sample, moments_2LC, (features_KSE, ids_KS) in zip(samples, moments_B2LC, words, strict=True)
        ]

    def _precisely(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that was asked for; float32 is as in training from pictures."""
        runtime, precision = self.runtime, self.config.precision
        return runtime.frozen() if precision == "float32" else runtime.autocast(precision)

    def _features(self, texts: Sequence[tuple[str, ...]]) -> list[tuple[Tensor, Tensor] | tuple[None, None]]:
        """Features and ids of the texts of each sample."""
        if self.text_encoder is None:
            return [(None, None)] * len(texts)
        flat = [text for own in texts for text in own]
        parts = [flat[first : first + self.config.batch_size] for first in range(0, len(flat), self.config.batch_size)]
        with self._precisely():
            found = [self.text_encoder.encode(part) for part in parts]
        features_MSE = torch.cat([part.features_BSE for part in found]).to("cpu", _TYPES[self.config.dtype])
        ids_MS = torch.cat([part.ids_BS for part in found]).to("cpu", torch.int32)
        counts = [len(own) for own in texts]
        return list(zip(features_MSE.split(counts), ids_MS.split(counts), strict=True))


def _settings(config: EncodingConfig) -> dict[str, Any]:
    """What decides which samples are taken, where it is not the default: a setting that came later has its default."""
    chosen, usual = to_dict(config), to_dict(EncodingConfig())
    changed: dict[str, Any] = {}
    for name in ("fields", "filters"):
        own = {key: value for key, value in chosen[name].items() if value != usual[name][key]}
        changed |= {name: own} if own else {}
    if chosen["background"] != usual["background"]:
        changed["background"] = chosen["background"]
    return changed
