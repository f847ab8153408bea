"""What is missing for a score is said before hours of drawing, by one process and by the first of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from public_sets import write_coco, write_dpg, write_geneval, write_karpathy, write_mjhq

from flowtok.errors import CheckpointError, FlowTokError
from flowtok.evaluate import coco_captions, needs
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.drawing import Share
from flowtok.evaluate.inception import FeatureNetwork
from flowtok.evaluate.tasks import draw_tasks, run_tasks
from flowtok.pipeline import FlowTok


@pytest.fixture(scope="module")
def model(home: Path) -> FlowTok:
    return FlowTok.from_pretrained(home / "tiny")


@pytest.fixture(scope="module")
def data(home: Path) -> dict[str, Path]:
    """A set for each task; of karpathy and mjhq30k a picture is gone."""
    folder = home / "public"
    write_karpathy(folder / "karpathy")
    write_mjhq(folder / "mjhq30k")
    (folder / "karpathy" / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    (folder / "mjhq30k" / "mjhq30k_imgs" / "food" / "0f1.jpg").unlink()
    write_geneval(folder / "geneval")
    return {
        "coco30k": write_coco(folder / "coco30k"),
        "karpathy": folder / "karpathy",
        "mjhq30k": folder / "mjhq30k",
        "geneval": folder / "geneval" / "evaluation_metadata.jsonl",
        "dpg": write_dpg(folder / "dpg"),
    }


@pytest.fixture
def bench_for(
    model: FlowTok, home: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Bench]:
    """Makes a bench of a model that must not be asked for anything."""
    for name in ("generate", "caption", "reconstruct"):
        monkeypatch.setattr(model, name, lambda *_, **__: pytest.fail("nothing may be computed"))
    monkeypatch.setattr(needs.FeatureNetwork, "opened", lambda place, device: FeatureNetwork(model.velocity, "ab"))

    def made(task: str, **changes: Any) -> Bench:
        return Bench(
            model=model,
            folder=data.get(task, home / "set"),
            model_folder=home / "tiny",
            work=tmp_path / "work",
            **changes,
        )

    return made


@pytest.mark.parametrize(
    ("task", "given", "limit", "message"),
    [
        ("coco30k", {"reference": Path("none")}, None, "none holds no pictures to compare with"),
        ("coco30k", {"reference": Path("none.npz")}, None, "no file of statistics none.npz"),
        ("coco30k", {"clip": "/no/clip"}, None, "gives no CLIP"),
        ("coco30k", {}, 1, "FID needs at least 2 pictures"),
        ("mjhq30k", {}, None, r"1 of 6 pictures are missing, the first one is .*0f1.jpg"),
        ("karpathy", {}, None, r"1 of 4 pictures are missing, the first one is .*000002.jpg"),
        ("geneval", {"results": Path("none.jsonl")}, None, "cannot read the results none.jsonl"),
        ("dpg", {"results": Path("none.txt")}, None, "cannot read the results none.txt"),
        ("retrieval", {"clip": "/no/clip"}, None, "gives no CLIP"),
        ("reconstruction", {"weights": "download"}, 1, "rFID needs at least 2 pictures"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_drawn(
    bench_for: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, task: str, given: dict, limit: int, message: str
) -> None:
    monkeypatch.setattr(coco_captions, "hindrance", lambda: None)
    monkeypatch.setattr(needs.LPIPS, "opened", lambda place: (needs.LPIPS(), []))
    with pytest.raises(FlowTokError, match=message):
        run_tasks(bench_for(task, **given), [task], limit=limit)
    with pytest.raises(FlowTokError, match=message):
        draw_tasks(bench_for(task, **given).shared(Share(num_ranks=2)), [task], limit=limit)


def test_missing_inception_weights_stop_eight_ranks_before_they_draw(
    bench_for: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(place: str | None, device: object) -> None:
        raise CheckpointError("FID needs the Inception weights: offline")

    bench = bench_for("coco30k").shared(Share(num_ranks=8))
    monkeypatch.setattr(needs.FeatureNetwork, "opened", nowhere)
    with pytest.raises(CheckpointError, match="needs the Inception weights"):
        draw_tasks(bench, ["coco30k"])


def test_what_one_task_lacks_is_said_before_another_one_runs(bench_for: Callable[..., Bench]) -> None:
    """A night of drawing for coco30k must not end at the Java that karpathy lacks."""
    with pytest.raises(FlowTokError, match="karpathy: no Java in these tests"):
        run_tasks(bench_for("coco30k"), ["coco30k", "karpathy"])


def test_a_network_is_opened_once_for_all_splits_and_steps(
    bench_for: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CLIP takes seconds to open, and VGG half a gigabyte, for each of four splits and nine combinations."""
    opened: list[str | None] = []
    monkeypatch.setattr(needs.ClipScorer, "opened", lambda place, device: opened.append(place) or object())
    bench = bench_for("retrieval", clip="eyes")
    first = needs.clip(bench)
    assert needs.clip(bench.with_sampling({"guidance_scale": 3.0})) is first and opened == ["eyes"]
    assert needs.clip(bench_for("retrieval")) is None
