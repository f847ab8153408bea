"""Released files load or fail in one clear line: weights that are half loaded or random draw noise without a word."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from filling import Golden
from safetensors.torch import save_file
from torch import Tensor

from flowtok.checkpoints import official
from flowtok.checkpoints.official_keys import VELOCITY_KEYS, names
from flowtok.checkpoints.released_files import read_released
from flowtok.errors import CheckpointError

State = dict[str, Tensor]


@cache
def _velocity_file() -> State:
    return Golden("flowtok_tiny").weights()


@cache
def _tokenizer_file() -> State:
    return Golden("flowtitok_tiny").weights()


def velocity_file() -> State:
    return dict(_velocity_file())


def tokenizer_file() -> State:
    return dict(_tokenizer_file())


def same(first: State, second: State) -> bool:
    return set(first) == set(second) and all(first[name].equal(second[name]) for name in first)


def test_there_and_back_is_bit_for_bit() -> None:
    state = velocity_file()
    velocity = official.load_velocity(state, heads=4)
    projector = official.load_text_projector(state, heads=4)
    head = official.load_alignment_head(state)
    released = official.released_velocity(velocity, projector, head)
    assert list(released) == list(state)
    assert same(released, state)
    assert not projector.training  # else its dropout would change every picture
    tokenizer = official.load_tokenizer(tokenizer_file())
    assert same(official.released_tokenizer(tokenizer), tokenizer_file())


def test_sizes_come_from_the_shapes() -> None:
    state = velocity_file()
    config = official.load_velocity(state, heads=4).config
    assert (config.depth, config.width, config.num_tokens, config.token_channels) == (2, 64, 77, 16)
    projector = official.load_text_projector(state, heads=4).config
    assert (projector.text_width, projector.num_layers, projector.hidden, projector.num_tokens) == (64, 2, 96, 77)
    tokenizer = official.load_tokenizer(tokenizer_file()).config
    assert (tokenizer.image_size, tokenizer.patch_size, tokenizer.num_tokens, tokenizer.token_channels) == (
        64,
        16,
        16,
        16,
    )
    assert (tokenizer.encoder.width, tokenizer.encoder.depth, tokenizer.encoder.num_heads) == (512, 8, 8)
    assert (tokenizer.text_width, tokenizer.num_text_tokens) == (768, 77)


def prefixed(state: State) -> State:
    return {f"module.{name}": weight for name, weight in state.items()}


def nested(state: State) -> State:
    return {"state_dict": prefixed(state), "step": 7}  # type: ignore[dict-item]


def without_training_parts(state: State) -> State:
    return {name: w for name, w in state.items() if not name.startswith(("context_projector.", "t2t_temperature"))}


def without_temperature(state: State) -> State:
    return {name: weight for name, weight in state.items() if name != "t2t_temperature"}


def beside_a_tokenizer(state: State) -> State:
    return state | tokenizer_file()


@pytest.mark.parametrize("change", [prefixed, nested, without_training_parts, without_temperature, beside_a_tokenizer])
def test_what_the_release_leaves_open_is_tolerated(change: Callable[[State], State]) -> None:
    state = change(velocity_file())
    expected = official.load_velocity(velocity_file(), heads=4).state_dict()
    assert same(official.load_velocity(state, heads=4).state_dict(), expected)
    assert official.load_text_projector(state, heads=4).config.text_width == 64
    head = official.load_alignment_head(state)
    if change is without_training_parts:
        assert head is None
    else:
        assert head is not None and head.log_temperature.item() == pytest.approx(2.65926, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(dtype: torch.dtype) -> None:
    state = {name: weight.to(dtype) for name, weight in velocity_file().items()}
    network = official.load_velocity(state, heads=4)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert network.tokens_in.weight.equal(state["x_embedder.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smaller_weights_keep_exact_rotary_tables(dtype: torch.dtype) -> None:
    """Sines of large angles rounded to a few digits would turn every patch by another angle."""
    state = tokenizer_file()
    tokenizer = official.load_tokenizer(state, dtype=dtype)
    for side in ("encoder", "decoder"):
        for part in ("freqs_cos", "freqs_sin"):
            name = f"{side}.positional_embedding.{part}"
            assert tokenizer.get_buffer(name).dtype == torch.float32 and tokenizer.get_buffer(name).equal(state[name])
    assert {weight.dtype for weight in tokenizer.parameters()} == {dtype}
    text_BSE = torch.ones(1, 77, 768, dtype=dtype)
    assert tokenizer.decode(torch.ones(1, 16, 16, dtype=dtype), text_BSE).isfinite().all()


def test_double_precision_takes_the_tables_as_they_are() -> None:
    state = {name: weight.double() * (1 + 1e-12) for name, weight in tokenizer_file().items()}
    assert same(official.released_tokenizer(official.load_tokenizer(state, dtype=torch.float64)), state)


def missing(state: State) -> None:
    del state["blocks.1.mlp.fc1.weight"], state["final_layer.linear.bias"]


def missing_block(state: State) -> None:
    state["blocks.9.attn.qkv.weight"] = state["blocks.1.attn.qkv.weight"]


def extra(state: State) -> None:
    state["blocks.0.norm1.weight"] = torch.ones(64)


def foreign(state: State) -> None:
    state["cond_stage_model.weight"] = torch.ones(64)


def another_size(state: State) -> None:
    state["blocks.1.mlp.fc1.weight"] = torch.ones(128, 64)


def not_a_number(state: State) -> None:
    state["blocks.0.attn.proj.bias"] = torch.full((64,), torch.nan)


def infinite(state: State) -> None:
    state["blocks.0.attn.proj.bias"] = torch.full((64,), torch.inf)


def whole_numbers(state: State) -> None:
    state["blocks.0.attn.proj.bias"] = torch.ones(64, dtype=torch.int64)


def eight_bits(state: State) -> None:
    state["blocks.0.attn.proj.bias"] = torch.ones(64).to(torch.float8_e4m3fn)


def complex_numbers(state: State) -> None:
    state["blocks.0.attn.proj.bias"] = torch.ones(64, dtype=torch.complex64)


def sparse(state: State) -> None:
    state["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"].to_sparse()


def without_numbers(state: State) -> None:
    state["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"].to("meta")


def flat_matrix(state: State) -> None:
    state["x_embedder.weight"] = torch.ones(1024)


def twice(state: State) -> None:
    state["module.pos_embed"] = state["pos_embed"]


def words(state: State) -> None:
    state["x_embedder.weight"] = "weights"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, r"lacks 2 keys \(blocks.1.mlp.fc1.weight, final_layer.linear.bias\)"),
        (missing_block, r"lacks \d+ keys"),
        (extra, r"1 unknown key \(blocks.0.norm1.weight\)"),
        (foreign, r"1 key \(cond_stage_model.weight\) that no released component has"),
        (another_size, r"blocks.1.mlp.fc1.weight is \(128, 64\), not \(256, 64\)"),
        (not_a_number, r"NaN or infinite numbers in 1 key \(blocks.0.attn.proj.bias\)"),
        (infinite, r"NaN or infinite numbers in 1 key \(blocks.0.attn.proj.bias\)"),
        (whole_numbers, r"hold no floating numbers"),
        (complex_numbers, r"hold no floating numbers"),
        (eight_bits, r"1 key \(blocks.0.attn.proj.bias\) of type float8_e4m3fn; what can be read is float32, bfloat16"),
        (sparse, r"blocks.1.mlp.fc1.weight is sparse or quantized, not a plain tensor"),
        (without_numbers, r"blocks.1.mlp.fc1.weight is without numbers, not a plain tensor"),
        (flat_matrix, r"x_embedder.weight has shape \(1024,\)"),
        (twice, r"with and without the prefix"),
        (words, r"'x_embedder.weight' is str, not a tensor"),
    ],
)
def test_a_wrong_velocity_network_is_named_in_one_line(damage: Callable[[State], None], message: str) -> None:
    state = velocity_file()
    damage(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        official.load_velocity(state, heads=4)
    assert "\n" not in str(caught.value)


def test_heads_are_fixed_by_the_release_or_must_be_given() -> None:
    with pytest.raises(CheckpointError, match=r"width 64 is none of the released ones .* give its heads"):
        official.load_velocity(velocity_file())
    with pytest.raises(CheckpointError, match="width 64 is not a multiple of num_heads 5"):
        official.load_velocity(velocity_file(), heads=5)


def test_the_wrong_file_is_named() -> None:
    with pytest.raises(CheckpointError, match="holds no velocity network, only: image tokenizer"):
        official.load_velocity(tokenizer_file())
    with pytest.raises(CheckpointError, match="holds no image tokenizer, only: velocity network"):
        official.load_tokenizer(velocity_file())
    with pytest.raises(CheckpointError, match="not a checkpoint: it is empty"):
        official.load_velocity({})
    with pytest.raises(CheckpointError, match="'ema' is a level of its own; only one named 'state_dict' is entered"):
        official.load_velocity({"ema": velocity_file()})  # type: ignore[dict-item]


def test_a_damaged_tokenizer_is_named() -> None:
    state = tokenizer_file()
    for side in ("encoder", "decoder"):
        for part in ("freqs_cos", "freqs_sin"):
            state[f"{side}.positional_embedding.{part}"] = torch.zeros(15, 64)
    with pytest.raises(CheckpointError, match="15 rows, not a square number"):
        official.load_tokenizer(state)
    state = tokenizer_file()
    state["decoder.ffn.0.weight"] = torch.zeros(768, 512, 3, 3)
    with pytest.raises(CheckpointError, match=r"decoder.ffn.0.weight is \(768, 512, 3, 3\), not \(768, 512\)"):
        official.load_tokenizer(state)
    state = tokenizer_file()
    del state["decoder.mask_token"]
    with pytest.raises(CheckpointError, match=r"lacks 1 key \(decoder.mask_token\)"):
        official.load_tokenizer(state)


def test_stored_tables_are_used_as_they_are() -> None:
    state = velocity_file()
    state["pos_embed"] = state["pos_embed"] + 0.25
    network = official.load_velocity(state, heads=4)
    assert network.positions_1LD.equal(state["pos_embed"])
    assert not network.positions_1LD.requires_grad


def test_the_tables_name_each_of_our_weights_once() -> None:
    table = names(VELOCITY_KEYS, 28)
    assert len(table) == len(set(table.values())) == 12 + 28 * 10


@pytest.mark.parametrize("ending", ["pth", "bin", "safetensors"])
def test_files_of_each_kind(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"FlowTok.{ending}"
    save_file(velocity_file(), path) if ending == "safetensors" else torch.save(prefixed(velocity_file()), path)
    assert same(read_released(path), velocity_file())


def test_an_old_pickle_is_read_too(tmp_path: Path) -> None:
    torch.save(velocity_file(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_released(tmp_path / "old.pth"), velocity_file())


class Hostile:
    """A pickle that leaves a mark if it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_in_a_hostile_pickle_runs(tmp_path: Path, packed: bool) -> None:
    path, mark = tmp_path / "hostile.pth", tmp_path / "mark"
    if packed:
        torch.save({"x_embedder.weight": Hostile(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"x_embedder.weight": Hostile(mark)}, protocol=2))
    with pytest.raises(CheckpointError, match="hostile.pth"):
        read_released(path)
    assert not mark.exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_truncated_and_foreign_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    save_file(velocity_file(), path) if ending == "safetensors" else torch.save(velocity_file(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    for content in (None, b"", b"<html>404 not found</html>"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"weights.{ending}") as caught:
            read_released(path)
        assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no weight file"):
        read_released(tmp_path / "none.pth")
    (tmp_path / "weights.txt").write_text("weights", encoding="utf-8")
    with pytest.raises(CheckpointError, match="should end in one of"):
        read_released(tmp_path / "weights.txt")
    with zipfile.ZipFile(tmp_path / "program.pth", "w", zipfile.ZIP_STORED) as file:
        for name in ("data.pkl", "constants.pkl", "version"):
            file.writestr(f"program/{name}", "3\n")
    with pytest.raises(CheckpointError, match="TorchScript program, not a plain weight file; it is not run"):
        read_released(tmp_path / "program.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_released(tmp_path / "list.pth")
