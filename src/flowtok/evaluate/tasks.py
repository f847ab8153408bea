"""The measurements by name: a model and its data in, records with their protocols out.

Start with `measure`. What a task does stands in captioned_tasks.py, words_tasks.py, style_tasks.py, public_tasks.py and
prompt_tasks.py; how a model is run is in bench.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowtok.checkpoints.catalogue import resolve
from flowtok.config import did_you_mean
from flowtok.data import captioned
from flowtok.errors import FlowTokError
from flowtok.evaluate import captioned_tasks, layouts, prompt_tasks, public_tasks, style_tasks, words_tasks
from flowtok.evaluate.bench import Bench, Progress, silent
from flowtok.evaluate.report import Record
from flowtok.pipeline import FlowTok

OnSplit = Callable[[Bench, str, int | None], Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A measurement.

    Attributes:
        run: Measures a split with a number of samples, all where it is None.
        splits: The parts of the data that it is made on, unless others are asked for.
        limit: Samples of each split unless told otherwise; all if None.
        draw: The part of it that draws pictures, which several processes share.
        read: Reads the one public layout that it takes, so that what is missing is known before a model is opened; None
            for a task on any captioned set, with flowtok's splits.
        check: Looks for what it needs besides its list: networks, pictures, Java, results. Raises FlowTokError in one
            line; what it opens it keeps on the bench.
        sampled: What steps and guidance act on in it: the pictures that it draws, the captions that it has written,
            both or nothing.
        is_of_training: Whether it is about what was trained on, so that no other split can be asked for.
        by_default: Whether it is measured on a captioned set where no task is named.
    """

    run: Callable[[Bench, str, int | None], list[Record]]
    splits: tuple[str, ...]
    limit: int | None = None
    draw: OnSplit | None = None
    read: Callable[[str | Path], object] | None = None
    check: Callable[[Bench, int | None], None] | None = None
    sampled: tuple[Literal["pictures", "captions"], ...] = ("pictures",)
    is_of_training: bool = False
    by_default: bool = False

    @property
    def is_captioned(self) -> bool:
        """Whether it takes any captioned set."""
        return self.read is None


TASKS = {
    "reconstruction": Task(
        run=captioned_tasks.reconstruction_records,
        splits=captioned.SPLITS,
        limit=2048,
        sampled=(),
        check=captioned_tasks.check_reconstruction,
        by_default=True,
    ),
    "retrieval": Task(
        run=captioned_tasks.retrieval_records,
        splits=("train", "unseen_concept"),
        limit=512,
        draw=captioned_tasks.draw_for_retrieval,
        check=captioned_tasks.check_retrieval,
        by_default=True,
    ),
    "captions": Task(
        run=captioned_tasks.caption_records,
        splits=("train", "validation", "unseen_style"),
        limit=2048,
        sampled=("captions",),
        by_default=True,
    ),
    "paraphrases": Task(
        run=words_tasks.paraphrase_records,
        splits=(words_tasks.TRAINED,),
        draw=words_tasks.draw_for_paraphrases,
        check=words_tasks.check_paraphrases,
        is_of_training=True,
    ),
    "round_trip": Task(
        run=words_tasks.round_trip_records,
        splits=(words_tasks.TRAINED,),
        limit=1024,
        draw=words_tasks.draw_for_round_trip,
        sampled=("pictures", "captions"),
    ),
    "styles": Task(
        run=style_tasks.style_records,
        splits=(words_tasks.TRAINED,),
        limit=512,
        draw=captioned_tasks.draw_for_retrieval,
        check=style_tasks.check_styles,
        is_of_training=True,
    ),
    "coco30k": Task(
        run=public_tasks.coco_records,
        splits=("val2014",),
        draw=public_tasks.draw_coco,
        read=layouts.read_coco,
        check=public_tasks.check_coco,
    ),
    "mjhq30k": Task(
        run=public_tasks.mjhq_records,
        splits=("all",),
        draw=public_tasks.draw_mjhq,
        read=layouts.read_mjhq,
        check=public_tasks.check_mjhq,
    ),
    "karpathy": Task(
        run=public_tasks.karpathy_records,
        splits=("test",),
        sampled=("captions",),
        read=layouts.read_karpathy,
        check=public_tasks.check_karpathy,
    ),
    "geneval": Task(
        run=prompt_tasks.geneval_records,
        splits=("all",),
        draw=prompt_tasks.draw_geneval,
        read=layouts.read_geneval,
        check=prompt_tasks.check_geneval,
    ),
    "dpg": Task(
        run=prompt_tasks.dpg_records,
        splits=("all",),
        draw=prompt_tasks.draw_dpg,
        read=layouts.read_dpg,
        check=prompt_tasks.check_dpg,
    ),
}
BY_DEFAULT = tuple(name for name, task in TASKS.items() if task.by_default)


def sampled(kind: str) -> tuple[str, ...]:
    """Names of the tasks that draw pictures, or that have captions written."""
    return tuple(name for name, task in TASKS.items() if kind in task.sampled)


def check_tasks(tasks: Sequence[str], splits: Sequence[str] | None = None, limit: int | None = None) -> None:
    """Checks names of tasks and splits and the number of samples.

    Raises:
        FlowTokError: A name is unknown (the nearest known one is named) or missing, tasks read different data, or the
            number is below 1.
    """
    for what, names, known in (("task", tasks, list(TASKS)), ("split", splits, list(captioned.SPLITS))):
        if names is not None and not names:
            raise FlowTokError(f"no {what} is named; choose from {', '.join(known)}")
        for name in names or ():
            if name not in known:
                raise FlowTokError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")
    own = [name for name in tasks if not TASKS[name].is_captioned]
    if own and len(dict.fromkeys(tasks)) > 1 and not {"coco30k", "karpathy"} >= set(tasks):
        raise FlowTokError(f"{', '.join(tasks)} read different data; measure {own[0]} by itself")
    for name in tasks:
        if TASKS[name].is_of_training and set(splits or TASKS[name].splits) != set(TASKS[name].splits):
            raise FlowTokError(f"{name} is about what was trained on; leave --split out or measure {name} by itself")
    if own and splits is not None:
        raise FlowTokError(f"{own[0]} has no splits to choose from; leave --split out")
    if limit is not None and limit < 1:
        raise FlowTokError(f"a measurement needs at least 1 sample, not {limit}")


def run_tasks(
    bench: Bench, tasks: Sequence[str], splits: Sequence[str] | None = None, limit: int | None = None
) -> list[Record]:
    """Runs tasks by name on a bench; arguments and errors as in `measure`."""
    check_tasks(tasks, splits, limit)
    check_needs(bench, tasks, limit)
    return [
        record
        for task in (TASKS[name] for name in dict.fromkeys(tasks))
        for split in splits or _splits_of(task, bench)
        for record in task.run(bench, split, limit or task.limit)
    ]


def check_needs(bench: Bench, tasks: Sequence[str], limit: int | None = None) -> None:
    """Looks for what all of the tasks need: a night of drawing must not end at what is missing for the score.

    Raises:
        FlowTokError: Networks, pictures, results or Java are missing or do not fit.
    """
    for task in (TASKS[name] for name in dict.fromkeys(tasks)):
        if task.check is not None:
            task.check(bench, limit or task.limit)


def draw_tasks(
    bench: Bench, tasks: Sequence[str], splits: Sequence[str] | None = None, limit: int | None = None
) -> None:
    """Draws this process's part of all pictures that the tasks need; arguments and errors as in `measure`.

    The process that will measure looks for what it needs first.
    """
    check_tasks(tasks, splits, limit)
    if bench.share.is_main:
        check_needs(bench, tasks, limit)
    for task in (TASKS[name] for name in dict.fromkeys(tasks)):
        if task.draw is not None:
            for split in splits or _splits_of(task, bench):
                task.draw(bench, split, limit or task.limit)


def _splits_of(task: Task, bench: Bench) -> Sequence[str]:
    """The task's own splits, of a captioned set those that it has; all, so that one is named, where it has none."""
    there = [split for split in task.splits if bench.holds(split)] if task.is_captioned else []
    return there or task.splits


def measure(
    flowtok_model: FlowTok | str | Path,
    data: str | Path,
    tasks: Sequence[str] = BY_DEFAULT,
    limit: int | None = None,
    *,
    splits: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **sampling: Any,
) -> list[Record]:
    """Measures a model.

    Args:
        flowtok_model: A model, or the name, folder or Hub id of one; then the records hold its checksum.
        data: The set that `flowtok data emoji` built, any captioned pictures, or what a task on public data reads.
        tasks: Names in TASKS.
        limit: Samples of each split, where the task's own number is not wanted.
        splits: Parts of a captioned set, where the task's own are not wanted.
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
        model=model, folder=Path(data), model_folder=model_folder, sampling=sampling, seed=seed, progress=progress
    )
    return run_tasks(bench, tasks, splits, limit)
