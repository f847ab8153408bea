"""The bench that all measurements share: how a model is run on what it is measured with, and what several tasks need.

Scores nothing; tasks.py does. Pictures are made through the calls that a user makes. What protocols and records say of
the model and of the set is in subject.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

import flowtok
from flowtok.data.images import to_tensor
from flowtok.errors import FlowTokError
from flowtok.evaluate.drawing import Drawn, Share, Wanted, draw_into, fingerprint, open_drawn
from flowtok.evaluate.page import Exhibit
from flowtok.evaluate.subject import Subject

Progress = Callable[[str, int, int], None]
Items = TypeVar("Items")
Kept = TypeVar("Kept")


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody about progress."""
    del what, done, total


@dataclass(kw_only=True)
class Bench(Subject):
    """A model on the bench: how it is run on the set that it is measured on, and what several tasks share.

    Attributes:
        seed: Picture number k is drawn with the seed `seed + k`, as `FlowTok.generate` does for that prompt alone.
        batch_size: Pictures handed to the model at a time; how many it computes together is its own `batch_size`.
        captions_together: Captions that it computes together; None for its own `batch_size`. A word costs a pass
            through the whole vocabulary, for one picture or for many.
        progress: Called with (what, done, total).
        work: Folder in which generated pictures are kept, so that a measurement that was stopped goes on; None keeps
            them in memory.
        weights: Folder or Hub repository with the networks behind FID and LPIPS; "download" for the usual places. With
            None they are used where a task needs them, from the usual places.
        clip: Folder or Hub id of a CLIP, for the scores that need one.
        reference: Pictures or statistics to compare with, in the place of a task's own.
        results: What an official scorer wrote of pictures drawn before.
    """

    seed: int = 0
    batch_size: int = 64
    captions_together: int | None = 32
    progress: Progress = silent
    work: Path | None = None
    weights: str | None = None
    clip: str | None = None
    reference: Path | None = None
    results: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._kept: dict[tuple[str, ...], Any] = {}
        self.exhibits: list[Exhibit] = []

    def batches(self, items: Items, what: str) -> Iterator[Items]:
        """Slices of a sequence or a tensor, reporting progress."""
        whole: Any = items
        self.progress(what, 0, len(whole))
        for start in range(0, len(whole), self.batch_size):
            yield whole[start : start + self.batch_size]
            self.progress(what, min(start + self.batch_size, len(whole)), len(whole))

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


def uint8_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size as image_B3YX, uint8."""
    return torch.stack([(to_tensor(picture) * 255).round().to(torch.uint8) for picture in pictures])
