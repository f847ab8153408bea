"""Samples of a stage out of cached moments: shards of any size, read as they come by workers of each rank.

Reading and its order are data/latent_streams.py's. Pictures themselves are read by streaming.py, data in memory by
samples.py; the shards are written by encoding.py.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowtok.data.batch_streams import BatchConfig
from flowtok.data.latent_shards import LatentSource
from flowtok.data.latent_streams import LatentBatch, LatentStream
from flowtok.image.latents import LatentScale
from flowtok.text.encoder import TextEncoder
from flowtok.train.runtime import Runtime
from flowtok.train.samples import FromStream


class CachedPairs(FromStream[LatentBatch]):
    """This rank's share of cached moments, as pairs of text features and image tokens.

    A batch holds a fresh draw of each picture's tokens, `z_image_BLC`, and `features_BSE` of one of its captions: the
    cached ones, or else what the text encoder makes of the caption on the device.
    """

    def __init__(
        self,
        source: LatentSource,
        settings: BatchConfig,
        text_encoder: TextEncoder,
        scale: LatentScale,
        runtime: Runtime,
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            source: The moments; see `open_latents`.
            settings: Which samples and in which order, without end; batches are of whatever size is asked for.
            text_encoder: Of the captions, on the runtime's device.
            scale: Between the tokenizer's tokens and the flow's, on the CPU.
            runtime: Where.
        """
        assert settings.epochs.num_epochs is None, "a training's stream has no end"
        self.source, self.settings, self.text_encoder = source, settings, text_encoder
        self.scale, self.runtime = scale, runtime
        super().__init__(self._opened)

    def _opened(self, batch_size: int, position: dict[str, Any] | None) -> LatentStream:
        settings = replace(self.settings, batch_size=batch_size)
        return LatentStream(self.source, settings, position=position, **self.runtime.place())

    def take(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        batch = self.next_batch(len(indices_B))
        words = {"features_BSE": batch.features_BSE}
        if batch.features_BSE is None:
            words = {"ids_BS": self.text_encoder.ids(batch.captions)}
        return words | {"z_image_BLC": self.scale.to_flow(batch.sample(generator))}

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        if "features_BSE" in batch:
            return batch | {"features_BSE": batch["features_BSE"].float()}
        return batch | {"features_BSE": _uncompiled(self.text_encoder, batch["ids_BS"], self.runtime)}


def _encoded(text_encoder: TextEncoder, ids_BS: Tensor, runtime: Runtime) -> Tensor:
    with runtime.frozen():
        return text_encoder.features(ids_BS)


_uncompiled: Any = torch.compiler.disable(_encoded)  # called inside a loss that may be compiled
