"""A batch of jobs on a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flowtok.app.serving.batching import Dropped, Job
from flowtok.app.serving.drawing import Drawing, DrawKey, ReadKey, compute
from flowtok.pipeline import FlowTok


def job(prompt: str, seed: int, partials: int = 0, tell: list[int] | None = None) -> Job:
    told = None if tell is None else lambda number, picture: tell.append(number)
    return Job(key=None, payload=Drawing(prompt=prompt, seed=seed, partials=partials, tell=told))


def same(a: Image.Image, b: Image.Image) -> bool:
    return bool((np.asarray(a) == np.asarray(b)).all())


def test_a_batch_that_nobody_waits_for_is_broken_off(tiny: FlowTok) -> None:
    """One that somebody still waits for is not."""
    jobs = [job("king", 1)]
    jobs[0].dropped = True
    with pytest.raises(Dropped):
        compute(tiny, DrawKey(3, 2.0), jobs)
    assert len(compute(tiny, DrawKey(3, 2.0), [*jobs, job("queen", 2)])) == 2


@pytest.mark.parametrize(("steps", "partials", "shown"), [(8, 3, [0, 1, 2]), (3, 3, [0, 1]), (1, 3, []), (4, 0, [])])
def test_partial_pictures_are_as_many_as_there_are_stops(
    tiny: FlowTok, steps: int, partials: int, shown: list[int]
) -> None:
    """Only those who ask for them get any."""
    told: list[int] = []
    silent: list[int] = []
    compute(tiny, DrawKey(steps, 2.0), [job("king", 1, partials, told), job("queen", 2, 0, silent)])
    assert told == shown and silent == []


def test_a_model_that_is_sampled_without_stops_is_served_too(tiny: FlowTok) -> None:
    """dopri5 has nothing to show on its way; that must not make it unusable."""
    before = tiny.sampling
    tiny.sampling = replace(before, solver="dopri5")
    told: list[int] = []
    try:
        (picture,) = compute(tiny, DrawKey(3, 2.0), [job("king", 1, 2, told)])
        assert same(picture, tiny.generate("king", 3, 2.0, seed=1)[0]) and told == []
    finally:
        tiny.sampling = before


def test_captions_of_a_batch(tiny: FlowTok) -> None:
    pictures = [Image.effect_noise((16, 16), 40.0 * i).convert("RGB") for i in (1, 2)]
    jobs = [Job(key=None, payload=picture) for picture in pictures]
    assert compute(tiny, ReadKey(2, 1.0), jobs) == tiny.caption(pictures, 2, 1.0)
