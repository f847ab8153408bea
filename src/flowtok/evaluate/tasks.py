"""The measurements by name: a model and a captioned set in, records with their protocols out.

Start with `measure`. The scores are computed in reconstruction.py, retrieval.py and captions.py; how the model is run
on the set is in bench.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowtok.checkpoints.catalogue import resolve
from flowtok.config import did_you_mean
from flowtok.data import captioned
from flowtok.errors import FlowTokError
from flowtok.evaluate import captions, reconstruction, retrieval
from flowtok.evaluate.bench import Bench, Progress, silent, uint8_pictures
from flowtok.evaluate.report import Record
from flowtok.pipeline import FlowTok

WAYS = 128


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
    progress: Progress = silent,
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
