"""Shards of cached moments: what lies in them, how it is written, and a source that reads it.

A shard is a tar file in webdataset's layout, in one of two kinds: flowtok's own, and the one that the authors' release
reads. Knows no network; which shards belong together is in latent_folders.py, batches are in latent_streams.py.
"""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flowtok.data.filters import tidy_recaption
from flowtok.data.refusals import Refusal
from flowtok.data.samples import Item, Sample, labels_of, texts_of
from flowtok.data.shards import items_of_shard, one_line
from flowtok.errors import DataError
from flowtok.files import replacing

Layout = Literal["flowtok", "release"]

# Endings of the files of a sample. Those of the authors' release: raw numbers in spite of the name.
_MOMENTS, _FEATURES, _IDS = "moments.npy", "features.npy", "ids.npy"
_RELEASED, _RELEASED_RECAPTION = "token.npy", "recap_txt"
# Tokens and channels of the authors' release.
RELEASE_SHAPE = (77, 16)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSample(Sample):
    """A captioned picture of which only the moments are there.

    Attributes:
        moments_2LC: Means and log-variances, float16 or float32.
        features_KSE: Text features of each of its `texts`, where they were cached.
        ids_KS: Ids of each of its `texts`, int32, where features were cached.
    """

    encoded: Path | bytes = b""
    moments_2LC: Tensor
    features_KSE: Tensor | None = None
    ids_KS: Tensor | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All that training may read of it."""
        return texts_read(self)


def texts_read(sample: Sample) -> tuple[str, ...]:
    """All that training may read of a sample: its captions, and its recaption as it is read, all different."""
    recaptions = () if sample.recaption is None else (tidy_recaption(sample.recaption),)
    return tuple(dict.fromkeys((*sample.captions, *recaptions)))


@contextlib.contextmanager
def shard_writer(path: Path, layout: Layout) -> Iterator[Callable[[LatentSample], None]]:
    """Lends a function that adds a sample to a shard, which is there when the block ends, whole or not at all.

    The same samples give the same bytes.

    Raises:
        DataError: Moments that are not finite in the type they are stored in.
        FlowTokError: The disk is full, or the folder cannot be written to.
    """
    number = 0
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:

        def add(sample: LatentSample) -> None:
            nonlocal number
            if not torch.isfinite(sample.moments_2LC).all():
                kind = str(sample.moments_2LC.dtype).removeprefix("torch.")
                raise DataError(
                    f"the moments of {sample.key} are not finite in {kind}; is the tokenizer damaged? If its moments "
                    "are that large, store them in float32"
                )
            members = _members(sample) if layout == "flowtok" else _released_members(sample)
            for ending, content in members.items():
                header = tarfile.TarInfo(f"{number:09d}.{ending}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
            number += 1

        yield add


def _members(sample: LatentSample) -> dict[str, bytes]:
    """The files of a sample in flowtok's own layout."""
    record = {
        "key": sample.key,
        "captions": list(sample.captions),
        "recaption": sample.recaption,
        "metadata": dict(sample.metadata),
    }
    members = {"json": json.dumps(record).encode(), _MOMENTS: _npy(sample.moments_2LC)}
    if sample.features_KSE is not None and sample.ids_KS is not None:
        members |= {_FEATURES: _npy(sample.features_KSE), _IDS: _npy(sample.ids_KS)}
    return members


def _released_members(sample: LatentSample) -> dict[str, bytes]:
    """The files of a sample as the authors' release reads them: the first caption and the moments without a header.

    Source: the authors' release; float16 in little-endian order, (2 C, 1, L), C means and then C log-variances.
    """
    moments_CL = sample.moments_2LC.transpose(1, 2).flatten(0, 1).numpy().astype("<f2")
    members = {_RELEASED: moments_CL.tobytes(), "txt": _utf8(sample.captions[0])}
    if sample.recaption is not None:
        members[_RELEASED_RECAPTION] = _utf8(sample.recaption)
    return members


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate, which JSON may hold, is no character


def _npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.contiguous().numpy(), allow_pickle=False)
    return buffer.getvalue()


class LatentSource:
    """Samples of many shards of either layout, in the order in which they lie there; streams.py's sources have no more.

    A sample that cannot be used is refused in its place.
    """

    def __init__(
        self, shards: Sequence[str], *, shape: tuple[int, int] = RELEASE_SHAPE, num_samples: int | None = None
    ) -> None:
        """Takes note of shards; they are opened when they are read.

        Args:
            shards: Files, URLs or commands, as for pictures.
            shape: Tokens and channels (L, C) that the moments must have.
            num_samples: How many samples there are, where that is known.
        """
        self.shards, self.shape, self.num_samples = tuple(shards), shape, num_samples
        self.parts = labels_of(self.shards)
        self.name = self.parts[0]
        self.kind = f"{len(self.parts)} shard{'s' * (len(self.parts) != 1)} of cached moments"

    def read(self, part: int) -> Iterator[Item]:
        label = self.parts[part]
        return items_of_shard(self.shards[part], label, lambda group: self._item(label, group))

    def _item(self, label: str, group: Mapping[str, Any]) -> Item:
        """The sample that the files of one key make."""
        key = f"{label}/{group['__key__']}"
        try:
            if _MOMENTS in group:
                sample = _own_sample(group)
            elif _RELEASED in group:
                sample = _released_sample(key, group, self.shape)
            else:
                return Refusal(key=key, reason="without moments")
        except (ValueError, KeyError, TypeError) as error:
            return Refusal(key=key, reason="with moments or captions that cannot be read", detail=one_line(error))
        found = tuple(sample.moments_2LC.shape)
        if found != (2, *self.shape):
            return Refusal(
                key=sample.key, reason="with moments of another shape", detail=f"{found} instead of {(2, *self.shape)}"
            )
        if not sample.captions:
            return Refusal(key=sample.key, reason="without a caption")
        return sample


def _own_sample(group: Mapping[str, Any]) -> LatentSample:
    record = json.loads(group["json"])
    sample = LatentSample(
        key=record["key"],
        captions=texts_of(record["captions"]),
        recaption=record["recaption"],
        metadata=record["metadata"],
        moments_2LC=_tensor(group[_MOMENTS]),
        features_KSE=_tensor(group[_FEATURES]) if _FEATURES in group else None,
        ids_KS=_tensor(group[_IDS]) if _IDS in group else None,
    )
    if sample.features_KSE is not None and len(sample.features_KSE) != len(sample.texts):
        raise ValueError(f"{len(sample.features_KSE)} text features for {len(sample.texts)} texts")
    return sample


def _released_sample(key: str, group: Mapping[str, Any], shape: tuple[int, int]) -> LatentSample:
    num_tokens, channels = shape
    content, expected = group[_RELEASED], 4 * num_tokens * channels
    if len(content) != expected:
        raise ValueError(
            f"{_RELEASED} has {len(content)} bytes, not {expected} (2 x {channels} x {num_tokens} float16)"
        )
    moments_2CL = torch.from_numpy(np.frombuffer(content, "<f2").astype(np.float16)).view(2, channels, num_tokens)
    recaption = texts_of(group[_RELEASED_RECAPTION].decode())[:1] if _RELEASED_RECAPTION in group else ()
    return LatentSample(
        key=key,
        captions=texts_of(group["txt"].decode()) or recaption,
        recaption="".join(recaption) or None,
        moments_2LC=moments_2CL.transpose(1, 2).contiguous(),
    )


def _tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
