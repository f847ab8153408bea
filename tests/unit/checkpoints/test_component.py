"""Each component can be saved, opened and uploaded alone, as strictly as a whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flowtok.checkpoints.component import Component
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.flow.transformer import VelocityTransformer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.pipeline import FlowTok
from flowtok.text.decoder import TextDecoder
from flowtok.text.encoder import TextEncoder
from flowtok.text.projector import TextProjector

CLASSES: list[type[Component]] = [VelocityTransformer, ImageTokenizer, TextProjector, TextDecoder]


def same(first: Component, second: Component) -> bool:
    theirs = second.state_dict()
    return first.config == second.config and all(w.equal(theirs[name]) for name, w in first.state_dict().items())


@pytest.mark.parametrize("cls", CLASSES)
def test_saved_alone_and_taken_out_of_a_model(
    cls: type[Component], tiny: FlowTok, tiny_folder: Path, tmp_path: Path
) -> None:
    """The tokenizer or the decoder of a model is of use without the rest."""
    mine = tiny.parts[cls.component_name]
    assert isinstance(mine, cls)
    assert same(cls.from_pretrained(tiny_folder), mine)
    folder = mine.save_pretrained(tmp_path / "alone")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = cls.from_pretrained(folder)
    assert same(again, mine) and not again.training


def test_the_text_encoder_alone(tiny: FlowTok, tiny_folder: Path, tmp_path: Path) -> None:
    """Its length and activation come back too: other ones would give other features without a word."""
    folder = tiny.text_encoder.save_pretrained(tmp_path / "alone")
    expected = tiny.text_encoder.encode(["a red cat"])
    for source in (folder, tiny_folder):
        again = TextEncoder.from_pretrained(source)
        assert again.config == tiny.text_encoder.config
        found = again.encode(["a red cat"])
        assert found.features_BSE.equal(expected.features_BSE) and found.ids_BS.equal(expected.ids_BS)
    assert TextEncoder.from_pretrained(folder, num_tokens=5).encode(["a red cat"]).ids_BS.shape == (1, 5)


def test_a_smaller_type_leaves_tables_alone(tiny: FlowTok, tmp_path: Path) -> None:
    """Rounded rotary tables shift every patch; a frozen network is stored as small as a trained one."""
    tokenizer = ImageTokenizer.from_pretrained(tiny.image_tokenizer.save_pretrained(tmp_path / "full"))
    tokenizer.requires_grad_(False)
    again = ImageTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "small", dtype=torch.bfloat16))
    table = "encoder.positional_embedding.freqs_sin"
    assert again.state_dict()[table].equal(tokenizer.state_dict()[table])
    assert again.decoder.to_pixels.weight.equal(tokenizer.decoder.to_pixels.weight.bfloat16().float())
    assert not again.decoder.to_pixels.weight.equal(tokenizer.decoder.to_pixels.weight)
    whole = FlowTok.from_pretrained(tiny.save_pretrained(tmp_path / "whole", dtype=torch.bfloat16))
    assert whole.image_tokenizer.state_dict()[table].equal(tokenizer.state_dict()[table])
    assert whole.velocity.positions_1LD.equal(tiny.velocity.positions_1LD)


def test_what_does_not_fit_is_said(tiny: FlowTok, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny.velocity.save_pretrained(tmp_path / "alone")
    with pytest.raises(CheckpointError, match="of a velocity, not of a text_projector"):
        TextProjector.from_pretrained(folder)
    with pytest.raises(FlowTokError, match="holds a whole model"):
        tiny.velocity.save_pretrained(tiny_folder)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format 99"),
        ({"config": {**config["config"], "dept": 3}}, "dept"),
        ({"config": {**config["config"], "depth": 9}}, "weights are missing"),
        ({"config": None}, "no config"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=message) as caught:
            VelocityTransformer.from_pretrained(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no config.json"):
        VelocityTransformer.from_pretrained(tmp_path)


class HubInAFolder:
    """Takes uploads as the Hub's library does, into the place where it keeps what it fetches."""

    def __init__(self, token: str | None = None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        assert private and exist_ok

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> Any:
        from huggingface_hub import CommitInfo
        from huggingface_hub.constants import HF_HUB_CACHE

        commit = "89abcdef0123456789abcdef0123456789abcdef"
        repository = Path(HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
        shutil.rmtree(repository, ignore_errors=True)
        shutil.copytree(folder_path, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / (revision or "main")).write_text(commit)
        return CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/{commit}", commit_message=commit_message,
            commit_description="", oid=commit,
        )  # fmt: skip


def test_up_to_the_hub_and_back(tiny: FlowTok, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repository, branch and token reach the Hub's library; what went up opens by its id and branch."""
    monkeypatch.setattr("huggingface_hub.HfApi", HubInAFolder)
    given = {"token": "secret", "private": True}
    url = tiny.velocity.push_to_hub("someone/velocity", revision="v1", **given)
    assert url.startswith("https://huggingface.co/someone/velocity/commit/")
    assert same(VelocityTransformer.from_pretrained("someone/velocity", revision="v1"), tiny.velocity)
    with pytest.raises(CheckpointError, match="the Hub did not give it"):
        VelocityTransformer.from_pretrained("someone/velocity", revision="v2")
    tiny.text_encoder.push_to_hub("someone/encoder", **given)
    assert TextEncoder.from_pretrained("someone/encoder").config == tiny.text_encoder.config
    tiny.push_to_hub("someone/whole", card="# tiny\n", **given)
    again = FlowTok.from_pretrained("someone/whole")
    assert again.generate("a red cat", seed=1)[0].tobytes() == tiny.generate("a red cat", seed=1)[0].tobytes()
    assert same(ImageTokenizer.from_pretrained("someone/whole"), tiny.image_tokenizer)
