"""Pictures of a measurement are drawn once, verified when found, and the same however the work is shared."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate.drawing import STORY_FILE, Drawn, Share, Wanted, draw_into, open_drawn

WANTED = [Wanted(prompt=f"cat {k} ü", seed=10 + k, name=f"part/{k:03d}.png") for k in range(7)]
CONDITIONS = {"model_sha256": "ab", "steps": 4}


class Painter:
    """Draws one colour for each prompt and seed, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        pairs = list(zip(prompts, seeds, strict=True))
        self.asked += pairs
        return [Image.new("RGB", (8, 8), (seed, len(prompt), 0)) for prompt, seed in pairs]


def drawn(folder: Path, painter: Painter, **changes: object) -> Drawn:
    given: dict = {"conditions": CONDITIONS, "size": 8, "batch_size": 3, **changes}
    return draw_into(folder, WANTED, painter, **given)


def contents(folder: Path) -> list[bytes]:
    return [(folder / one.name).read_bytes() for one in WANTED]


def test_a_second_run_draws_nothing(tmp_path: Path) -> None:
    first, second = Painter(), Painter()
    done = drawn(tmp_path, first)
    assert (done.kept, done.made, len(first.asked)) == (0, 7, 7) and "images/s" in str(done)
    again = drawn(tmp_path, second)
    assert (again.kept, again.made, second.asked) == (7, 0, []) and str(again) == "7 kept"
    story = json.loads((tmp_path / STORY_FILE).read_text())
    assert story["conditions"] == CONDITIONS and story["pictures"] == 7 and story["images_per_second"] > 0


def test_what_is_missing_damaged_or_drawn_otherwise_is_drawn_again(tmp_path: Path) -> None:
    """A disk that was full, a killed run and a picture of an older model must not slip into a score."""
    drawn(tmp_path, Painter())
    before = contents(tmp_path)
    (tmp_path / WANTED[0].name).unlink()
    (tmp_path / WANTED[1].name).write_bytes(before[1][:-30])
    (tmp_path / WANTED[2].name).write_bytes(before[3])
    Image.new("RGB", (8, 8)).save(tmp_path / WANTED[4].name)
    painter = Painter()
    done = drawn(tmp_path, painter)
    assert (done.kept, done.made, done.spoilt) == (3, 4, 3)
    assert [seed for _, seed in painter.asked] == [10, 11, 12, 14]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kept", [-1, -6, -20, 40, 0])
def test_a_file_that_was_cut_anywhere_is_drawn_again(tmp_path: Path, kept: int) -> None:
    """The last bytes of a PNG are a mark and a checksum: decoders may not miss them, a second measurement would."""
    drawn(tmp_path, Painter())
    before = contents(tmp_path)
    (tmp_path / WANTED[1].name).write_bytes(before[1][:kept])
    assert drawn(tmp_path, Painter()).spoilt == 1 and contents(tmp_path) == before


@pytest.mark.parametrize("changes", [{"conditions": {**CONDITIONS, "steps": 5}}, {"size": 9}])
def test_other_conditions_keep_nothing(tmp_path: Path, changes: dict) -> None:
    drawn(tmp_path, Painter())

    def larger(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [one.resize((changes.get("size", 8),) * 2) for one in Painter()(prompts, seeds)]

    assert drawn(tmp_path, larger, **changes).made == 7  # type: ignore[arg-type]


class Ranks:
    """Threads in the place of processes: what one tells, all hear when every one has told something."""

    def __init__(self, count: int) -> None:
        self.count, self.told, self.barrier = count, dict[int, object](), threading.Barrier(count, timeout=20)

    def share(self, rank: int) -> Share:
        def gather(value: object) -> list:
            self.told[rank] = value
            self.barrier.wait()
            told = [self.told[one] for one in range(self.count)]
            self.barrier.wait()
            return told

        return Share(rank=rank, num_ranks=self.count, gather=gather)

    def run(self, folder: Path, painters: list[Painter]) -> list[Drawn]:
        with ThreadPoolExecutor(self.count) as pool:
            asked = [
                pool.submit(drawn, folder, painter, share=self.share(rank)) for rank, painter in enumerate(painters)
            ]
            return [one.result() for one in asked]


@pytest.mark.parametrize("num_ranks", [2, 3, 9])
def test_any_number_of_ranks_draws_the_same_files(tmp_path: Path, num_ranks: int) -> None:
    drawn(tmp_path / "alone", Painter())
    painters = [Painter() for _ in range(num_ranks)]
    results = Ranks(num_ranks).run(tmp_path / "shared", painters)
    assert {(one.kept, one.made, one.num_ranks) for one in results} == {(0, 7, num_ranks)}
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert sorted(one for painter in painters for one in painter.asked) == sorted((w.prompt, w.seed) for w in WANTED)
    assert json.loads((tmp_path / "shared" / STORY_FILE).read_text())["ranks"] == num_ranks


def test_what_one_rank_left_all_draw(tmp_path: Path) -> None:
    """One that drew alone for hours while the others wait would end in the time limit of their group."""
    drawn(tmp_path, Painter())
    before = contents(tmp_path)
    for one in WANTED[1::2]:
        (tmp_path / one.name).unlink()
    painters = [Painter(), Painter()]
    Ranks(2).run(tmp_path, painters)
    assert [len(painter.asked) for painter in painters] == [2, 1] and contents(tmp_path) == before


def test_a_rank_that_left_some_out_is_noticed(tmp_path: Path) -> None:
    share = Share(rank=0, num_ranks=2, gather=lambda value: [value])
    with pytest.raises(FlowTokError, match="start the same command again"):
        drawn(tmp_path, Painter(), share=share)


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    drawn(tmp_path, Painter())
    assert open_drawn(tmp_path / WANTED[0].name).getpixel((0, 0)) == (10, len(WANTED[0].prompt), 0)
    with pytest.raises(DataError, match=r"none.png is missing .*same command again"):
        open_drawn(tmp_path / "none.png")


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlowTokError, match="cannot make"):
        drawn(tmp_path / "file" / "inside", Painter())
