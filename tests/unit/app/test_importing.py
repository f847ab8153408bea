"""Import and export: what goes in comes out bit for bit, and what cannot be imported is said in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_released import TINY_TOKENIZER, tokenizer_file, velocity_file, write_clip_folder
from running import Run, refused
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowtok.app import cli
from flowtok.checkpoints.folder import read_config, verify_checksums
from flowtok.checkpoints.released_files import read_released
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.nn.rope import RotaryTable
from flowtok.pipeline import FlowTok

State = dict[str, Tensor]
HEADS = ("--heads", "2")


def same(first: State, second: State) -> bool:
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and first[name].equal(second[name]) for name in first
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a user has; tests read them and never write there."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(velocity_file(), folder / "FlowTok.pth")
    torch.save(tokenizer_file(), folder / "FlowTiTok.bin")
    write_clip_folder(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def imported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole imported model; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("imported") / "whole"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["import", str(sources / "FlowTok.pth"), "--tokenizer", str(sources / "FlowTiTok.bin"),
             "--text-encoder", str(sources / "clip"), *HEADS, "-o", str(folder)]
        )  # fmt: skip
    assert not stop.value.code
    return folder


def test_an_imported_model_is_sampled_as_released(imported: Path) -> None:
    """On another grid or with another scale the released weights draw other pictures, and nobody would know why."""
    record = read_config(imported)
    assert record.sampling is not None
    assert (record.sampling["grid"], record.sampling["num_inference_steps"]) == ("release", 20)
    assert (record.sampling["guidance_scale"], record.sampling["solver"]) == (2.0, "euler")
    model = FlowTok.from_pretrained(imported)
    assert model.latent_scale.scale_LC.unique().tolist() == [pytest.approx(1.0143)]
    assert model.latent_scale.mean_LC.abs().max() == 0
    assert model.sampling.grid == "release" and model.text_encoder.config.activation == "quick_gelu"


def test_the_folder_says_where_it_comes_from_and_invents_no_licence(imported: Path) -> None:
    record, card = read_config(imported), (imported / "README.md").read_text(encoding="utf-8")
    assert record.provenance["released"]["velocity"]["source"] == "FlowTok.pth"
    assert "FlowTiTok.bin" in card and "turkeyju/FlowTok" in card
    assert not any(licence in card + json.dumps(record.provenance) for licence in ("Apache", "MIT", "CC-BY"))
    assert str(imported.parent) not in card + json.dumps(record.provenance), "a path of this machine"
    verify_checksums(imported)


def test_a_damaged_folder_is_noticed(run: Run, imported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(imported, tmp_path / "damaged"))
    content = bytearray((folder / "velocity.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "velocity.safetensors").write_bytes(content)
    refused(run("generate", "a cat", "--model", str(folder)), "velocity.safetensors is damaged", "SHA-256")


def prefixed(state: State) -> State:
    return {"state_dict": {f"module.{name}": weight for name, weight in state.items()}, "epoch": 3}  # type: ignore


def no_head(state: State) -> State:
    return {name: w for name, w in state.items() if not name.startswith(("context_projector", "t2t_temperature"))}


def no_temperature(state: State) -> State:
    return {name: weight for name, weight in state.items() if name != "t2t_temperature"}


def only_temperature(state: State) -> State:
    return {name: weight for name, weight in state.items() if not name.startswith("context_projector")}


def averaged_table(state: State) -> State:
    return state | {"pos_embed": state["pos_embed"] * 1.0000001 + 1e-7}


def half(state: State) -> State:
    return {name: weight.half() for name, weight in state.items()}


def mixed(state: State) -> State:
    return {name: weight.bfloat16() if weight.ndim == 2 else weight for name, weight in state.items()}


def double(state: State) -> State:
    return {name: weight.double() * (1 + 1e-12) for name, weight in state.items()}


@pytest.mark.parametrize(
    "change", [dict, prefixed, no_head, no_temperature, only_temperature, averaged_table, half, mixed, double]
)
def test_there_and_back_is_bit_for_bit(
    run: Run, sources: Path, tmp_path: Path, change: Callable[[State], State]
) -> None:
    """What the release leaves open is kept as it was: a table that an average moved, what is missing, float types."""
    torch.save(change(velocity_file()), tmp_path / "in.pth")
    expected = read_released(tmp_path / "in.pth")
    folder = tmp_path / "model"
    tokenizer = str(sources / "FlowTiTok.bin")
    assert run("import", str(tmp_path / "in.pth"), "--tokenizer", tokenizer, *HEADS, "-o", str(folder)).code == 0
    result = run("export-official", str(folder), "-o", str(tmp_path / "back"))
    assert result.code == 0 and result.out.count("\n") == 2
    assert same(torch.load(tmp_path / "back" / "FlowTok-other.pth", weights_only=True), expected)
    assert same(torch.load(tmp_path / "back" / "FlowTiTok_32.bin", weights_only=True), tokenizer_file())
    refused(run("export-official", str(folder), "-o", str(tmp_path / "back")), "exists already")


def test_safetensors_in_and_out(run: Run, imported: Path, tmp_path: Path) -> None:
    save_file(velocity_file(), tmp_path / "in.safetensors")
    assert run("import", str(tmp_path / "in.safetensors"), *HEADS, "-o", "model").code == 0
    assert run("export-official", "model", "-o", "back", "--safetensors").code == 0
    back = load_file("back/FlowTok-other.safetensors")
    assert set(back) == set(velocity_file()) and all(back[k].equal(v) for k, v in velocity_file().items())


def test_a_model_of_our_own_has_no_released_tokenizer(run: Run, tiny_folder: Path) -> None:
    refused(run("export-official", str(tiny_folder), "-o", "back"), "no released layout", "not guided by text")


def test_stored_in_bfloat16_the_tables_stay_exact(run: Run, sources: Path) -> None:
    """Rounded rotary tables shift every patch; the file is small because of the weights, not of the tables."""
    velocity, tokenizer = str(sources / "FlowTok.pth"), str(sources / "FlowTiTok.bin")
    assert run("import", velocity, "--tokenizer", tokenizer, *HEADS, "--dtype", "bfloat16", "-o", "model").code == 0
    stored = load_file("model/image_tokenizer.safetensors")
    table = RotaryTable(TINY_TOKENIZER.grid, 64).freqs_cos
    assert stored["encoder.positional_embedding.freqs_cos"].equal(table)
    assert stored["decoder.to_pixels.weight"].dtype == torch.bfloat16
    stored = load_file("model/velocity.safetensors")
    assert stored["positions_1LD"].equal(velocity_file()["pos_embed"])
    assert stored["blocks.0.modulation.weight"].equal(velocity_file()["blocks.0.adaLN_modulation.1.weight"].bfloat16())


def test_parts_are_added_one_by_one(run: Run, sources: Path, imported: Path) -> None:
    """A missing part is an error that names the command that adds it, never random weights."""
    velocity, tokenizer, clip = (str(sources / name) for name in ("FlowTok.pth", "FlowTiTok.bin", "clip"))
    result = run("import", velocity, *HEADS, "-o", "step")
    assert result.code == 0 and "no image_tokenizer yet" in result.err and "no text_encoder yet" in result.err
    refused(run("generate", "a cat", "--model", "step"), "no image_tokenizer", "flowtok import --tokenizer")
    assert run("import", "--tokenizer", tokenizer, "-o", "step").code == 0
    refused(run("generate", "a cat", "--model", "step"), "no text_encoder", "flowtok import --text-encoder")
    result = run("import", "--text-encoder", clip, "-o", "step")
    assert result.code == 0 and result.err == ""
    assert run("generate", "a cat", "--seed", "3", "--model", "step", "-o", "a.png").code == 0
    assert run("generate", "a cat", "--seed", "3", "--model", str(imported), "-o", "b.png").code == 0
    assert Path("a.png").stat().st_size > 0
    from PIL import Image

    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    refused(run("caption", "a.png", "--model", "step"), "no text_decoder", "none was released")


def test_a_new_velocity_network_takes_the_old_head_away(
    run: Run, sources: Path, imported: Path, tmp_path: Path
) -> None:
    """Otherwise the export would mix two trainings."""
    folder = Path(shutil.copytree(imported, tmp_path / "again"))
    torch.save(no_head(velocity_file()), tmp_path / "bare.pth")
    assert (folder / "alignment_head.safetensors").is_file()
    assert run("import", str(tmp_path / "bare.pth"), *HEADS, "-o", str(folder)).code == 0
    assert not (folder / "alignment_head.safetensors").exists()
    assert FlowTok.from_pretrained(folder).text_encoder.config.family == "clip"


def test_the_activation_is_a_recorded_choice(run: Run, sources: Path) -> None:
    """It cannot be read from weights, and the two give different pictures."""
    clip = str(sources / "clip")
    for activation in ("gelu", "quick_gelu"):
        arguments = (*HEADS, "--text-encoder", clip, "--activation", activation, "-o", activation)
        assert run("import", str(sources / "FlowTok.pth"), *arguments).code == 0
        assert json.loads(Path(activation, "text_encoder", "config.json").read_text())["hidden_act"] == activation
    ours, theirs = (FlowTok.from_pretrained(name).text_encoder for name in ("gelu", "quick_gelu"))
    assert ours.config.activation == "gelu" and theirs.config.activation == "quick_gelu"
    assert not ours.encode(["a cat"]).features_BSE.allclose(theirs.encode(["a cat"]).features_BSE)


def test_a_whole_clip_is_cut_to_its_text_tower(run: Run, sources: Path, imported: Path, tmp_path: Path) -> None:
    """The usual CLIP folder holds a vision tower too, three times as large and of no use here."""
    whole = write_clip_folder(tmp_path / "whole", whole=True)
    torch.save(load_file(whole / "model.safetensors"), whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    assert run("import", str(sources / "FlowTok.pth"), *HEADS, "--text-encoder", str(whole), "-o", "model").code == 0
    names = set(load_file("model/text_encoder/model.safetensors"))
    assert names == set(load_file(imported / "text_encoder" / "model.safetensors"))
    cut, alone = (FlowTok.from_pretrained(folder).text_encoder for folder in ("model", imported))
    assert cut.encode(["a cat"]).features_BSE.equal(alone.encode(["a cat"]).features_BSE)


def in_the_cache(repo_id: str, files: dict[str, Path]) -> None:
    """Puts files where the Hub's library keeps what it has fetched."""
    from huggingface_hub.constants import HF_HUB_CACHE

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = Path(HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    shutil.rmtree(repository, ignore_errors=True)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name, path in files.items():
        shutil.copy(path, repository / "snapshots" / commit / name)


def test_files_on_the_hub(run: Run, sources: Path) -> None:
    """OWNER/NAME/FILE in place of a path; without a network what was fetched before is found, the rest is named."""
    in_the_cache("someone/flow", {"FlowTok.pth": sources / "FlowTok.pth", "FlowTiTok.bin": sources / "FlowTiTok.bin"})
    names = ("config.json", "model.safetensors", "tokenizer.json")
    in_the_cache("someone/clip", {name: sources / "clip" / name for name in names})
    velocity = ("import", "someone/flow/FlowTok.pth", *HEADS)
    tokenizer = ("--tokenizer", "someone/flow/FlowTiTok.bin")
    assert run(*velocity, *tokenizer, "--text-encoder", "someone/clip", "-o", "model").code == 0
    assert read_config("model").provenance["released"]["velocity"]["source"] == "someone/flow/FlowTok.pth"
    assert read_config("model").provenance["released"]["text_encoder"]["source"] == "someone/clip"
    assert FlowTok.from_pretrained("model").generate("a cat", num_inference_steps=1, seed=1)[0].size == (32, 32)
    refused(run("import", "someone/flow/other.pth", "-o", "next"), "someone/flow/other.pth", "the Hub did not give it")
    refused(run("import", "someone/flow", "-o", "next"), "OWNER/NAME/FILE")
    refused(run(*velocity, "--text-encoder", "someone/other", "-o", "next"), "someone/other")
    assert not Path("next").exists()


# What is wrong with the files


def missing_keys(state: State) -> None:
    del state["blocks.1.mlp.fc1.weight"], state["context_encoder.linear.bias"]


def another_size(state: State) -> None:
    state["blocks.1.mlp.fc1.weight"] = torch.ones(7, 32)


def not_finite(state: State) -> None:
    state["final_layer.linear.bias"] = torch.full((16,), torch.nan)


def half_a_head(state: State) -> None:
    del state["context_projector.2.weight"]


def foreign(state: State) -> None:
    state["vae.weight"] = torch.ones(1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing_keys, ["lacks 1 key (blocks.1.mlp.fc1.weight)"]),
        (another_size, ["blocks.1.mlp.fc1.weight is (7, 32), not (128, 32)"]),
        (not_finite, ["NaN or infinite", "final_layer.linear.bias"]),
        (half_a_head, ["alignment head lacks 1 key (context_projector.2.weight)"]),
        (foreign, ["vae.weight", "no released component"]),
    ],
)
def test_wrong_weights_are_named_and_nothing_is_written(
    run: Run, damage: Callable[[State], None], words: list[str]
) -> None:
    state = velocity_file()
    damage(state)
    torch.save(state, "in.pth")
    refused(run("import", "in.pth", *HEADS, "-o", "model"), *words)
    assert [path.name for path in Path().iterdir()] == ["in.pth"]


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("mark",)


def test_files_that_are_no_checkpoints(run: Run, sources: Path) -> None:
    whole = (sources / "FlowTok.pth").read_bytes()
    Path("truncated.pth").write_bytes(whole[: len(whole) // 2])
    Path("page.safetensors").write_text("<html>not found</html>")
    Path("hostile.pth").write_bytes(pickle.dumps({"x_embedder.weight": Hostile()}))
    Path("notes.txt").write_text("weights")
    wrong = {
        "truncated.pth": "truncated",
        "page.safetensors": "not a safetensors file",
        "hostile.pth": "refused",
        "notes.txt": "not a weight file",
        "none.pth": "no weight file",
        str(sources): "is a folder",
        str(sources / "FlowTiTok.bin"): "no velocity network",
    }
    for name, word in wrong.items():
        refused(run("import", name, *HEADS, "-o", "model"), word)
    assert not Path("model").exists() and not Path("mark").exists()


def test_components_that_do_not_fit_each_other(run: Run, sources: Path) -> None:
    velocity = ("import", str(sources / "FlowTok.pth"), *HEADS, "-o", "model")
    wide = write_clip_folder(Path("wide"), width=24)
    refused(run(*velocity, "--text-encoder", str(wide)), "do not fit each other", "'text_encoder': 24")
    few = write_clip_folder(Path("few"), vocabulary=1000)
    refused(run(*velocity, "--text-encoder", str(few)), "49407", "1000 word pieces")
    from dataclasses import replace

    torch.save(tokenizer_file(replace(TINY_TOKENIZER, num_tokens=32)), "short.bin")
    refused(run(*velocity, "--tokenizer", "short.bin"), "do not fit each other", "'image_tokenizer': 32")
    assert not Path("model").exists()


def test_text_encoders_that_are_damaged_or_of_another_kind(run: Run, sources: Path, tiny_folder: Path) -> None:
    def attempt(folder: Path, *words: str) -> None:
        refused(run("import", str(sources / "FlowTok.pth"), *HEADS, "--text-encoder", str(folder), "-o", "m"), *words)
        assert not Path("m").exists()

    attempt(tiny_folder / "text_encoder", "holds a bert model")
    attempt(Path("none"), "no text encoder folder")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        folder = Path(shutil.copytree(sources / "clip", f"without-{name}"))
        (folder / name).unlink()
        attempt(folder, name)
    weights = load_file(sources / "clip" / "model.safetensors")
    folder = Path(shutil.copytree(sources / "clip", "infinite"))
    weights["text_model.final_layer_norm.weight"] += torch.inf
    save_file(weights, folder / "model.safetensors")
    attempt(folder, "NaN or infinite", "final_layer_norm.weight")
    folder = Path(shutil.copytree(sources / "clip", "layers"))
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    attempt(folder, "weights of 1 layers; its config.json says 3")


def test_arguments_that_make_no_sense(run: Run, sources: Path, tiny_folder: Path) -> None:
    velocity = str(sources / "FlowTok.pth")
    refused(run("import", "-o", "m"), "nothing to import")
    refused(run("import", velocity), "--output")
    refused(run("import", "--tokenizer", str(sources / "FlowTiTok.bin"), "-o", "m"), "no imported model yet")
    refused(run("import", velocity, "-o", "m"), "width 32 is none of the released ones", "heads")
    refused(run("import", velocity, *HEADS, "--activation", "relu", "-o", "m"), "--activation relu")
    refused(run("import", velocity, *HEADS, "--activation", "gelu", "-o", "m"), "--activation has no effect")
    refused(run("import", velocity, *HEADS, "--dtype", "int8", "-o", "m"), "--dtype int8")
    refused(run("import", velocity, *HEADS, "-o", str(tiny_folder)), "no imported one")
    refused(run("import", velocity, *HEADS, "-o", str(sources)), "holds other files")
    refused(run("import", velocity, *HEADS, "-o", "a/b"), "make it first")
    refused(run("import", velocity, *HEADS, "-o", velocity), "it is a file")
    assert not Path("m").exists()


def test_a_component_alone(imported: Path, tmp_path: Path) -> None:
    """The tokenizer of an imported model is of use without the rest."""
    tokenizer = ImageTokenizer.from_pretrained(imported)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = ImageTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert again.config == TINY_TOKENIZER
    assert all(weight.equal(again.state_dict()[name]) for name, weight in tokenizer.state_dict().items())
