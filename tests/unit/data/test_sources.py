"""Whatever layout a user's pictures are in, they open by their path; what cannot be used is named with its reason."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from making_datasets import archive, colour, everything, folder_with_texts, picture, samples, shard, table

from flowtok.data.folders import open_folder
from flowtok.data.refusals import Refusal
from flowtok.data.samples import FieldsConfig, Sample
from flowtok.data.sources import open_source
from flowtok.errors import DataError


def reasons(place: Path | str) -> dict[str, str]:
    return {item.key: item.reason for item in everything(open_source(place)) if isinstance(item, Refusal)}


def captions(place: Path | str, fields: FieldsConfig | None = None) -> dict[str, tuple[str, ...]]:
    return {item.key: item.captions for item in everything(open_source(place, fields)) if isinstance(item, Sample)}


def test_text_files_beside_pictures(tmp_path: Path) -> None:
    """Also in subfolders; each line is a caption; hidden files are nobody's pictures."""
    folder = folder_with_texts(tmp_path / "set" / "inner", 2)
    (folder / "0000.txt").write_text("\ufeffa red  square \n\nein rotes Quadrat – “schön”\n", encoding="utf-8")
    (folder / "0000.recap_txt").write_text("The image shows a red square.")
    (folder / ".hidden.png").write_bytes(b"")
    (tmp_path / "set" / ".cache").mkdir()
    (tmp_path / "set" / ".cache" / "x.png").write_bytes(b"")
    first, second = samples(open_source(tmp_path / "set"))
    assert (first.key, second.key) == ("inner/0000.png", "inner/0001.png")
    assert first.captions == ("a red square", "ein rotes Quadrat – “schön”") and second.captions == ("thing 1",)
    assert first.recaption == "The image shows a red square." and second.recaption is None
    assert second.open().getpixel((3, 3)) == colour(1)


def test_pictures_without_their_text_are_refused_by_name(tmp_path: Path) -> None:
    folder = folder_with_texts(tmp_path, 3)
    (folder / "0001.txt").unlink()
    (folder / "0002.txt").write_bytes(b"caf\xe9")
    (folder / "0003.png").write_bytes(picture())
    (folder / "0003.txt").write_text(" \n")
    assert reasons(folder) == {
        "0001.png": "without a .txt of its name",
        "0002.png": "with a caption that is not UTF-8",
        "0003.png": "without a caption",
    }


def test_a_subfolder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the pictures must not be missing without a word; root may read all, so the refusal is made here."""
    folder, scan = folder_with_texts(tmp_path / "set", 2), os.scandir
    folder_with_texts(folder / "closed", 3)

    def refusing(place: str = ".") -> object:
        if Path(place).name == closed:
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refusing)
    closed = "closed"
    assert reasons(folder) == {"closed/": "folder that cannot be read"}
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0000.png", "text": "one"}))
    assert reasons(folder)["closed/"] == "folder that cannot be read"
    closed = "set"
    with pytest.raises(DataError, match="cannot read folder .*set: Permission denied"):
        open_folder(folder)


def test_metadata_jsonl_as_the_hub_has_it(tmp_path: Path) -> None:
    folder = folder_with_texts(tmp_path, 4)
    lines = [
        {"file_name": "0000.png", "text": "a cat", "score": 3},
        {"file_name": "0001.png", "text": ["a dog", "ein Hund"], "recaption": "A dog sits."},
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "0002.png", "text": ""},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n{broken\n"
    (folder / "metadata.jsonl").write_text(text)
    assert captions(folder) == {"0000.png": ("a cat",), "0001.png": ("a dog", "ein Hund"), "gone.png": ("gone",)}
    assert reasons(folder) == {
        "0002.png": "without a caption",
        "metadata.jsonl line 6": "metadata that cannot be read",
        "0003.png": "not named in metadata.jsonl",
    }
    opened = everything(open_source(folder / "metadata.jsonl"))
    assert isinstance(opened[0], Sample) and opened[0].metadata["score"] == 3
    assert isinstance(opened[1], Sample) and opened[1].recaption == "A dog sits."


def test_metadata_csv_in_a_subfolder_names_files_beside_itself(tmp_path: Path) -> None:
    folder = folder_with_texts(tmp_path / "train", 2)
    (folder / "metadata.csv").write_text('file_name,text\n0000.png,"a cat, sleeping"\n0001.png,a dog\n')
    assert captions(tmp_path) == {"train/0000.png": ("a cat, sleeping",), "train/0001.png": ("a dog",)}


def test_file_names_as_captions(tmp_path: Path) -> None:
    """The numbers of copies are no words; a name without letters is no caption."""
    for name in ("red-heart.png", "RedHeart (2).jpg", "blue_star-007.png", "top 10.png", "0815.png"):
        (tmp_path / name).write_bytes(picture())
    assert captions(tmp_path) == {
        "red-heart.png": ("red heart",),
        "RedHeart (2).jpg": ("red heart",),
        "blue_star-007.png": ("blue star",),
        "top 10.png": ("top 10",),
    }
    assert reasons(tmp_path) == {"0815.png": "without words in its name"}


def test_the_emoji_set_is_a_source(repository: Path) -> None:
    """All its captions, the one of record first."""
    sample = samples(open_source(repository / "tests" / "data" / "emoji_small"))[0]
    assert sample.captions[0] == sample.metadata["text"] and len(sample.captions) == len(sample.metadata["texts"]) > 1


@pytest.mark.parametrize("given", ["{}", "{}/*.tar", "{}/{{00000..00002}}.tar", "{}/00000.tar::{}/0000[12].tar"])
def test_shards_by_folder_glob_and_brace_list(tmp_path: Path, given: str) -> None:
    for number in range(3):
        shard(tmp_path / "data" / f"{number:05d}.tar", range(number * 4, number * 4 + 4), pwatermark=0.25)
    source = open_source(given.format(tmp_path / "data", tmp_path / "data"))
    found = samples(source)
    assert [sample.captions for sample in found] == [(f"thing {number}",) for number in range(12)]
    assert found[5].key == "00001/000000005" and found[5].metadata["pwatermark"] == 0.25
    pixel = found[5].open().getpixel((5, 5))
    assert isinstance(pixel, tuple) and all(abs(a - b) < 6 for a, b in zip(pixel, colour(5), strict=True))


def test_a_shard_may_come_out_of_a_command(tmp_path: Path) -> None:
    """How shards are read from an object store."""
    shard(tmp_path / "a.tar", range(3))
    shard(tmp_path / "b.tar.gz", range(3, 5))
    source = open_source(f"pipe:cat {tmp_path}/{{a.tar,b.tar.gz}}")
    assert len(source.parts) == 2 and len(samples(source)) == 5
    iterator = source.read(0)
    next(iterator)
    iterator.close()  # whoever stops early must not be told that the command failed


def test_captions_of_a_shard_in_all_its_places(tmp_path: Path) -> None:
    one = picture(1)
    members = {
        "a.png": one,
        "a.txt": b"two\nlines",
        "a.recap_txt": b" The image depicts it ",
        "b.PNG": one,
        "b.1.txt": b"first",
        "b.2.txt": b"second",
        "c.webp": picture(1, kind="WEBP"),
        "c.json": b'{"caption": "from json", "recaption": "longer"}',
        "d.json": b'{"caption": "never downloaded", "status": "failed"}',
        "e.png": one,
        "f.png": one,
        "f.txt": b"fine",
        "f.json": b"{",
    }
    source = open_source(archive(tmp_path / "x.tar", members))
    assert captions(tmp_path / "x.tar") == {
        "x/a": ("two lines",),
        "x/b": ("first", "second"),
        "x/c": ("from json",),
    }
    assert [item.recaption for item in everything(source)[:3] if isinstance(item, Sample)] == [
        "The image depicts it",
        None,
        "longer",
    ]
    assert reasons(tmp_path / "x.tar") == {
        "x/d": "without a picture",
        "x/e": "without a caption",
        "x/f": "with text that cannot be read",
    }
    chosen = FieldsConfig(text="status")
    # A chosen field counts, whatever else is there; a recaption is better than nothing.
    assert captions(tmp_path / "x.tar", chosen) == {"x/a": ("The image depicts it",), "x/c": ("longer",)}


def test_tables_as_the_hub_has_them(tmp_path: Path) -> None:
    images = [{"bytes": picture(number), "path": None} for number in range(10)]
    texts = [f"thing {number}" for number in range(10)]
    table(tmp_path / "data" / "train-00000-of-00002.parquet", {"image": images, "text": texts})
    table(tmp_path / "data" / "train-00001-of-00002.parquet", {"image": images[:2], "text": ["x", None]})
    source = open_source(tmp_path)
    assert len(source.parts) == 4 and source.num_samples == 12
    found = [item for item in everything(source) if isinstance(item, Sample)]
    assert [sample.captions[0] for sample in found] == [*texts, "x"]
    assert found[7].open().getpixel((0, 0)) == colour(7) and len({sample.key for sample in found}) == 11
    assert list(reasons(tmp_path / "data" / "*.parquet").values()) == ["without a caption"]


def test_tables_with_plain_bytes_paths_and_chosen_columns(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture(3))
    columns = {
        "photo": [picture(1), picture(2)],
        "path": ["one.png", "https://example.org/one.png"],
        "alt": [["a", "b"], ["c"]],
        "wordy": ["The image shows a", None],
    }
    file = table(tmp_path / "t.parquet", columns)
    chosen = FieldsConfig(text="alt", recaption="wordy", image="photo")
    first, second = samples(open_source(file, chosen))
    assert first.captions == ("a", "b") and first.recaption == "The image shows a" and second.recaption is None
    assert second.open().getpixel((0, 0)) == colour(2)
    by_path = everything(open_source(file, FieldsConfig(text="alt")))
    assert isinstance(by_path[0], Sample) and by_path[0].open().getpixel((0, 0)) == colour(3)
    assert isinstance(by_path[1], Refusal) and "img2dataset" in by_path[1].reason
    with pytest.raises(DataError, match="no column 'txet'; it has photo, path, alt, wordy"):
        open_source(file, FieldsConfig(text="txet"))


def test_wrong_places_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "1.png").write_bytes(picture())
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "no.parquet").write_text("no data")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "metadata.csv").write_text("name,text\na,b\n")
    shard(tmp_path / "both" / "0.tar", [1])
    folder_with_texts(tmp_path / "both", 1)
    table(tmp_path / "plain.parquet", {"text": ["a"]})
    table(tmp_path / "rows.parquet", {"image": pyarrow_empty()})
    wrong = {
        "empty": "holds no pictures",
        "numbers": "no captions; put a .txt",
        "notes.txt": "cannot tell what",
        "no.parquet": "damaged or no Parquet",
        "gone": "there is no",
        "gone/*.tar": "there is no",
        "gone/{0..3}.tar": "none of the 4 shards",
        "gone/{0..3.tar": "cannot expand|there is no",
        "${NOTHING}.tar::x": "cannot expand",
        "lists": "names no files",
        "both": "both shards and pictures",
        "plain.parquet": "no column that is known",
        "rows.parquet": "holds no rows",
        "both/0.tar::plain.parquet": "several kinds",
    }
    for name, words in wrong.items():
        with pytest.raises(DataError, match=words) as caught:
            open_source(f"{tmp_path}/{name}".replace("::", f"::{tmp_path}/"))
        assert "\n" not in str(caught.value), name


def pyarrow_empty() -> list[bytes]:
    return []


def test_keys_do_not_tell_where_the_data_stand(tmp_path: Path) -> None:
    """Splits and draws follow from keys: data that were moved must be held out as before."""
    for place in ("here", "elsewhere"):
        folder_with_texts(tmp_path / place / "folder", 2)
        shard(tmp_path / place / "shards" / "0.tar", [1, 2])
        shard(tmp_path / place / "more" / "0.tar", [3])
        table(tmp_path / place / "t" / "a.parquet", {"image": [picture()], "text": ["x"]})
    for given in ("{}/folder", "{}/shards", "{}/*/0.tar", "{}/t"):
        one, two = (open_source(given.format(tmp_path / place)) for place in ("here", "elsewhere"))
        assert [item.key for item in everything(one)] == [item.key for item in everything(two)]
        assert one.parts == two.parts and str(tmp_path) not in str(one.parts)


def test_sources_travel_to_other_processes(tmp_path: Path) -> None:
    """On some systems workers start anew and get the source as a pickle."""
    folder_with_texts(tmp_path / "folder", 2)
    shard(tmp_path / "shards" / "0.tar", [1, 2])
    table(tmp_path / "t" / "a.parquet", {"image": [picture()], "text": ["x"]})
    for place in ("folder", "shards", "t"):
        source = open_source(tmp_path / place)
        copy = pickle.loads(pickle.dumps(source))
        assert [item.key for item in everything(copy)] == [item.key for item in everything(source)]
