"""`flowtok pack`: what is given away is the trained model, smaller, with a card that claims nothing unproved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from running import Run, refused
from safetensors.torch import load_file, save_file

import flowtok
from flowtok.checkpoints.folder import read_config, verify_checksums, write_config
from flowtok.config import to_dict
from flowtok.data.captioned import Row
from flowtok.evaluate.report import Record, write_records
from flowtok.pipeline import FlowTok
from flowtok.recipes import TINY

ROW = Row(
    file_name="images/a.png", text="red cat, in twemoji style", texts=("red cat",), name="red cat", concept="cat",
    style="twemoji", set="set", group="g", split="train", variant="", weight=1.0, license="MIT",
)  # fmt: skip


@pytest.fixture
def trained(tiny: FlowTok, tmp_path: Path) -> Path:
    """A model as training leaves it: in float32, with its recipe."""
    folder = tiny.save_pretrained(tmp_path / "run" / "model")
    record = read_config(folder)
    parts = {name: part.config for name, part in tiny.parts.items() if name != "latent_scale"}
    parts |= {"sampling": tiny.sampling}
    write_config(folder, name=record.name, parts=parts, provenance={"recipe": to_dict(TINY)})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The page of licences and the rows of a set; pictures are not looked at."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [ROW, replace(ROW, file_name="images/b.png"), replace(ROW, file_name="images/c.png", split="unseen_style")]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(to_dict(row)) for row in rows))
    (folder / "LICENSES.md").write_text("# Licences\n\n| set | licence |\n|---|---|\n| set | CC-BY-4.0, Ann Author |\n")
    return folder


def scores(folder: Path, model: Path) -> Path:
    """What `flowtok eval MODEL -o FOLDER` leaves."""
    record = Record(
        task="retrieval", split="train", scores={"r_at_1": 31.25}, num_samples=512, protocol={"seed": 0},
        model="tiny", model_sha256=sha256((model / "config.json").read_bytes()).hexdigest(), device="cpu",
        versions={"flowtok": "0.1.0"}, command="flowtok eval run/model --data FOLDER --task retrieval",
    )  # fmt: skip
    folder.mkdir()
    write_records([record], folder / "records.json")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_packed_model_is_smaller_whole_and_draws_nearly_the_same(run: Run, trained: Path, tiny: FlowTok) -> None:
    result = run("pack", str(trained), "-o", "given", "guidance_scale=3")
    assert result.code == 0 and result.out == "given\n", result.err
    verify_checksums("given")
    assert load_file("given/velocity.safetensors")["tokens_in.weight"].dtype == torch.float16
    given = flowtok.load("given")
    assert given.sampling == replace(tiny.sampling, guidance_scale=3.0)
    ours, theirs = (np.asarray(one.generate("king", 4, 2.0, seed=1)[0]).astype(int) for one in (given, tiny))
    assert np.abs(ours - theirs).max() <= 8  # float16 keeps 3 decimal digits
    assert "16 px, both ways; trained by the recipe tiny" in run("info", "given").out
    assert not list(Path().glob(".given*")), "the folder beside it must be gone"


def test_the_card_says_what_is_known(run: Run, trained: Path, data: Path) -> None:
    Path("notes.md").write_text("It is a first model.\n")
    options = ["--data", str(data), "--notes", "notes.md", "--license", "apache-2.0"]
    assert run("pack", str(trained), "-o", "given", *options).code == 0
    card = Path("given/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "It is a first model." in card
    assert 'flowtok generate "red cat, in twemoji style" --model given' in card
    assert "flowtok train tiny --data FOLDER" in card
    assert "3 pictures of 1 concepts: 2 train, 1 unseen style" in card
    assert f"| flow | {TINY.flow_training.num_steps} x {TINY.flow_training.batch_size} | muon |" in card
    assert "CC-BY-4.0, Ann Author" in card and "# Licences\n\n|" not in card
    assert "Not measured." in card


def test_a_card_without_data_and_licence_claims_none(run: Run, trained: Path) -> None:
    """Nobody may take weights for free to use because a line was written by itself."""
    assert run("pack", str(trained), "-o", "given").code == 0
    card = Path("given/README.md").read_text()
    assert "no licence was named" in card and "license:" not in card and "not named here" in card


def test_a_changed_recipe_is_not_passed_off_as_the_named_one(run: Run, trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    config["provenance"]["recipe"]["flow_training"]["num_steps"] += 1
    (trained / "config.json").write_text(json.dumps(config))
    assert run("pack", str(trained), "-o", "given").code == 0
    assert "flowtok train recipe.json" in Path("given/README.md").read_text()


def test_packing_again_changes_nothing_but_the_card(run: Run, trained: Path, tmp_path: Path) -> None:
    """Each new copy of 45 MB of text encoder would stay in the repository's history for good."""
    assert run("pack", str(trained), "-o", "given").code == 0
    before = content(Path("given"))
    written = {path: path.stat().st_ino for path in Path("given").rglob("*")}
    again = run("pack", str(trained), "-o", "given", "--scores", str(scores(tmp_path / "scores", Path("given"))))
    assert again.code == 0, again.err
    after = content(Path("given"))
    assert {name for name in after if after[name] != before[name]} == {"README.md"}
    assert {path.name for path, inode in written.items() if path.stat().st_ino != inode} == {"README.md"}
    assert "| train | 512 | 31.2 |" in Path("given/README.md").read_text()


def test_scores_stand_with_their_command_and_what_was_measured(run: Run, trained: Path, tmp_path: Path) -> None:
    measured = scores(tmp_path / "scores", trained)
    assert run("pack", str(trained), "-o", "given", "--scores", str(measured)).code == 0
    card = Path("given/README.md").read_text()
    assert "flowtok eval given --data FOLDER --task retrieval" in card
    assert "before the weights were rounded to float16" in card
    assert run("pack", str(trained), "-o", "full", "--dtype", "float32", "--scores", str(measured)).code == 0
    assert "rounded" not in Path("full/README.md").read_text()


def test_scores_of_another_model_are_refused(run: Run, trained: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """The best scores of many runs beside the last run's weights would be a lie."""
    assert run("pack", str(trained), "-o", "given").code == 0
    before = content(Path("given"))
    foreign = scores(tmp_path / "scores", tiny_folder)
    refused(run("pack", str(trained), "-o", "given", "--scores", str(foreign)), "another model", "flowtok eval given")
    assert content(Path("given")) == before
    refused(run("pack", str(trained), "-o", "new", "--scores", str(foreign)), "another model")
    assert not Path("new").exists()


def test_new_weights_replace_old_ones_and_what_the_model_lacks_goes(run: Run, trained: Path) -> None:
    assert run("pack", str(trained), "-o", "given").code == 0
    save_file({"weight": torch.ones(2)}, "given/alignment_head.safetensors")
    state = load_file(trained / "velocity.safetensors")
    save_file({name: weight * 2 for name, weight in state.items()}, trained / "velocity.safetensors")
    record = read_config(trained)
    parts = {name: getattr(record, name) for name in ("image_tokenizer", "text_encoder", "text_projector", "velocity")}
    (trained / "text_decoder.safetensors").unlink()
    write_config(trained, name="tiny", parts=parts, provenance=record.provenance)
    assert run("pack", str(trained), "-o", "given").code == 0
    verify_checksums("given")
    assert not Path("given/alignment_head.safetensors").exists() and not Path("given/text_decoder.safetensors").exists()
    packed = load_file("given/velocity.safetensors")
    assert all(torch.equal(packed[name], (weight * 2).to(packed[name].dtype)) for name, weight in state.items())
    assert "caption" not in Path("given/README.md").read_text().split("## ")[0].lower()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "MODEL"], ["into itself"]),
        (["-o", "file"], ["is a file"]),
        (["-o", "full"], ["other files", "mine.txt"]),
        (["-o", "other"], ["holds model 'xl'"]),
        (["-o", "none/given"], ["none/given"]),
        (["-o", "given", "--dtype", "int8"], ["--dtype int8", "float16"]),
        (["-o", "given", "guidance=3"], ["guidance", "did you mean guidance_scale"]),
        (["-o", "given", "guidance_scale=-1"], ["guidance scale", "-1"]),
        (["-o", "given", "--data", "full"], ["metadata.jsonl"]),
        (["-o", "given", "--scores", "full"], ["records.json", "flowtok eval"]),
        (["-o", "given", "--notes", "none.md"], ["none.md"]),
        ([], ["--output"]),
    ],
)
def test_mistakes_leave_nothing_behind(run: Run, trained: Path, arguments: list[str], words: list[str]) -> None:
    Path("file").touch()
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    shutil.copytree(trained, "other")
    record = read_config("other")
    write_config("other", name="xl", parts={"velocity": record.velocity})
    before = content(Path())
    refused(run("pack", str(trained), *[str(trained) if word == "MODEL" else word for word in arguments]), *words)
    assert content(Path()) == before and not Path("given").exists()


def test_only_trained_models_are_packed(run: Run, tiny_folder: Path, data: Path, trained: Path) -> None:
    """An imported model is its authors': a card of ours would say that we trained it."""
    refused(run("pack", str(tiny_folder), "-o", "given"), "was not trained by flowtok train")
    (data / "LICENSES.md").unlink()
    refused(run("pack", str(trained), "-o", "given", "--data", str(data)), "LICENSES.md")
