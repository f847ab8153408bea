"""Our own BERT gives what transformers' gives, and both read what either writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from flowtok.errors import CheckpointError
from flowtok.text.bert import BertEncoder, load_bert

IDS_BS = torch.tensor([[2, 5, 6, 7, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 4, 5, 6, 7, 8, 9, 3]])


def theirs(activation: str = "gelu") -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=10, hidden_act=activation, initializer_range=0.5,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def assert_alike(ours: BertEncoder, reference: Any) -> None:
    seen_BS = (IDS_BS != 0).long()
    with torch.no_grad():
        for given in ({}, {"attention_mask": seen_BS}):
            expected_BSE = reference.double()(input_ids=IDS_BS, **given).last_hidden_state
            torch.testing.assert_close(ours.double()(IDS_BS, **given).last_hidden_state, expected_BSE)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_are_those_of_transformers(tmp_path: Path, activation: str) -> None:
    reference = theirs(activation)
    reference.save_pretrained(tmp_path)
    assert_alike(load_bert(tmp_path, activation, torch.float32), reference)


def test_a_larger_models_file_and_old_names_are_read(tmp_path: Path) -> None:
    """Many folders on the Hub hold heads that nobody needs here, and norms by the names that they had first."""
    whole = BertForMaskedLM(theirs().config).eval()
    whole.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("bert.") for name in weights) and any(name.startswith("cls.") for name in weights)
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        weights = {name.replace(new, old): weight for name, weight in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    assert_alike(load_bert(tmp_path, "gelu", torch.float32), whole.bert)


def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path / "first")
    ours = load_bert(tmp_path / "first", "gelu", torch.float16)
    ours.save_pretrained(tmp_path / "second")
    again = BertModel.from_pretrained(tmp_path / "second", add_pooling_layer=False, dtype="auto")
    assert again.dtype == torch.float16
    assert_alike(ours, again.eval())


def test_what_is_not_built_here_is_refused() -> None:
    with pytest.raises(CheckpointError, match="absolute positions, not relative_key"):
        BertEncoder({"position_embedding_type": "relative_key"})
    with pytest.raises(CheckpointError, match="no decoder"):
        BertEncoder({"is_decoder": True})
