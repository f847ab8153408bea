"""What a job is to a model: a picture to be drawn, or one to be read; and how a batch of them is computed.

Knows FlowTok and no HTTP. The queue before it is batching.py; pictures come and go as PIL pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from PIL import Image

from flowtok.app.serving.batching import Dropped, Job
from flowtok.flow.follow import spread
from flowtok.flow.solver import CHOOSES_ITS_STEPS
from flowtok.pipeline import FlowTok

Tell = Callable[[int, Image.Image], object]
"""Called from the model's thread with the number of a partial picture and the picture."""


class DrawKey(NamedTuple):
    """Pictures with these settings are drawn together."""

    steps: int
    guidance: float
    kind: str = "draw"


class ReadKey(NamedTuple):
    """Captions with these settings are read together."""

    steps: int
    guidance: float
    kind: str = "read"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture to be drawn: the one that `FlowTok.generate` draws of this prompt with this seed.

    Attributes:
        prompt: A checked one.
        seed: Its own.
        partials: How many times `tell` shows the flow on its way, evenly spread over it; less if there are fewer stops.
        tell: Whom to show it.
    """

    prompt: str
    seed: int
    partials: int = 0
    tell: Tell | None = None


def compute(model: FlowTok, key: DrawKey | ReadKey, jobs: list[Job]) -> list[Any]:
    """Computes a batch: pictures of `Drawing`s, or captions of PIL pictures.

    Raises:
        Dropped: Nobody waits for any of the pictures any more.
    """
    if isinstance(key, ReadKey):
        return model.caption([job.payload for job in jobs], key.steps, key.guidance)
    drawings: list[Drawing] = [job.payload for job in jobs]
    watch = None if model.sampling.solver == CHOOSES_ITS_STEPS else _watch(key.steps, jobs)
    return model.generate(
        [one.prompt for one in drawings],
        key.steps,
        key.guidance,
        generator=[torch.Generator().manual_seed(one.seed) for one in drawings],
        watch=watch,
    )


def _watch(steps: int, jobs: list[Job]) -> Callable[[float, Callable[[], list[Image.Image]]], None]:
    """Stops a batch that nobody waits for, and shows the flow to those who asked for it."""
    stops = [_stops(steps, job.payload.partials if job.payload.tell is not None else 0) for job in jobs]
    numbers = count()

    def watch(t: float, look: Callable[[], list[Image.Image]]) -> None:
        del t
        if all(job.dropped for job in jobs):
            raise Dropped("nobody waits for this batch any more")
        number = next(numbers)
        if any(number in shown for shown in stops):
            pictures = look()
            for job, shown, picture in zip(jobs, stops, pictures, strict=False):  # the batch may be filled up
                if number in shown:
                    job.payload.tell(shown.index(number), picture)

    return watch


def _stops(steps: int, partials: int) -> list[int]:
    """At which stops partial pictures are shown: neither the first, which is the text, nor the last, the picture."""
    return sorted(spread(steps, min(partials, steps - 1) + 2) - {0, steps}) if steps > 1 else []


def warm_up(model: FlowTok) -> None:
    """Draws, and reads where the model can: the first time is slower than all others."""
    (picture,) = model.generate("a", 1, seed=0)
    if "text_decoder" in model.parts:
        model.caption(picture, 1)
