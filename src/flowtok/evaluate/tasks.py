"""The measurements by name: a model and a captioned set in, records with their protocols out.

Start with `measure`. The scores are computed in reconstruction.py, retrieval.py and captions.py; this module chooses
pictures and prompts by fixed rules and runs the model, through the calls that a user makes.
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
from flowtok.checkpoints.catalogue import CONFIG_FILE, resolve
from flowtok.components import SamplingConfig
from flowtok.config import did_you_mean
from flowtok.data import captioned
from flowtok.data.images import to_pil, to_tensor
from flowtok.errors import FlowTokError
from flowtok.evaluate import captions, reconstruction, retrieval
from flowtok.evaluate.report import Record
from flowtok.pipeline import FlowTok

WAYS = 128
Progress = Callable[[str, int, int], None]
Items = TypeVar("Items")


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


@dataclass(kw_only=True)
class Bench:
    """A model on the bench: the set it is measured on, how it is run, and what several tasks share.

    Attributes:
        model: What is measured.
        folder: The built emoji set.
        model_folder: Where the model was read from, so that records can tell it from others; None if from nowhere.
        sampling: Fields of SamplingConfig that differ from the model's own; they act on generation and on captions.
        seed: Picture number k is drawn with the seed `seed + k`, as `FlowTok.generate` does for that prompt alone.
        batch_size: Pictures handed to the model at a time; how many it computes together is its own `batch_size`.
        progress: Called with (what, done, total).

    Raises:
        FlowTokError: A field of `sampling` is out of range.
    """

    model: FlowTok
    folder: Path
    model_folder: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 64
    progress: Progress = _silent

    def __post_init__(self) -> None:
        self._splits: dict[str, captioned.EmojiSet] = {}
        self.chosen: SamplingConfig = replace(self.model.sampling, **self.sampling)

    def open(self, split: str) -> captioned.EmojiSet:
        """A split of the set, opened once.

        Raises:
            FlowTokError: It cannot be opened, has no pictures, or none of the model's size.
        """
        if split not in self._splits:
            opened = captioned.load(self.folder, split)
            ours, theirs = self.model.image_tokenizer.config.image_size, opened.images_N3YX.shape[-1]
            if not len(opened):
                raise FlowTokError(f"the set in {self.folder} has no pictures in its split {split}")
            if ours != theirs:
                raise FlowTokError(
                    f"the set in {self.folder} has pictures of {theirs} px, the model takes {ours}; "
                    f"build one that fits: flowtok data emoji --size {ours} -o FOLDER"
                )
            self._splits[split] = opened
        return self._splits[split]

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

    def generate(self, prompts: Sequence[str], what: str = "generation") -> list[Image.Image]:
        """A picture for each prompt, with the steps and guidance of this bench."""
        chosen, pictures = self.chosen, []
        for part in self.batches(range(len(prompts)), what):
            pictures += self.model.generate(
                [prompts[k] for k in part],
                chosen.num_inference_steps,
                chosen.guidance_scale,
                generator=[torch.Generator().manual_seed(self.seed + k) for k in part],
                solver=chosen.solver,
                grid=chosen.grid,
            )
        return pictures

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """What the model says of pictures, with the steps and guidance of this bench."""
        chosen = self.chosen
        return self.model.caption(
            list(pictures), chosen.caption_steps, chosen.caption_guidance_scale, solver=chosen.caption_solver
        )

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

    @cached_property
    def train_vectors(self) -> Tensor:
        """Vectors of all training pictures."""
        return self.vectors(self.open("train").images_N3YX, "vectors, all training pictures")

    @cached_property
    def model_sha256(self) -> str | None:
        """SHA-256 of the model's config.json, which holds the checksums of its weights."""
        folder = self.model_folder
        return None if folder is None else hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest()

    @cached_property
    def metadata_sha256(self) -> str:
        """SHA-256 of the set's metadata.jsonl: which pictures, captions and splits these are."""
        return hashlib.sha256((self.folder / "metadata.jsonl").read_bytes()).hexdigest()

    def record(self, task: str, split: str, scores: dict[str, float], count: int, **protocol: Any) -> Record:
        """A record of this model on this set; `protocol` is what the task adds to the conditions of all."""
        common = {
            "task": task,
            "data": {"set": "emoji", "split": split, "metadata_sha256": self.metadata_sha256},
            "samples": f"the first {count} in the order of crc32(file_name), file_name",
            "precision": str(next(self.model.image_tokenizer.parameters()).dtype).removeprefix("torch."),
        }
        versions = {"flowtok": flowtok.__version__, "torch": torch.__version__, "python": platform.python_version()}
        if "ssim" in scores:
            versions["torchmetrics"] = version("torchmetrics")
        return Record(
            task=task,
            split=split,
            scores=scores,
            num_samples=count,
            protocol=common | protocol,
            model=self.model.name,
            model_sha256=self.model_sha256,
            device=self.model.device.type,
            versions=versions,
        )


def uint8_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size as image_B3YX, uint8."""
    return torch.stack([(to_tensor(picture) * 255).round().to(torch.uint8) for picture in pictures])


def measure_reconstruction(bench: Bench, split: str, limit: int | None) -> Record:
    """PSNR, and SSIM where it can be measured, of the 8-bit pictures that `FlowTok.reconstruct` gives."""
    chosen = bench.choose(split, limit)
    psnr, ssim = [], []
    for part in bench.batches(chosen, f"reconstruction, {split}"):
        originals = bench.pictures(split, part)
        image_B3YX = uint8_pictures(originals).float() / 255
        rebuilt_B3YX = uint8_pictures(bench.model.reconstruct(originals)).float() / 255
        psnr.append(reconstruction.psnr_B(image_B3YX, rebuilt_B3YX))
        if reconstruction.has_ssim():
            ssim.append(reconstruction.ssim_B(image_B3YX, rebuilt_B3YX))
    return bench.record(
        "reconstruction",
        split,
        reconstruction.reconstruction_scores(torch.cat(psnr), torch.cat(ssim) if ssim else None),
        len(chosen),
        pixels="8 bit, on white, as fractions in [0, 1]",
        psnr="decibels over all pixels and colours of a picture, mean over pictures",
        ssim="Gaussian window of 11 pixels, sigma 1.5, mean over pictures",
    )


def measure_retrieval(bench: Bench, split: str, limit: int | None) -> Record:
    """Generates from captions of record and looks for each one's picture among 128 by the tokenizer's vectors."""
    opened = bench.open(split)
    chosen = bench.choose(split, limit)
    names = [row.file_name for row in opened.rows]
    ways = min(WAYS, len(names))
    candidates_NK = retrieval.draw_candidates(names, chosen, ways)
    drawn = bench.generate([opened.rows[i].text for i in chosen], f"generation, {split}")
    query_ND = bench.vectors(uint8_pictures(drawn), f"vectors, generated for {split}")
    # Only the candidates are encoded: for a small limit that is a fraction of the training pictures.
    needed_M, positions_NK = candidates_NK.unique(return_inverse=True)
    gallery_MD = bench.vectors(opened.images_N3YX[needed_M], f"vectors, {split}")
    ranks_N = retrieval.own_ranks(query_ND, gallery_MD, positions_NK)
    return bench.record(
        "retrieval",
        split,
        retrieval.retrieval_scores(ranks_N, ways),
        len(chosen),
        prompts="NAME, in STYLE style; number k of the order is drawn with seed + k",
        seed=bench.seed,
        ways=ways,
        others="of the same split, drawn by torch.randperm seeded with crc32(file_name) of the own picture",
        vector="posterior mean of the image tokenizer for the 8-bit picture, whitened by the model's latent scale",
        similarity="cosine; equally near counts as nearer",
        sampling={name: value for name, value in asdict(bench.chosen).items() if not name.startswith("caption_")},
    )


def measure_captions(bench: Bench, split: str, limit: int | None) -> Record:
    """Captions pictures and compares with the captions of record; beside it, the nearest training picture's names."""
    opened = bench.open(split)
    chosen = bench.choose(split, limit)
    written = [
        caption
        for part in bench.batches(chosen, f"captions, {split}")
        for caption in bench.caption(bench.pictures(split, part))
    ]
    references = [opened.rows[i].text for i in chosen]
    scores = captions.caption_scores(written, references, known_style=split != "unseen_style")
    protocol = {
        "same": "equal words and punctuation marks in order, lower-case",
        "name": 'what stands before ", in STYLE style"',
        "word_f1": "of the name's words as a bag, mean over pictures",
        "sampling": {
            name: value for name, value in asdict(bench.chosen).items() if name.startswith(("caption_", "grid"))
        },
    }
    if split != "train":  # a training picture is its own nearest one
        train = bench.open("train")
        query_ND = bench.vectors(opened.images_N3YX[chosen], f"vectors, {split}")
        texts = [train.rows[i].text for i in captions.nearest(query_ND, bench.train_vectors).tolist()]
        baseline = captions.caption_scores(texts, references, known_style=False)
        scores |= {f"nearest_{name}": value for name, value in baseline.items()}
        protocol["nearest"] = "cosine of whitened posterior means of the image tokenizer, among all training pictures"
    return bench.record("captions", split, scores, len(chosen), **protocol)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A measurement, the splits it is made on and the samples it takes unless told otherwise."""

    run: Callable[[Bench, str, int | None], Record]
    splits: tuple[str, ...]
    limit: int | None


TASKS = {
    "reconstruction": Task(run=measure_reconstruction, splits=captioned.SPLITS, limit=2048),
    "retrieval": Task(run=measure_retrieval, splits=("train", "unseen_concept"), limit=512),
    "captions": Task(run=measure_captions, splits=("train", "validation", "unseen_style"), limit=2048),
}


def check_tasks(tasks: Sequence[str], splits: Sequence[str] | None = None, limit: int | None = None) -> None:
    """Checks names of tasks and splits and the number of samples.

    Raises:
        FlowTokError: A name is unknown (the nearest known one is named) or missing, or the number below 1.
    """
    for what, names, known in (("task", tasks, list(TASKS)), ("split", splits, list(captioned.SPLITS))):
        if names is not None and not names:
            raise FlowTokError(f"no {what} is named; choose from {', '.join(known)}")
        for name in names or ():
            if name not in known:
                raise FlowTokError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")
    if limit is not None and limit < 1:
        raise FlowTokError(f"a measurement needs at least 1 sample, not {limit}")


def run_tasks(
    bench: Bench, tasks: Sequence[str], splits: Sequence[str] | None = None, limit: int | None = None
) -> list[Record]:
    """Runs tasks by name on a bench; arguments and errors as in `measure`."""
    check_tasks(tasks, splits, limit)
    chosen = [TASKS[name] for name in dict.fromkeys(tasks)]
    return [task.run(bench, split, limit or task.limit) for task in chosen for split in splits or task.splits]


def measure(
    flowtok_model: FlowTok | str | Path,
    emoji_folder: str | Path,
    tasks: Sequence[str] = tuple(TASKS),
    limit: int | None = None,
    *,
    splits: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = _silent,
    **sampling: Any,
) -> list[Record]:
    """Measures a model on the captioned emoji set.

    Args:
        flowtok_model: A model, or the name, folder or Hub id of one; then the records hold its checksum.
        emoji_folder: The set that `flowtok data emoji` built.
        tasks: Names in TASKS.
        limit: Samples of each split, where the task's own number is not wanted.
        splits: Parts of the set, where the task's own are not wanted.
        seed: Prompt number k is drawn with seed + k.
        progress: Called with (what, done, total).
        sampling: Fields of SamplingConfig, where the model's own are not wanted.

    Returns:
        A record for each task and split.

    Raises:
        FlowTokError: A name is unknown, a number out of range, the set cannot be opened or does not fit the model.
    """
    check_tasks(tasks, splits, limit)
    model_folder = None if isinstance(flowtok_model, FlowTok) else resolve(flowtok_model)
    model = flowtok_model if isinstance(flowtok_model, FlowTok) else FlowTok.from_pretrained(flowtok_model)
    bench = Bench(
        model=model,
        folder=Path(emoji_folder),
        model_folder=model_folder,
        sampling=sampling,
        seed=seed,
        progress=progress,
    )
    return run_tasks(bench, tasks, splits, limit)
