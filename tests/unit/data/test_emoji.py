"""The captioned set: what training, evaluation and anybody's own tools read."""

import importlib.util
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowtok.data import captioned, emoji
from flowtok.data.emoji import Row, build, load, split_of
from flowtok.data.iconify import ICON_SETS
from flowtok.errors import DataError

SETS = ["noto-v1", "twemoji", "emojione", "flag", "fluent-color"]
Npm = Callable[[], list[str]]


@pytest.fixture
def built(npm: Npm, tmp_path: Path) -> tuple[Path, emoji.Summary]:
    folder = tmp_path / "set"
    return folder, build(folder, size=16, sets=SETS, workers=1)


def named(folder: Path) -> dict[str, Row]:
    return {row.file_name: row for row in load(folder).rows}


def test_one_thing_has_one_name_in_every_set(built: tuple[Path, emoji.Summary]) -> None:
    """By code point, alias, old name, shortcode or region code; else a held-out thing is trained on elsewhere."""
    rows = named(built[0])
    assert rows["images/twemoji/bear.png"].concept == rows["images/emojione/bear-face.png"].concept == "bear"
    assert rows["images/twemoji/star.png"].name == rows["images/emojione/medium-star.png"].name == "star"
    assert rows["images/twemoji/flag-for-france.png"].name == rows["images/flag/fr-4x3.png"].name == "flag of france"
    assert rows["images/flag/gb-eng-4x3.png"].name == "flag of england"
    assert rows["images/twemoji/keycap-number-sign.png"].name == "keycap hash"
    assert rows["images/emojione/odd-one-2.png"].name == "odd one"


def test_which_icons_are_in(built: tuple[Path, emoji.Summary]) -> None:
    """Withdrawn, all-white, repeated (other size, other shape) and nameless icons would be noise; of tones two stay."""
    folder, summary = built
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert names == sorted(named(folder))
    assert "images/twemoji/withdrawn.png" not in names
    assert summary.failed == ("images/twemoji/white-on-white.png",)
    assert [name for name in names if "/flag/" in name] == ["images/flag/fr-4x3.png", "images/flag/gb-eng-4x3.png"]
    assert [name for name in names if "/fluent-color/" in name] == [
        "images/fluent-color/ab-cd-20.png",
        "images/fluent-color/book-48.png",
    ]
    tones = [row for row in named(folder).values() if row.variant == "skin-tone"]
    assert len(tones) == 2
    assert all(row.concept == "waving hand" and row.weight == 0.5 and "skin tone" in row.name for row in tones)


def test_identical_pictures_are_kept_once_and_for_training(built: tuple[Path, emoji.Summary]) -> None:
    """A picture both trained on and in the unseen style would make the evaluation look better than it is."""
    folder, summary = built
    assert summary.identical == 1
    assert "images/noto-v1/bear.png" not in named(folder)
    assert "images/twemoji/bear.png" in named(folder)


def test_rows_say_everything(built: tuple[Path, emoji.Summary]) -> None:
    folder, summary = built
    row = named(folder)["images/emojione/bear-face.png"]
    assert row.text == row.texts[0] == "bear, in emojione style"
    assert {"bear", "a bear"} <= set(row.texts) and any("animal" in text for text in row.texts)
    assert (row.style, row.set, row.group, row.license) == ("emojione", "emojione", "animals-nature", "MIT")
    assert summary.pictures == len(named(folder)) == sum(summary.per_set.values()) == sum(summary.per_split.values())
    licences = (folder / "LICENSES.md").read_text()
    for name in SETS:
        assert f"| {name} | {ICON_SETS[name].package} | [MIT](https://example.org/licence) | An Artist |" in licences


def test_splits_follow_the_rule(built: tuple[Path, emoji.Summary]) -> None:
    """Written out once more, as the documentation states it: others must be able to repeat the numbers."""
    for row in named(built[0]).values():
        if row.set == "noto-v1":
            expected = "unseen_style"
        elif zlib.crc32(row.concept.encode()) % 20 == 0:
            expected = "unseen_concept"
        elif zlib.crc32(f"{row.set}:{row.name}".encode()) % 20 == 0:
            expected = "validation"
        else:
            expected = "train"
        assert row.split == expected, row
    # crc32(b"star") % 20 == 0
    assert split_of(set_name="noto", name="star", concept="star") == "unseen_concept"
    assert split_of(set_name="noto", name="star", concept="star", role="unseen_style") == "unseen_style"


def test_pictures_are_square_on_white_and_centred(built: tuple[Path, emoji.Summary]) -> None:
    with Image.open(built[0] / "images/twemoji/bear.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (16, 16))
        assert picture.getpixel((0, 0)) == picture.getpixel((15, 15)) == (255, 255, 255)
        assert picture.getpixel((8, 8)) == (165, 42, 42)


def test_second_build_fetches_and_draws_nothing(npm: Npm, built: tuple[Path, emoji.Summary]) -> None:
    folder, summary = built
    asked = npm()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    seen: list[tuple[str, int, int]] = []
    again = build(folder, size=16, sets=SETS, workers=1, progress=lambda *step: seen.append(step))
    assert again == summary
    assert npm() == asked
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before
    assert not [step for step in seen if step[0] == "draw"]


def test_an_interrupted_build_is_finished(npm: Npm, built: tuple[Path, emoji.Summary], tmp_path: Path) -> None:
    whole, _ = built

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "draw" and done == 4:
            raise KeyboardInterrupt

    half = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        build(half, size=16, sets=SETS, workers=1, progress=interrupt)
    assert not (half / "metadata.jsonl").exists()
    (half / "images/twemoji/.gone.part.png").write_bytes(b"")
    build(half, size=16, sets=SETS, workers=1)
    assert (half / "metadata.jsonl").read_bytes() == (whole / "metadata.jsonl").read_bytes()
    assert torch.equal(load(half).images_N3YX, load(whole).images_N3YX)


def test_a_lost_picture_is_drawn_again(built: tuple[Path, emoji.Summary]) -> None:
    folder, summary = built
    (folder / "images/twemoji/star.png").unlink()
    with pytest.raises(DataError, match=r"star\.png is missing or damaged"):
        load(folder)
    assert build(folder, size=16, sets=SETS, workers=1) == summary
    assert len(load(folder)) == summary.pictures


def test_a_folder_beside_which_one_works(npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm runs in a folder of its own, where a relative path would lead elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert build(Path("here/set"), size=16, sets=["fluent-color"], workers=1).pictures == len(load(Path("here/set")))


def test_what_is_missing_is_named(npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without Node.js or the extra must learn in one line what to install."""
    with pytest.raises(DataError, match="npm could not fetch @iconify-json/cif@.*404"):
        build(tmp_path / "a", sets=["cif"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs the npm client"):
        build(tmp_path / "b", sets=["twemoji"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"flowtok\[data\]"):
        build(tmp_path / "c", sets=["twemoji"])
    assert not (tmp_path / "c").exists()


def test_folders_that_cannot_be_used(built: tuple[Path, emoji.Summary], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16 px, not 32"):
        build(built[0], size=32, sets=SETS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="not empty"):
        build(tmp_path / "mine", sets=SETS)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="cannot use the folder"):
        build(tmp_path / "mine" / "thesis.txt", sets=SETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sets": ["emojis"]}, "emojis"),
        ({"sets": []}, "choose from"),
        ({"size": 0}, "size"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_default_sets_ask_at_most_for_attribution() -> None:
    """Share-alike art in the training set would bind the model's users."""
    default = {name for name, icon_set in ICON_SETS.items() if icon_set.by_default}
    assert default.isdisjoint({"openmoji", "emojione-v1", "fxemoji"})
    assert [name for name in ICON_SETS if ICON_SETS[name].role == "unseen_style" and name in default] == ["noto-v1"]


def test_load_gives_pictures_beside_their_rows(built: tuple[Path, emoji.Summary]) -> None:
    folder, summary = built
    whole = load(folder)
    assert whole.images_N3YX.shape == (summary.pictures, 3, 16, 16) and whole.images_N3YX.dtype == torch.uint8
    parts = [load(folder, split) for split in captioned.SPLITS]
    assert [len(part) for part in parts] == list(summary.per_split.values())
    for part in parts:
        assert all(part.rows[i] in whole.rows for i in range(len(part)))
    index = next(i for i, row in enumerate(whole.rows) if row.file_name == "images/twemoji/bear.png")
    assert whole.images_N3YX[index, :, 8, 8].tolist() == [165, 42, 42]
    with pytest.raises(DataError, match="unknown split 'test'"):
        load(folder, "test")


def test_kept_pictures_follow_a_rebuilt_set(built: tuple[Path, emoji.Summary], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stale pictures beside new captions would train the model on nonsense, silently."""
    folder, _ = built
    monkeypatch.setattr(captioned, "_WORTH_KEEPING", 1)
    first = load(folder)
    assert torch.equal(load(folder).images_N3YX, first.images_N3YX)
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(reversed(lines)))
    second = load(folder)
    assert second.rows == first.rows[::-1]
    assert torch.equal(second.images_N3YX, first.images_N3YX.flip(0))
    assert len(list(folder.glob("pictures-*.npy"))) == 1


def test_two_processes_may_keep_the_same_pictures(
    built: tuple[Path, emoji.Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one must not take away the file that the earlier one is about to open."""
    folder, _ = built
    monkeypatch.setattr(captioned, "_WORTH_KEEPING", 1)
    rows = captioned.read_rows(folder)
    decode, write = captioned._decode, captioned.write_file_atomically
    there: list[bool] = []

    def decoded(*arguments: Any) -> Any:
        monkeypatch.setattr(captioned, "_decode", decode)
        captioned._kept(folder, rows)  # another process is quicker
        return decode(*arguments)

    def written(path: Path, content: Any) -> Path:
        there.append(path.is_file())
        return write(path, content)

    monkeypatch.setattr(captioned, "_decode", decoded)
    monkeypatch.setattr(captioned, "write_file_atomically", written)
    assert captioned._kept(folder, rows).is_file()
    assert there == [False, True]


@pytest.mark.parametrize("content", ["", "{", '{"file_name": "a.png"}\n', "[1]\n", "\x00"])
def test_damaged_metadata_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="build the set first"):
        load(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"metadata\.jsonl is (damaged|empty)"):
        load(tmp_path)


def test_small_set_of_the_repository(repository: Path) -> None:
    """The end-to-end tests train on it: it must be complete, licensed, and split like the real one."""
    folder = repository / "tests/data/emoji_small"
    small = load(folder)
    assert small.images_N3YX.shape == (48, 3, 64, 64)
    assert len({row.concept for row in small.rows}) == 12 and len({row.set for row in small.rows}) == 4
    assert {row.split for row in small.rows} == {"train", "validation", "unseen_concept"}
    licences = (folder / "LICENSES.md").read_text()
    for row in small.rows:
        role = ICON_SETS[row.set].role
        assert row.split == split_of(set_name=row.set, name=row.name, concept=row.concept, role=role)
        assert f"| {row.set} |" in licences and row.license in licences
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 150_000
    keys = set(json.loads((folder / "metadata.jsonl").read_text().splitlines()[0]))
    assert {"file_name", "text", "texts", "name", "style", "set", "group", "split", "license"} <= keys
