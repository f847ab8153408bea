"""What is measured, as records tell it: a model, how it is sampled, a captioned set, and the protocol of all scores.

Runs no model and scores nothing: bench.py and the modules of the tasks do. How records are kept is in report.py.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import flowtok
from flowtok.checkpoints.catalogue import CONFIG_FILE
from flowtok.data import captioned
from flowtok.data.collect import open_captioned
from flowtok.data.images import to_pil
from flowtok.errors import FlowTokError
from flowtok.evaluate import retrieval
from flowtok.evaluate.drawing import Share
from flowtok.evaluate.report import Record
from flowtok.pipeline import FlowTok
from flowtok.sampling import SamplingConfig


@dataclass(kw_only=True)
class Subject:
    """A model and the set that it is measured on: what of them is chosen, what protocols say of them, and records.

    Attributes:
        model: What is measured.
        folder: The built emoji set, or any captioned pictures that data/sources.py opens.
        model_folder: Where the model was read from, so that records can tell it from others; None if from nowhere.
        sampling: Fields of SamplingConfig that differ from the model's own; they act on generation and on captions.
        share: This process's part of the drawing.
        note: Told what a user should know of a measurement.

    Raises:
        FlowTokError: A field of `sampling` is out of range.
    """

    model: FlowTok
    folder: str | Path
    model_folder: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    share: Share = field(default_factory=Share)
    note: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self._splits: dict[str, captioned.EmojiSet] = {}
        self.chosen: SamplingConfig = replace(self.model.sampling, **self.sampling)

    def open(self, split: str) -> captioned.EmojiSet:
        """A split of the set, opened once; pictures that flowtok did not build are resized and cropped.

        Raises:
            FlowTokError: The set cannot be opened, has no pictures in this split, or was built in another size.
        """
        if not self.holds(split):
            raise FlowTokError(f"the set in {self.folder} has no pictures in its split {split}")
        return self._splits[split]

    def _whole(self) -> dict[str, captioned.EmojiSet]:
        if not self._splits:
            ours = self.model.image_tokenizer.config.image_size
            if captioned.is_built(self.folder):
                theirs = captioned.load(Path(self.folder)).images_N3YX.shape[-1]
                if ours != theirs:
                    raise FlowTokError(
                        f"the set in {self.folder} has pictures of {theirs} px, the model takes {ours}; "
                        f"build one that fits: flowtok data emoji --size {ours} -o FOLDER"
                    )
            opened = open_captioned(self.folder, ours)
            if opened.tally.num_refused and self.share.is_main:
                self.note(f"of {opened.tally.seen:,} pictures are left out: {', '.join(opened.tally.reasons())}")
            # Into the dictionary that there is, which the benches of a sweep share from the beginning.
            self._splits.update({name: opened.split(name) for name in captioned.SPLITS})
        return self._splits

    def holds(self, split: str) -> bool:
        """Whether the set has pictures in a split; errors as for `open`."""
        return len(self._whole()[split]) > 0

    def choose(self, split: str, limit: int | None) -> list[int]:
        """Positions of the first `limit` pictures of a split in the fixed order; all where it is None."""
        return retrieval.fixed_order([row.file_name for row in self.open(split).rows])[:limit]

    def pictures(self, split: str, positions: Sequence[int]) -> list[Image.Image]:
        """The set's own pictures at these positions."""
        return to_pil(self.open(split).images_N3YX[list(positions)].float() / 255)

    @property
    def image_sampling(self) -> dict[str, Any]:
        """How pictures are drawn, for a protocol; guidance that acts all the way needs no interval there."""
        all_the_way = self.chosen.guidance_interval == SamplingConfig.guidance_interval
        left_out = ("caption_", "guidance_interval") if all_the_way else "caption_"
        return {name: value for name, value in asdict(self.chosen).items() if not name.startswith(left_out)}

    @property
    def caption_sampling(self) -> dict[str, Any]:
        """How captions are written, for a protocol; the time grid acts on pictures alone."""
        return {name: value for name, value in asdict(self.chosen).items() if name.startswith("caption_")}

    @property
    def image_size(self) -> int:
        """Side of the model's pictures in pixels."""
        return self.model.image_tokenizer.config.image_size

    @property
    def precision(self) -> str:
        """What the networks compute in; a model may be an image tokenizer alone."""
        if "velocity" in self.model.parts:
            return self.model.precision
        return str(next(self.model.image_tokenizer.parameters()).dtype).removeprefix("torch.")

    @property
    def kind_of_weights(self) -> str:
        """Whether the weights are those of the average over training; a stage of flowtok hands on nothing else."""
        provenance = self.model.provenance
        if "released" in provenance:
            return "as released"
        return "averaged over training (EMA)" if "recipe" in provenance else "unknown"

    @cached_property
    def model_sha256(self) -> str | None:
        """SHA-256 of the model's config.json, which holds the checksums of its weights."""
        folder = self.model_folder
        return None if folder is None else hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest()

    @cached_property
    def metadata_sha256(self) -> str:
        """SHA-256 of a built set's metadata.jsonl, or of what was read: names, captions, splits and pixels.

        Where a set lies and what its folder is called is no part of it.
        """
        if captioned.is_built(self.folder):
            return hashlib.sha256((Path(self.folder) / "metadata.jsonl").read_bytes()).hexdigest()
        digest = hashlib.sha256()
        for split, opened in self._splits.items():
            for row, image_3YX in zip(opened.rows, opened.images_N3YX, strict=True):
                digest.update(f"{(split, row.file_name, row.text, row.texts)}\n".encode())
                digest.update(image_3YX.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def record(
        self, task: str, split: str, scores: dict[str, float], count: int, *, data: Mapping[str, Any] | None = None,
        libraries: Sequence[str] = (), optional: Sequence[str] = (), **protocol: Any,
    ) -> Record:  # fmt: skip
        """A record of this model.

        Args:
            task: What was measured.
            split: On which part of the data.
            scores: By name.
            count: Samples.
            data: What was measured on; the captioned set if None.
            libraries: Libraries that computed the scores; their versions are conditions.
            optional: Libraries that computed scores which are left out where these are not installed; their versions
                stand beside the protocol, so that the other scores compare.
            protocol: What the task adds to the conditions of all.
        """
        of_captioned = {
            "set": "emoji" if captioned.is_built(self.folder) else "other",
            "split": split,
            "metadata_sha256": self.metadata_sha256 if data is None else None,
        }
        common: dict[str, Any] = {
            "task": task,
            "data": dict(data) if data is not None else of_captioned,
            "samples": f"the first {count} in the order of crc32(file_name), file_name",
            "precision": self.precision,
            "weights": self.kind_of_weights,
            "image_size": self.image_size,
        }
        if libraries:
            common["versions"] = {name: version(name) for name in libraries}
        return Record(
            task=task,
            split=split,
            scores=scores,
            num_samples=count,
            protocol=common | protocol,
            model=self.model.name,
            model_sha256=self.model_sha256,
            device=self.model.device.type,
            versions={"flowtok": flowtok.__version__, "torch": torch.__version__, "python": platform.python_version()}
            | {name: version(name) for name in ("pillow", "transformers", *libraries, *optional)},
        )
