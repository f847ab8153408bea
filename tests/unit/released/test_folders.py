"""Importing into folders that are there already, and exporting from them: nothing is damaged or blessed in silence."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures_released import (
    TINY_HEADS,
    TINY_PROJECTOR,
    tokenizer_file,
    velocity_file,
    write_clip_folder,
    write_tiny,
)
from safetensors.torch import load_file, save_file

from flowtok.checkpoints.folder import read_config, verify_checksums, write_config
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.image.latents import LatentScale
from flowtok.released.exporting import export_released
from flowtok.released.importing import import_released
from flowtok.text.projector import AlignmentHeadConfig


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that a user has."""
    velocity, tokenizer, clip = write_tiny(tmp_path_factory.mktemp("released"))
    return {"velocity": str(velocity), "tokenizer": str(tokenizer), "text_encoder": str(clip)}


@pytest.fixture(scope="module")
def imported(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_released(tmp_path_factory.mktemp("imported") / "whole", **sources, heads=TINY_HEADS)


@pytest.fixture
def model(imported: Path, tmp_path: Path) -> Path:
    """A copy of the imported model that a test may change."""
    return Path(shutil.copytree(imported, tmp_path / "model"))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("velocity.safetensors", "velocity"),
        ("alignment_head.safetensors", "velocity"),
        ("latent_scale.safetensors", "tokenizer"),
        ("text_encoder/model.safetensors", "text_encoder"),
    ],
)
def test_damaged_files_get_no_new_checksums(model: Path, sources: dict[str, str], file: str, part: str) -> None:
    """A folder is completed or mended part by part; what was damaged and is kept must stay noticed."""
    spoil(model / file)
    for other in sources:
        given = {other: sources[other]} | ({"heads": TINY_HEADS} if other == "velocity" else {})
        if other != part:
            with pytest.raises(CheckpointError, match=f"{file} is damaged"):
                import_released(model, **given)  # type: ignore[arg-type]
    import_released(model, **{part: sources[part]}, **({"heads": TINY_HEADS} if part == "velocity" else {}))  # type: ignore[arg-type]
    verify_checksums(model)


def test_a_mended_folder_is_what_it_was(model: Path, imported: Path, sources: dict[str, str]) -> None:
    (model / "image_tokenizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no image_tokenizer.safetensors"):
        import_released(model, text_encoder=sources["text_encoder"])
    import_released(model, tokenizer=sources["tokenizer"])
    verify_checksums(model)
    assert read_config(model).files.keys() == read_config(imported).files.keys()
    for name in ("image_tokenizer", "latent_scale"):
        mended, before = (load_file(folder / f"{name}.safetensors") for folder in (model, imported))
        assert all(mended[key].equal(weight) for key, weight in before.items())


def test_a_part_that_is_added_leaves_the_sampling_alone(model: Path, sources: dict[str, str]) -> None:
    """Steps that a user has set in config.json are theirs; another velocity network starts anew."""
    sampling = read_config(model).sampling
    assert sampling is not None
    rewritten(model, sampling=sampling | {"num_inference_steps": 50})
    import_released(model, tokenizer=sources["tokenizer"])
    assert (read_config(model).sampling or {})["num_inference_steps"] == 50
    import_released(model, velocity=sources["velocity"], heads=TINY_HEADS)
    assert read_config(model).sampling == sampling


def test_a_folder_on_another_disk(sources: dict[str, str], tmp_path: Path) -> None:
    """A mounted folder is the usual place of large models; what is beside it is on another disk, often not writable."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk here")
    disk = memory / f"flowtok-test-{os.getpid()}"
    disk.mkdir()
    try:
        (tmp_path / "model").symlink_to(disk)
        import_released(tmp_path / "model", velocity=sources["velocity"], heads=TINY_HEADS)
        verify_checksums(tmp_path / "model")
        assert read_config(tmp_path / "model").name == "model"
        assert not [path.name for path in disk.iterdir() if path.name.startswith(".")]
    finally:
        shutil.rmtree(disk)


def test_what_a_killed_import_left_is_no_hindrance(sources: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "model" / ".model.part-abc").mkdir(parents=True)
    (tmp_path / "model" / "velocity.safetensors").write_bytes(b"half")
    import_released(tmp_path / "model", velocity=sources["velocity"], heads=TINY_HEADS)
    verify_checksums(tmp_path / "model")


def test_the_folder_s_own_name_is_used(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-o .` must not give a model without a name, nor a card with half a command."""
    (tmp_path / "flowtok-xl").mkdir()
    monkeypatch.chdir(tmp_path / "flowtok-xl")
    import_released(".", velocity=sources["velocity"], heads=TINY_HEADS)
    assert read_config(".").name == "flowtok-xl"
    assert "--model flowtok-xl -o" in Path("README.md").read_text(encoding="utf-8")


def test_names_that_no_system_takes(sources: dict[str, str], tmp_path: Path) -> None:
    long = "x" * 300
    for given in ({"velocity": long}, {"velocity": sources["velocity"], "text_encoder": long}):
        with pytest.raises(FlowTokError, match="cannot use the name"):
            import_released(tmp_path / "model", **given, heads=TINY_HEADS)
    with pytest.raises(FlowTokError, match="cannot use the name"):
        import_released(tmp_path / long, velocity=sources["velocity"])
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Files cannot grow beyond a number of bytes; the writers see what they see on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_nothing(sources: dict[str, str], imported: Path, tmp_path: Path) -> None:
    with full_disk(100_000), pytest.raises(FlowTokError, match="cannot write") as caught:
        import_released(tmp_path / "model", velocity=sources["velocity"], heads=TINY_HEADS)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    for safetensors in (False, True):
        with full_disk(100_000), pytest.raises(FlowTokError, match="is there room") as caught:
            export_released(imported, tmp_path / "back", safetensors=safetensors)
        assert "\n" not in str(caught.value) and not list((tmp_path / "back").iterdir())


def test_a_text_encoder_with_other_words_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    """The released networks read the features of CLIP's 49408 word pieces; the width alone does not tell."""
    projector = replace(TINY_PROJECTOR, text_width=768, num_heads=8)
    state = velocity_file(projector=projector, head=AlignmentHeadConfig(text_width=768, hidden=8))
    torch.save(state, tmp_path / "wide.pth")
    clip = write_clip_folder(tmp_path / "clip", width=768, heads=12, vocabulary=1000)
    with pytest.raises(CheckpointError, match="it has 1000 word pieces, the released models read the 49408 of CLIP"):
        import_released(
            tmp_path / "model", velocity=str(tmp_path / "wide.pth"), text_encoder=str(clip), heads=TINY_HEADS
        )
    assert not (tmp_path / "model").exists()


def test_one_file_may_hold_everything(sources: dict[str, str], tmp_path: Path) -> None:
    torch.save({"state_dict": velocity_file() | tokenizer_file()}, tmp_path / "all.pth")
    file = str(tmp_path / "all.pth")
    folder = import_released(tmp_path / "model", velocity=file, tokenizer=file, heads=TINY_HEADS)
    back = [torch.load(path, weights_only=True) for path in export_released(folder, tmp_path / "back")]
    for found, expected in zip(back, (velocity_file(), tokenizer_file()), strict=True):
        assert list(found) == list(expected) and all(found[name].equal(w) for name, w in expected.items())


# Models that the released layout cannot hold


def rewritten(model: Path, **parts: object) -> None:
    """The same files with other words about them."""
    record = read_config(model)
    kept = {name: getattr(record, name) for name in ("velocity", "text_projector", "image_tokenizer", "sampling")}
    write_config(model, name="changed", parts=kept | parts, provenance=record.provenance)


def test_a_scale_that_the_released_layout_cannot_hold(model: Path, tmp_path: Path) -> None:
    """Whoever reads the exported files divides by 1.0143: another scale would be lost and every picture with it."""
    scale = LatentScale.uniform(77, 16, 2.0).state_dict()
    save_file(scale, model / "latent_scale.safetensors")
    rewritten(model)
    with pytest.raises(CheckpointError, match="scaled other than by 1.0143"):
        export_released(model, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_fixed_noise_that_the_released_layout_cannot_hold(model: Path, tmp_path: Path) -> None:
    rewritten(model, text_projector=replace(TINY_PROJECTOR, noise_std=0.5))
    with pytest.raises(CheckpointError, match="fixed noise of 0.5"):
        export_released(model, tmp_path / "back")
