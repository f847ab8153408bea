"""A damaged shard gives what is whole in it and says that it is damaged: nothing is lost in silence."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from making_datasets import archive, everything, picture, shard

from flowtok.data.refusals import Refusal
from flowtok.data.samples import Sample
from flowtok.data.shards import open_shards


def counts(*shards: Path | str) -> tuple[int, list[Refusal]]:
    items = everything(open_shards([str(one) for one in shards]))
    refusals = [item for item in items if isinstance(item, Refusal)]
    return sum(isinstance(item, Sample) for item in items), refusals


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("beyond", [0, 1, 300, 512, 700])
def test_a_shard_that_was_cut_short_is_noticed_wherever_it_was_cut(tmp_path: Path, beyond: int, joined: bool) -> None:
    """Python's tarfile takes a cut between two files, or within a header, for the end."""
    path = shard(tmp_path / "a.tar", range(6))
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        starts = [member.offset for member in file.getmembers()]
    for start in starts[1:]:
        (tmp_path / "cut.tar").write_bytes((whole if joined else b"") + whole[: start + beyond])
        _, refusals = counts(tmp_path / "cut.tar")
        assert refusals[-1].whole_part and refusals[-1].reason == "shard that cannot be read to its end", start


def test_a_damaged_header_does_not_end_a_shard_in_silence(tmp_path: Path) -> None:
    members = {f"{n}.{ending}": b for n in range(4) for ending, b in (("png", picture(n)), ("txt", b"text"))}
    path = archive(tmp_path / "a.tar", members)
    data = bytearray(path.read_bytes())
    place = data.index(b"2.png")
    data[place + 150] ^= 0xFF
    path.write_bytes(data)
    found, refusals = counts(path)
    assert found == 2 and [one.whole_part for one in refusals] == [True]
    assert "byte" in refusals[0].detail


def test_joined_archives_are_read_to_the_last(tmp_path: Path) -> None:
    """`cat a.tar b.tar > c.tar` is a habit; the second half must not vanish."""
    both = shard(tmp_path / "a.tar", range(3)).read_bytes() + shard(tmp_path / "b.tar", range(3, 5)).read_bytes()
    (tmp_path / "c.tar").write_bytes(both)
    assert counts(tmp_path / "c.tar") == (5, [])


def test_missing_empty_and_foreign_shards_are_counted(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(3))
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_text("no archive " * 200)
    found, refusals = counts(*(tmp_path / f"{name}.tar" for name in ("a", "gone", "empty", "text")))
    assert found == 3 and [Path(one.key).stem for one in refusals] == ["gone", "empty", "text"]
    assert refusals[0].reason == "missing shard" and all(one.whole_part for one in refusals)
    assert all("\n" not in one.detail for one in refusals)


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    """A download that dies half-way looks like a short shard otherwise."""
    path = shard(tmp_path / "a.tar", range(3))
    for pause in ("0", "0.2"):  # the command may end before its last bytes are read, or after
        found, refusals = counts(f"pipe:cat {path}; sleep {pause}; exit 3")
        assert found == 3 and refusals[0].whole_part and "exit 3" in refusals[0].detail
    found, refusals = counts(f"pipe:cat {tmp_path}/gone.tar 2>/dev/null")
    assert found == 0 and refusals[0].whole_part


def test_a_name_that_comes_twice_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [1, 2])
    joined = shard(tmp_path / "b.tar", [2, 3])
    both = tmp_path / "both.tar"
    both.write_bytes(path.read_bytes() + joined.read_bytes())
    found, refusals = counts(both)
    assert found == 3 and {one.reason for one in refusals} == {"file whose name comes twice"} and len(refusals) == 3


def test_shards_of_the_same_name_in_two_folders_keep_their_samples_apart(tmp_path: Path) -> None:
    paths = [shard(tmp_path / place / "00000.tar", [1, 2]) for place in ("a", "b")]
    keys = [item.key for item in everything(open_shards([str(path) for path in paths]))]
    assert len(set(keys)) == 4
