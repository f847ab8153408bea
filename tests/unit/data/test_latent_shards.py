"""Cached moments on disk: what is written is read back, in our layout and in the authors' release's, to the byte."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from making_datasets import archive, everything

from flowtok.data.latent_shards import LatentSample, LatentSource, shard_writer
from flowtok.data.refusals import Refusal
from flowtok.errors import DataError, FlowTokError

TOKENS, CHANNELS = 5, 3


def latent(number: int, dtype: torch.dtype = torch.float16, *, words: bool = False, **changes: object) -> LatentSample:
    generator = torch.Generator().manual_seed(number)
    given = {
        "key": f"folder/picture.{number}.png",
        "captions": (f"thing {number}", "a thing"),
        "recaption": f"The image shows thing {number}.",
        "metadata": {"aesthetic": 5.5},
        "moments_2LC": torch.randn(2, TOKENS, CHANNELS, generator=generator).to(dtype),
        "features_KSE": torch.randn(3, 4, 6, generator=generator).to(dtype) if words else None,
        "ids_KS": torch.full((3, 4), number, dtype=torch.int32) if words else None,
        **changes,
    }
    return LatentSample(**given)


def written(path: Path, *samples: LatentSample, layout: str = "flowtok") -> Path:
    with shard_writer(path, layout) as add:
        for sample in samples:
            add(sample)
    return path


def read(*paths: Path, shape: tuple[int, int] = (TOKENS, CHANNELS)) -> list[LatentSample]:
    items = everything(LatentSource([str(path) for path in paths], shape=shape))
    assert all(isinstance(item, LatentSample) for item in items), items
    return items


def refusals(path: Path, shape: tuple[int, int] = (TOKENS, CHANNELS)) -> list[Refusal]:
    return [item for item in everything(LatentSource([str(path)], shape=shape)) if isinstance(item, Refusal)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("words", [False, True])
def test_samples_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype, words: bool) -> None:
    """Training needs all of it: moments to the bit, every caption, the name, scores for filters, text features."""
    samples = [latent(number, dtype, words=words) for number in range(3)]
    samples.append(latent(3, dtype, words=words, recaption=None, captions=("ä", "b", "c")))
    for was, found in zip(samples, read(written(tmp_path / "0.tar", *samples)), strict=True):
        assert (found.key, found.captions, found.recaption) == (was.key, was.captions, was.recaption)
        assert found.metadata == was.metadata and found.texts == was.texts
        assert found.moments_2LC.dtype == dtype and torch.equal(found.moments_2LC, was.moments_2LC)
        if words:
            assert torch.equal(found.features_KSE, was.features_KSE) and torch.equal(found.ids_KS, was.ids_KS)
        else:
            assert found.features_KSE is None and found.ids_KS is None


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    """A shard that is made again, on another day or rank, must have the checksum of the first."""
    one, two = (written(tmp_path / name, latent(0), latent(1)).read_bytes() for name in ("a.tar", "b.tar"))
    assert one == two


def test_any_tool_reads_our_layout(tmp_path: Path) -> None:
    """tar, JSON and NumPy are enough: nobody needs flowtok to get at the moments."""
    sample = latent(7, words=True)
    with tarfile.open(written(tmp_path / "0.tar", sample)) as file:
        contents = {member.name: file.extractfile(member).read() for member in file}
    assert list(contents) == [f"000000000.{end}" for end in ("json", "moments.npy", "features.npy", "ids.npy")]
    assert json.loads(contents["000000000.json"])["key"] == sample.key
    moments = np.load(io.BytesIO(contents["000000000.moments.npy"]))
    assert moments.dtype == np.float16 and np.array_equal(moments, sample.moments_2LC.numpy())


def test_the_releases_layout_to_the_byte(tmp_path: Path) -> None:
    """Raw little-endian float16, (2 C, 1, L), means before log-variances: one value out of place trains on noise."""
    mean_LC = torch.arange(77 * 16).view(77, 16).half()
    sample = latent(0, moments_2LC=torch.stack([mean_LC, -mean_LC]))
    path = written(tmp_path / "0.tar", sample, latent(1, moments_2LC=torch.zeros(2, 77, 16).half(), recaption=None),
                   layout="release")  # fmt: skip
    with tarfile.open(path) as file:
        contents = {member.name: file.extractfile(member).read() for member in file}
    assert list(contents) == [
        "000000000.token.npy", "000000000.txt", "000000000.recap_txt", "000000001.token.npy", "000000001.txt",
    ]  # fmt: skip
    raw = contents["000000000.token.npy"]
    assert len(raw) == 4928
    tokens = np.frombuffer(raw, "<f2").reshape(32, 1, 77)
    for token, channel in ((0, 0), (76, 0), (0, 15), (40, 9)):
        assert tokens[channel, 0, token] == mean_LC[token, channel]
        assert tokens[16 + channel, 0, token] == -mean_LC[token, channel]
    assert contents["000000000.txt"] == b"thing 0"
    assert contents["000000000.recap_txt"] == b"The image shows thing 0."


def test_a_shard_of_the_release_is_training_input(tmp_path: Path) -> None:
    values = np.arange(2464, dtype="<f2").reshape(32, 1, 77)
    path = archive(
        tmp_path / "laion.tar",
        {
            "000000123.token.npy": values.tobytes(),
            "000000123.txt": b"a cat\n",
            "000000123.recap_txt": b"The image depicts a cat on a mat.",
            "000000124.token.npy": values.tobytes(),
            "000000124.txt": b"a dog",
        },
    )
    one, two = read(path, shape=(77, 16))
    assert (one.key, one.captions) == ("laion/000000123", ("a cat",))
    assert one.texts == ("a cat", "A cat on a mat.") and two.texts == ("a dog",)
    assert one.moments_2LC.shape == (2, 77, 16)
    assert one.moments_2LC[0, 5, 3] == values[3, 0, 5] and one.moments_2LC[1, 5, 3] == values[19, 0, 5]


def test_the_releases_layout_comes_back(tmp_path: Path) -> None:
    samples = [latent(0), latent(1, recaption=None)]
    for was, found in zip(samples, read(written(tmp_path / "0.tar", *samples, layout="release")), strict=True):
        assert torch.equal(found.moments_2LC, was.moments_2LC)
        assert (found.captions, found.recaption) == (was.captions[:1], was.recaption)


def test_what_cannot_be_used_is_refused_in_its_place(tmp_path: Path) -> None:
    """One bad sample among millions must neither stop the training nor be trained on."""
    whole = latent(0, moments_2LC=torch.zeros(2, 77, 16).half())
    with tarfile.open(written(tmp_path / "whole.tar", whole, layout="release")) as file:
        raw = file.extractfile("000000000.token.npy").read()
    path = archive(
        tmp_path / "0.tar",
        {
            "0.token.npy": raw[:-2], "0.txt": b"cut", "1.txt": b"no moments", "2.token.npy": raw, "3.token.npy": raw,
            "3.txt": b"  ", "4.json": b"{}", "4.moments.npy": b"x", "5.token.npy": raw, "5.txt": b"good",
        },
    )  # fmt: skip
    found = [(item.key, item.reason) for item in refusals(path, (77, 16))]
    unreadable = "with moments or captions that cannot be read"
    assert found == [
        ("0/0", unreadable), ("0/1", "without moments"), ("0/2", unreadable), ("0/3", "without a caption"),
        ("0/4", unreadable),
    ]  # fmt: skip
    assert [item.key for item in everything(LatentSource([str(path)])) if isinstance(item, LatentSample)] == ["0/5"]
    (other,) = refusals(written(tmp_path / "other.tar", latent(1)), (77, 16))
    assert other.reason == "with moments of another shape" and "(2, 5, 3)" in other.detail


def test_a_cut_shard_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "0.tar", *(latent(number) for number in range(4)))
    path.write_bytes(path.read_bytes()[:3000])
    items = everything(LatentSource([str(path), str(tmp_path / "gone.tar")], shape=(TOKENS, CHANNELS)))
    assert isinstance(items[0], LatentSample)
    broken = [item for item in items if isinstance(item, Refusal)]
    assert [item.reason for item in broken if item.whole_part] == [
        "shard that cannot be read to its end",
        "missing shard",
    ]


def test_an_empty_shard_is_no_damage(tmp_path: Path) -> None:
    """All samples of a part may be left out by the filters."""
    assert read(written(tmp_path / "0.tar")) == []


def test_moments_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    """70,000 is no float16; a damaged tokenizer gives NaN: both would end a training days later."""
    wide = torch.full((2, TOKENS, CHANNELS), 70000.0)
    for moments_2LC in (wide.half(), torch.full_like(wide, float("nan"))):
        with pytest.raises(DataError, match=r"picture\.0\.png are not finite in float(16|32)"):
            written(tmp_path / "0.tar", latent(0, moments_2LC=moments_2LC))
        assert list(tmp_path.iterdir()) == [], "nothing is left of it"
    assert len(read(written(tmp_path / "0.tar", latent(0, moments_2LC=wide)))) == 1


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlowTokError, match="there is no folder"):
        written(tmp_path / "gone" / "0.tar", latent(0))
