"""Where a stage's samples come from: the one thing that a stage asks, and the answers for data that lies in memory.

A stage takes samples by their numbers and lets them be completed on the device; whether they lie in memory (here) or
are read as they come (FromStream; pictures in streaming.py, moments in cached.py) it does not know.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from flowtok.data.batch_streams import BatchStream
from flowtok.data.latents import CaptionFeatures, CaptionTable, Moments
from flowtok.data.refusals import Tally
from flowtok.image.latents import LatentScale


class Samples(Protocol):
    """Samples of one kind: pictures with or without text features, pairs of tokens and features, tokens to be read.

    Attributes:
        num_samples: How many there are; None for a stream.
    """

    @property
    def num_samples(self) -> int | None: ...

    def take(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """The samples of these numbers, or just as many where they have none; runs on the CPU, ahead of time."""
        ...

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, now on the device, with what frozen networks make of it."""
        ...

    def names(self, indices_B: Tensor) -> Sequence[str]:
        """Words for the samples that were taken last, such as file names."""
        ...

    def position(self) -> dict[str, Any] | None:
        """Where a stream stands, as plain data; None where there is no such place."""
        ...

    def go_to(self, position: dict[str, Any]) -> None:
        """Goes on from there."""
        ...

    def close(self) -> None:
        """Ends whatever reads."""
        ...


class ReadsSamples:
    """What a stage with `samples` says of them to the loop."""

    samples: Samples

    @property
    def num_samples(self) -> int | None:
        return self.samples.num_samples

    def names(self, indices_B: Tensor) -> Sequence[str]:
        return self.samples.names(indices_B)

    def position(self) -> dict[str, Any] | None:
        return self.samples.position()

    def go_to(self, position: dict[str, Any]) -> None:
        self.samples.go_to(position)


class InMemory:
    """Samples that lie in memory under their numbers: complete as they are taken, and without a place to keep."""

    def __init__(self, files: Sequence[str]) -> None:
        """Takes the name of each sample."""
        self.files = tuple(files)

    @property
    def num_samples(self) -> int:
        return len(self.files)

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def names(self, indices_B: Tensor) -> list[str]:
        return [self.files[index] for index in indices_B.tolist()]

    def position(self) -> None:
        return None

    def go_to(self, position: dict[str, Any]) -> None:
        raise AssertionError(f"samples in memory have no place {position} to go to")

    def close(self) -> None:
        """Nothing is open."""


class KeyedBatch(Protocol):
    """A batch of a stream: it knows the names of its samples."""

    @property
    def keys(self) -> tuple[str, ...]: ...


Batch = TypeVar("Batch", bound=KeyedBatch)


class FromStream(Generic[Batch]):
    """This rank's share of a stream, which is opened when the first samples are taken and read on from then."""

    num_samples = None

    def __init__(self, open_stream: Callable[[int, dict[str, Any] | None], BatchStream[Any, Batch]]) -> None:
        """Prepares; nothing is read yet.

        Args:
            open_stream: Gives this rank's stream without end, for the size of its batches and the place it begins at.
        """
        self._open_stream = open_stream
        self._start: dict[str, Any] | None = None
        self._stream: BatchStream[Any, Batch] | None = None
        self._batches: Iterator[Batch] | None = None
        self._keys: tuple[str, ...] = ()

    def next_batch(self, count: int) -> Batch:
        """The next samples; as many each time."""
        if self._batches is None:
            self._stream = self._open_stream(count, self._start)
            self._batches = iter(self._stream)
        batch = next(self._batches)
        assert len(batch.keys) == count, "all parts of all updates are of one size"
        self._keys = batch.keys
        return batch

    def names(self, indices_B: Tensor) -> Sequence[str]:
        return self._keys

    def position(self) -> dict[str, Any] | None:
        return self._start if self._stream is None else self._stream.position()

    def go_to(self, position: dict[str, Any]) -> None:
        assert self._stream is None, "a stream that is being read stays where it is"
        self._start = position

    @property
    def tally(self) -> Tally:
        """What this rank has used, left out and refused since the start."""
        return Tally() if self._stream is None else self._stream.tally

    def close(self) -> None:
        """Ends the workers."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]


class PictureSet(InMemory):
    """Pictures, with text features where a decoder is guided by text.

    A batch holds `image_B3YX` in [0, 1] and, with captions, `text_BSE` of any of a picture's captions.
    """

    def __init__(
        self,
        files: Sequence[str],
        images_N3YX: Tensor,
        captions: CaptionFeatures | None = None,
        table: CaptionTable | None = None,
    ) -> None:
        """Takes pictures (uint8) and, both or none, text features and which of them belong to which picture."""
        super().__init__(files)
        assert (captions is None) == (table is None), "text features come with their table"
        self.images_N3YX, self.captions, self.table = images_N3YX, captions, table

    def take(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        batch = {"image_B3YX": self.images_N3YX[indices_B].float() / 255.0}
        if self.captions is not None and self.table is not None:
            chosen_B = self.table.choose(indices_B, 0.0, generator)
            batch["text_BSE"] = self.captions.features_MSE[chosen_B].float()
        return batch


class PairSet(InMemory):
    """Text features and image tokens that belong together.

    A batch holds `features_BSE` of one of each picture's captions, and a draw of its tokens, `z_image_BLC`.
    """

    def __init__(
        self,
        files: Sequence[str],
        captions: CaptionFeatures,
        image: Moments,
        table: CaptionTable,
        scale: LatentScale,
        canonical_share: float,
    ) -> None:
        """Takes what belongs together.

        Args:
            files: Names of the pictures.
            captions: Text features of the captions of `table`.
            image: Posteriors of the pictures.
            table: Which captions belong to which picture.
            scale: Between the tokenizer's tokens and the flow's.
            canonical_share: Share of the draws that take a picture's canonical caption.
        """
        super().__init__(files)
        self.captions, self.image, self.table, self.scale = captions, image, table, scale
        self.canonical_share = canonical_share

    def take(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        chosen_B = self.table.choose(indices_B, self.canonical_share, generator)
        return {
            "features_BSE": self.captions.features_MSE[chosen_B].float(),
            "z_image_BLC": self.scale.to_flow(self.image.sample(indices_B, generator)),
        }


class ReadingSet(InMemory):
    """Tokens at the text end, and the caption that is to be read from them.

    A batch holds `z_BLC`, brought back from a picture by the flow or drawn from the caption itself, and `ids_BS`.
    """

    def __init__(
        self,
        files: Sequence[str],
        flowed_RNLC: Tensor,
        text: Moments,
        ids_NS: Tensor,
        caption_N: Tensor,
        text_share: float,
    ) -> None:
        """Takes both kinds of tokens.

        Args:
            files: Names of the pictures.
            flowed_RNLC: Tokens of N pictures at the text end of the flow, R draws each.
            text: Posteriors of all captions.
            ids_NS: Ids of the pictures' canonical captions.
            caption_N: Numbers of these captions in `text`.
            text_share: Share of samples whose tokens come from the caption itself.
        """
        super().__init__(files)
        self.flowed_RNLC, self.text, self.ids_NS, self.caption_N = flowed_RNLC, text, ids_NS, caption_N
        self.text_share = text_share

    def take(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        count = len(indices_B)
        draw_B = torch.randint(len(self.flowed_RNLC), (count,), generator=generator)
        own_B = torch.rand(count, generator=generator) < self.text_share
        flowed_BLC = self.flowed_RNLC[draw_B, indices_B].float()
        text_BLC = self.text.sample(self.caption_N[indices_B], generator)
        return {"z_BLC": torch.where(own_B[:, None, None], text_BLC, flowed_BLC), "ids_BS": self.ids_NS[indices_B]}
