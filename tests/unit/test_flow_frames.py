"""FlowTok.flow_frames: the flow of a prompt as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok


def same(a: Image.Image, b: Image.Image) -> bool:
    return bool((np.asarray(a) == np.asarray(b)).all())


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_flow_ends_in_the_picture(tiny: FlowTok, solver: str) -> None:
    """A strip that does not end in the picture of the same seed shows some other flow."""
    frames = tiny.flow_frames("a red cat", 3, seed=5, solver=solver)
    picture = tiny.generate("a red cat", seed=5, solver=solver)[0]
    assert [frame.info["t"] for frame in frames] == [0.0, 0.5, 1.0]
    assert same(frames[-1], picture) and not same(frames[0], picture) and not same(frames[0], frames[1])
    assert frames[1].info["prompt"] == "a red cat" and frames[1].info["seed"] == 5


def test_watching_changes_no_picture_and_looks_at_the_whole_batch(tiny: FlowTok) -> None:
    """The server draws several prompts at once and shows the ways of some."""
    seen: list[tuple[float, list[Image.Image]]] = []
    tiny.batch_size, before = 2, tiny.batch_size
    try:
        plain = tiny.generate(["king", "queen"], seed=3)
        watched = tiny.generate(["king", "queen"], seed=3, watch=lambda t, look: seen.append((t, look())))
    finally:
        tiny.batch_size = before
    assert all(same(a, b) for a, b in zip(plain, watched, strict=True))
    assert [(t, len(pictures)) for t, pictures in seen] == [(0.0, 2), (0.25, 2), (0.5, 2), (0.75, 2)]


def test_a_solver_without_stops_and_too_many_frames_are_refused(tiny: FlowTok) -> None:
    with pytest.raises(FlowTokError, match="dopri5 chooses its own steps"):
        tiny.flow_frames("king", 3, solver="dopri5")
    with pytest.raises(FlowTokError, match="4 steps have 5 stops: .* not 6"):
        tiny.flow_frames("king", 6)
    with pytest.raises(FlowTokError, match="1 to 1000, not 0"):
        tiny.flow_frames("king", 2, num_inference_steps=0)
