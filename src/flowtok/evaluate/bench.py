"""The bench that all measurements share: a model, a captioned set, and how the one is run on the other.

Scores nothing; tasks.py does. Pictures are chosen by fixed rules and made through the calls that a user makes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

import flowtok
from flowtok.checkpoints.catalogue import CONFIG_FILE
from flowtok.data import captioned
from flowtok.data.collect import open_captioned
from flowtok.data.images import to_pil, to_tensor
from flowtok.errors import FlowTokError
from flowtok.evaluate import retrieval
from flowtok.evaluate.drawing import Drawn, Share, Wanted, draw_into, fingerprint, open_drawn
from flowtok.evaluate.page import Exhibit
from flowtok.evaluate.report import Record
from flowtok.pipeline import FlowTok
from flowtok.sampling import SamplingConfig

Progress = Callable[[str, int, int], None]
Items = TypeVar("Items")
Kept = TypeVar("Kept")


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody about progress."""
    del what, done, total


@dataclass(kw_only=True)
class Bench:
    """A model on the bench: the set it is measured on, how it is run, and what several tasks share.

    Attributes:
        model: What is measured.
        folder: The built emoji set, or any captioned pictures that data/sources.py opens.
        model_folder: Where the model was read from, so that records can tell it from others; None if from nowhere.
        sampling: Fields of SamplingConfig that differ from the model's own; they act on generation and on captions.
        seed: Picture number k is drawn with the seed `seed + k`, as `FlowTok.generate` does for that prompt alone.
        batch_size: Pictures handed to the model at a time; how many it computes together is its own `batch_size`.
        captions_together: Captions that it computes together; None for its own `batch_size`. A word costs a pass
            through the whole vocabulary, for one picture or for many.
        progress: Called with (what, done, total).
        work: Folder in which generated pictures are kept, so that a measurement that was stopped goes on; None keeps
            them in memory.
        share: This process's part of the drawing.
        weights: Folder or Hub repository with the networks behind FID and LPIPS; "download" for the usual places. With
            None they are used where a task needs them, from the usual places.
        clip: Folder or Hub id of a CLIP, for the scores that need one.
        reference: Pictures or statistics to compare with, in the place of a task's own.
        results: What an official scorer wrote of pictures drawn before.
        note: Told what a user should know of a measurement.

    Raises:
        FlowTokError: A field of `sampling` is out of range.
    """

    model: FlowTok
    folder: str | Path
    model_folder: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 64
    captions_together: int | None = 32
    progress: Progress = silent
    work: Path | None = None
    share: Share = field(default_factory=Share)
    weights: str | None = None
    clip: str | None = None
    reference: Path | None = None
    results: Path | None = None
    note: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self._splits: dict[str, captioned.EmojiSet] = {}
        self._kept: dict[tuple[str, ...], Any] = {}
        self.exhibits: list[Exhibit] = []
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

    def batches(self, items: Items, what: str) -> Iterator[Items]:
        """Slices of a sequence or a tensor, reporting progress."""
        whole: Any = items
        self.progress(what, 0, len(whole))
        for start in range(0, len(whole), self.batch_size):
            yield whole[start : start + self.batch_size]
            self.progress(what, min(start + self.batch_size, len(whole)), len(whole))

    def pictures(self, split: str, positions: Sequence[int]) -> list[Image.Image]:
        """The set's own pictures at these positions."""
        return to_pil(self.open(split).images_N3YX[list(positions)].float() / 255)

    def with_sampling(self, sampling: Mapping[str, Any]) -> Bench:
        """The same bench with other steps or guidance; what one of the two opens is open for both."""
        return self._changed(sampling={**self.sampling, **sampling})

    def shared(self, share: Share) -> Bench:
        """The same bench for a process's part of the drawing; what one of the two opens is open for both."""
        return self._changed(share=share)

    def _changed(self, **changes: Any) -> Bench:
        other = replace(self, **changes)
        other._splits, other._kept, other.exhibits = self._splits, self._kept, self.exhibits
        return other

    def keep(self, name: tuple[str, ...], make: Callable[[], Kept]) -> Kept:
        """What several tasks, splits, steps and guidance scales need, made once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def generate(self, prompts: Sequence[str], what: str = "generation", first: int = 0) -> list[Image.Image]:
        """A picture for each prompt, with the steps and guidance of this bench; `first` is the number of the first."""
        pictures = []
        for part in self.batches(range(len(prompts)), what):
            pictures += self._drawn([prompts[k] for k in part], [self.seed + first + k for k in part])
        return pictures

    def generate_kept(self, prompts: Sequence[str], name: str, what: str) -> list[Image.Image]:
        """As `generate`; with a folder for it the pictures are kept there, and those that are there are taken."""
        if self.work is None:
            return self.generate(prompts, what)
        wanted = self.wanted(prompts)
        folder = self.draw(wanted, name, what)
        return [open_drawn(folder / one.name) for one in wanted]

    def wanted(self, prompts: Sequence[str]) -> list[Wanted]:
        """Picture number k of a measurement: its prompt, the seed `seed + k`, and a file named by its number."""
        return [Wanted(prompt=prompt, seed=self.seed + k, name=f"{k:06d}.png") for k, prompt in enumerate(prompts)]

    def draw(self, wanted: Sequence[Wanted], name: str, what: str) -> Path:
        """Draws what is not yet in the folder of that name, this process its part of it, and says how fast."""
        folder = self.drawn_folder(name)
        drawn: Drawn = draw_into(
            folder,
            wanted,
            self._drawn,
            conditions=self._conditions,
            size=self.image_size,
            batch_size=self.model.batch_size,  # written as soon as they are there: a large model takes minutes for one
            share=self.share,
            progress=lambda done, total: self.progress(what, done, total),
        )
        if self.share.is_main and drawn.made:
            self.note(f"{what}: {drawn}")
        return folder

    def drawn_folder(self, name: str) -> Path:
        """Where pictures of this model, drawn with these steps, guidance and seed, are kept: WORK/NAME-HASH.

        Raises:
            FlowTokError: There is no folder to keep pictures in, or the model was read from none.
        """
        if self.work is None or self.model_sha256 is None:
            raise FlowTokError(f"{name} keeps its pictures: name a folder with -o, and a model by its folder or name")
        return self.work / f"{name}-{fingerprint(self._conditions)[:8]}"

    @property
    def _conditions(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "model_sha256": self.model_sha256,
            "flowtok": flowtok.__version__,
            "sampling": self.image_sampling,
            "precision": self.precision,
            "seed": self.seed,
        }

    def _drawn(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        chosen = self.chosen
        return self.model.generate(
            list(prompts),
            chosen.num_inference_steps,
            chosen.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            guidance_interval=chosen.guidance_interval,
            solver=chosen.solver,
            grid=chosen.grid,
        )

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

    def show(self, exhibit: Exhibit) -> None:
        """Keeps pictures for the report."""
        self.exhibits.append(exhibit)

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """What the model says of pictures, with the steps and guidance of this bench."""
        chosen, before = self.chosen, self.model.batch_size
        self.model.batch_size = self.captions_together or before
        try:
            return self.model.caption(
                list(pictures), chosen.caption_steps, chosen.caption_guidance_scale, solver=chosen.caption_solver
            )
        finally:
            self.model.batch_size = before

    @torch.no_grad()
    def vectors(self, image_N3YX: Tensor, what: str) -> Tensor:
        """Pictures (uint8) as posterior means of the image tokenizer, whitened: one vector (L * C) each."""
        tokenizer = self.model.image_tokenizer
        weight = next(tokenizer.parameters())
        parts = []
        for part in self.batches(image_N3YX, what):
            mean_BLC = tokenizer.encode((part.float() / 255).to(weight)).mean_BLC
            parts.append(self.model.latent_scale.to_flow(mean_BLC).flatten(1).float().cpu())
        return torch.cat(parts)

    def gallery(self, split: str, kind: str = "", made: Callable[[], Tensor] | None = None) -> Tensor:
        """Vectors of all pictures of a split, made once for all tasks, steps and guidance scales.

        Args:
            split: Part of the set.
            kind: Names vectors that are not this bench's own; then `made` makes them.
            made: Makes them.
        """

        def own() -> Tensor:
            return self.vectors(self.open(split).images_N3YX, f"vectors, all of {split}")

        return self.keep(("gallery", split, kind), made or own)

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
            data: What was measured on; this bench's captioned set if None.
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


def uint8_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size as image_B3YX, uint8."""
    return torch.stack([(to_tensor(picture) * 255).round().to(torch.uint8) for picture in pictures])
