"""Pictures into shards of moments: the right numbers, each sample once, and after any stop the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making_datasets import archive, everything, folder_with_texts, picture, shard, table

from flowtok.data.filters import FilterConfig
from flowtok.data.images import open_picture, to_tensor
from flowtok.data.latent_folders import MANIFEST, open_latents, shard_name
from flowtok.data.latent_shards import LatentSample
from flowtok.errors import CheckpointError, DataError
from flowtok.pipeline import FlowTok
from flowtok.train.encoding import Encoding, EncodingConfig, EncodingJob, open_tokenizer
from flowtok.train.encoding_ray import _Maker
from flowtok.train.runtime import Runtime
from flowtok.train.weights import fingerprint_of_weights

HERE = Runtime(device=torch.device("cpu"))
SMALL = EncodingConfig(batch_size=3, shard_size=1)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five shards of pictures, of which the fourth is empty."""
    for number, count in enumerate((4, 7, 2, 0, 5)):
        shard(tmp_path / "shards" / f"{number}.tar", range(number * 10, number * 10 + count), aesthetic=number)
    return tmp_path / "shards"


@pytest.fixture
def opened(tiny_folder: Path, tmp_path: Path) -> Callable[..., Encoding]:
    def opened(place: Path | str, folder: str = "out", *, words: bool = False, **changes: object) -> Encoding:
        (tmp_path / folder).mkdir(exist_ok=True)
        job = EncodingJob(
            place=str(place),
            folder=tmp_path / folder,
            tokenizer=str(tiny_folder),
            text_encoder=str(tiny_folder) if words else None,
            config=replace(SMALL, **changes),
        )
        return job.open(HERE)

    return opened


def run(encoding: Encoding, *, num_ranks: int = 1) -> dict[str, object] | None:
    """All ranks, one after the other; the last one completes the manifest."""
    manifest = None
    for rank in range(num_ranks):
        own = encoding.unfinished(rank, num_ranks)
        assert manifest is None or not own, "a rank says that all is done while another has still to begin"
        encoding.make(own)
        manifest = encoding.finish()
    return manifest


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples(folder: Path) -> list[LatentSample]:
    return [item for item in everything(open_latents(folder)) if isinstance(item, LatentSample)]


def test_moments_and_features_are_the_networks_own(
    opened: Callable[..., Encoding], tmp_path: Path, tiny: FlowTok
) -> None:
    place = folder_with_texts(tmp_path / "pictures", 7)
    (place / "0002.recap_txt").write_text("The image shows a blue cat")
    for dtype, tolerance in (("float16", 2e-3), ("float32", 1e-6)):  # float16 has 11 bits; moments are of size 1
        run(opened(place, dtype, words=True, dtype=dtype))
        found = samples(tmp_path / dtype)
        assert [sample.key for sample in found] == [f"{number:04d}.png" for number in range(7)]
        for sample in found:
            assert str(sample.moments_2LC.dtype) == f"torch.{dtype}"
            image_3YX = to_tensor(open_picture(place / sample.key, size=16))
            posterior = tiny.image_tokenizer.encode(image_3YX[None])
            expected_2LC = torch.cat([posterior.mean_BLC, posterior.logvar_BLC])
            torch.testing.assert_close(sample.moments_2LC.float(), expected_2LC, rtol=tolerance, atol=tolerance)
            words = tiny.text_encoder.encode(list(sample.texts))
            torch.testing.assert_close(sample.features_KSE.float(), words.features_BSE, rtol=tolerance, atol=tolerance)
            assert torch.equal(sample.ids_KS.long(), words.ids_BS)
        assert found[2].texts == ("thing 2", "A blue cat"), "features are of what training reads"
    assert all(sample.metadata == {"original_width": 12, "original_height": 12} for sample in found)


@pytest.mark.parametrize("kind", ["folder", "shards", "table", "emoji"])
def test_any_source_becomes_shards(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path, repository: Path, kind: str
) -> None:
    columns = {"image": [picture(number) for number in range(9)], "text": [f"thing {number}" for number in range(9)]}
    place, count = {
        "folder": (folder_with_texts(tmp_path / "pictures", 5), 5),
        "shards": (shards, 18),
        "table": (table(tmp_path / "t.parquet", columns), 9),
        "emoji": (repository / "tests" / "data" / "emoji_small", 48),
    }[kind]
    manifest = run(opened(place, batch_size=16))
    found = samples(tmp_path / "out")
    assert manifest["complete"]["samples"] == count == len({sample.key for sample in found}) == len(found)
    assert manifest["made_from"]["image_size"] == 16 and "bicubic" in manifest["made_from"]["crop"]
    if kind == "emoji":  # split, weight and all captions of its rows are kept
        assert {"split", "weight", "texts", "style"} <= found[0].metadata.keys() and len(found[0].captions) > 1


def test_neighbouring_parts_fill_a_shard(opened: Callable[..., Encoding], tmp_path: Path) -> None:
    columns = {"image": [picture(number) for number in range(22)], "text": [f"thing {n}" for n in range(22)]}
    place = table(tmp_path / "t.parquet", columns, row_group_size=4)
    manifest = run(opened(place, shard_size=9))
    assert manifest["complete"]["samples_of_shards"] == [8, 8, 6]


@pytest.mark.parametrize("num_ranks", [2, 3, 7])
def test_ranks_and_workers_make_the_same_bytes(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path, num_ranks: int
) -> None:
    """Each sample once for any number of ranks, also more than there are shards."""
    run(opened(shards, "alone"))
    manifest = run(opened(shards, "many", num_workers=num_ranks % 3), num_ranks=num_ranks)
    assert manifest is not None and manifest["complete"]["samples"] == 18
    assert files(tmp_path / "many") == files(tmp_path / "alone")


def test_after_a_stop_the_rest_is_made_and_the_finished_is_checked(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path
) -> None:
    run(opened(shards, "unbroken"))
    out = tmp_path / "out"
    opened(shards).make([0, 1, 2, 3])
    (out / ".000004.x.part.tar").write_bytes(b"half of a shard, of a process that was killed")
    (out / "000001.tar").write_bytes((out / "000001.tar").read_bytes()[:-1] + b"x")
    (out / "000002.tar").unlink()
    (out / "000003.json").unlink()  # killed between the shard and its record
    kept = (out / "000000.tar").stat().st_mtime_ns
    encoding = opened(shards)
    assert encoding.unfinished() == [1, 2, 3, 4]
    assert [encoding.unfinished(rank, 2) for rank in range(2)] == [[2, 4], [1, 3]]
    run(encoding, num_ranks=2)
    assert files(out) == files(tmp_path / "unbroken")
    assert (out / "000000.tar").stat().st_mtime_ns == kept, "what was whole is not made again"


def test_an_unfinished_folder_is_not_trained_on(opened: Callable[..., Encoding], tmp_path: Path, shards: Path) -> None:
    """A third of the data would pass for all of it."""
    encoding = opened(shards)
    encoding.make([0, 4])
    assert encoding.finish() is None
    with pytest.raises(DataError, match="2 of 5 shards are there; run the command"):
        open_latents(tmp_path / "out")


def test_a_shard_of_pictures_that_was_broken_is_tried_again(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path
) -> None:
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[:2000])
    encoding = opened(shards)
    with pytest.raises(DataError, match="1 of 5 parts could not be read to their end"):
        encoding.make(encoding.unfinished())
    complete = run(opened(shards, max_refused=0.2))["complete"]
    assert complete["broken_parts"] == ["1"] and complete["samples"] == 11
    (shards / "1.tar").write_bytes(whole)
    encoding = opened(shards)
    assert encoding.unfinished() == [1]
    assert run(encoding)["complete"]["samples"] == 18


def test_a_mended_shard_is_not_done_before_its_rank_has_made_it(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path
) -> None:
    """A rank that has nothing to do would else judge the folder by the old record, and stop the whole torchrun."""
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[:2000])
    first = opened(shards)
    with pytest.raises(DataError, match="could not be read to their end"):
        first.make(first.unfinished())
    (shards / "1.tar").write_bytes(whole)
    ranks = [opened(shards), opened(shards)]
    numbers = [encoding.unfinished(rank, 2) for rank, encoding in enumerate(ranks)]
    ranks[0].make(numbers[0])
    assert ranks[0].finish() is None
    ranks[1].make(numbers[1])
    assert ranks[1].finish()["complete"]["samples"] == 18


def test_another_tokenizer_or_other_settings_do_not_go_on(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path, tiny: FlowTok
) -> None:
    """Half of the moments from one network and half from another would train without a word."""
    run(opened(shards))
    before = files(tmp_path / "out")
    for changes in ({"dtype": "float32"}, {"filters": FilterConfig(max_aspect=2.0)}, {"words": True}):
        with pytest.raises(DataError, match="holds moments of something else"):
            opened(shards, **changes)
    with pytest.raises(DataError, match="parts was"):
        opened(folder_with_texts(tmp_path / "pictures", 3))
    opened(shards, batch_size=5, max_refused=0.5)  # changes nothing of what is stored
    assert files(tmp_path / "out") == before
    ours = fingerprint_of_weights(tiny.image_tokenizer.state_dict())
    assert open_latents(tmp_path / "out", tokenizer=ours, shape=(8, 4)).num_samples == 18
    with pytest.raises(DataError, match="another image tokenizer"):
        open_latents(tmp_path / "out", tokenizer="0" * 16)
    with pytest.raises(DataError, match="8 x 4 tokens, not of 77 x 16"):
        open_latents(tmp_path / "out", shape=(77, 16))


def test_what_is_refused_and_left_out_is_counted(opened: Callable[..., Encoding], tmp_path: Path, shards: Path) -> None:
    archive(shards / "5.tar", {"a.jpg": b"no picture", "a.txt": b"broken", "b.jpg": picture(1)})
    keep = FilterConfig(aesthetic_above=0.5)
    complete = run(opened(shards, filters=keep, max_refused=0.2))["complete"]
    assert complete["left_out"] == {"aesthetic score not above 0.5": 4, "no aesthetic score": 1}
    assert complete["refused"] == {"without a caption": 1} and complete["samples"] == 14
    assert complete["refused_examples"]["without a caption"][0]["key"] == "5/b"
    encoding = opened(shards, "strict", max_refused=0.05)
    encoding.make(encoding.unfinished())
    with pytest.raises(DataError, match="2 of 20 samples were refused, more than the 5%"):
        encoding.finish()
    encoding = opened(shards, "none", filters=FilterConfig(min_longer_side=500), max_refused=0.2)
    encoding.make(encoding.unfinished())
    with pytest.raises(DataError, match="no picture of 0 .* is left: .*longer side below 500 px"):
        encoding.finish()


def test_the_releases_layout_is_a_folder_like_ours(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path
) -> None:
    run(opened(shards, "ours"))
    run(opened(shards, "release", layout="release"))
    ours, released = samples(tmp_path / "ours"), samples(tmp_path / "release")
    assert len(ours) == len(released) == 18
    assert all(torch.equal(a.moments_2LC, b.moments_2LC) for a, b in zip(ours, released, strict=True))
    assert [sample.captions for sample in ours] == [sample.captions for sample in released]
    (tmp_path / "release" / MANIFEST).unlink()  # as somebody else's shards: found by their names, shape told
    found = everything(open_latents(str(tmp_path / "release" / "*.tar"), shape=(8, 4)))
    assert len(found) == 18 and all(isinstance(item, LatentSample) for item in found)
    with pytest.raises(DataError, match="no place for text features"):
        opened(shards, "words", layout="release", words=True)
    with pytest.raises(ValueError, match="holds float16"):
        EncodingConfig(layout="release", dtype="float32")


def test_foreign_folders_are_left_alone(opened: Callable[..., Encoding], tmp_path: Path, shards: Path) -> None:
    before = files(shards)
    with pytest.raises(DataError, match=r"holds shards and no latents\.json"):
        opened(shards, "shards")
    assert files(shards) == before
    with pytest.raises(DataError, match="cached moments lie in shards"):
        open_latents(folder_with_texts(tmp_path / "pictures", 2))
    run(opened(shards))
    for damage, words in (("{", "is damaged"), (json.dumps({"format_version": 9, "made_from": {}}), "has format 9")):
        (tmp_path / "out" / MANIFEST).write_text(damage)
        with pytest.raises(DataError, match=words):
            open_latents(tmp_path / "out")
    (tmp_path / "out" / "000002.json").write_text("{}")
    (tmp_path / "out" / MANIFEST).unlink()
    for path in (tmp_path / "out").glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"000002\.json is damaged .* delete it and start again"):
        opened(shards).unfinished()


def test_a_broken_network_stops_at_the_first_batch(
    opened: Callable[..., Encoding], tmp_path: Path, shards: Path
) -> None:
    encoding = opened(shards)
    with torch.no_grad():
        encoding.tokenizer.latent_tokens.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        encoding.make([0])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MANIFEST]


def test_the_tokenizer_of_a_training_that_goes_on(tmp_path: Path, tiny: FlowTok) -> None:
    """The flow's data are written after the first stage, long before there is a whole model folder."""
    from flowtok.checkpoints.store import save_component
    from flowtok.config import save
    from flowtok.image.tokenizer import ImageTokenizer
    from flowtok.recipes import TINY

    tokenizer = ImageTokenizer(TINY.image_tokenizer)
    tokenizer.initialize(torch.Generator().manual_seed(0))
    save_component(tmp_path / "run" / "model", "image_tokenizer", tokenizer.state_dict())
    with pytest.raises(CheckpointError):
        open_tokenizer(str(tmp_path / "run"))
    save(TINY, tmp_path / "run" / "recipe.yaml")
    found = open_tokenizer(str(tmp_path / "run"))
    assert fingerprint_of_weights(found.state_dict()) == fingerprint_of_weights(tokenizer.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"layout": "zip"}, {"dtype": "float8"}, {"shard_size": 0}, {"num_workers": -1}, {"max_refused": 2.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not"):
        EncodingConfig(**wrong)


def test_an_actor_makes_its_shard_and_says_errors_in_words(
    tiny_folder: Path, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on a machine of a cluster, without the cluster: an exception would come back as Ray's traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    job = EncodingJob(
        place="shards", folder=tmp_path / "out", tokenizer=str(tiny_folder), text_encoder=None, config=SMALL
    )
    monkeypatch.chdir(tmp_path.parent)  # an actor does not start where the command was given
    made = _Maker(job, tmp_path, on_gpu=False)({"shard": 4})
    assert made["error"] == ""
    assert job.open(HERE).unfinished() == [0, 1, 2, 3]
    (shards / "2.tar").unlink()
    other = _Maker(job, tmp_path, on_gpu=False)({"shard": 0})
    assert "holds moments of something else" in other["error"] and "\n" not in other["error"]


def test_an_actor_leaves_it_to_all_shards_whether_too_much_is_refused(
    opened: Callable[..., Encoding], tiny_folder: Path, tmp_path: Path, shards: Path
) -> None:
    """One bad shard of many is no reason to stop a cluster; without one all shards together decide."""
    archive(shards / "3.tar", {"1.jpg": b"no picture", "1.txt": b"words"})
    encoding = opened(shards)
    job = EncodingJob(
        place=str(shards), folder=tmp_path / "out", tokenizer=str(tiny_folder), text_encoder=None, config=SMALL
    )
    actor = _Maker(job, tmp_path, on_gpu=False)
    assert [actor({"shard": number})["error"] for number in range(5)] == [""] * 5
    with pytest.raises(DataError, match="1 of 19 samples were refused, more than the 5%"):
        encoding.finish()


def test_names_of_shards_sort_by_number() -> None:
    assert sorted(shard_name(number) for number in (9, 10, 123456)) == ["000009.tar", "000010.tar", "123456.tar"]
