"""The network of BERT-like language encoders, weights named as in transformers.

Written here because transformers takes longer to import than a picture takes to be drawn; tests hold the two together.
How captions become ids, and CLIP's text tower: encoder.py and transformers_folder.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from flowtok.checkpoints import store
from flowtok.errors import CheckpointError
from flowtok.files import write_file_atomically
from flowtok.nn.attention import attend
from flowtok.nn.embeddings import blank_embedding

BASE: dict[str, Any] = {
    "hidden_size": 768,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "hidden_act": "gelu",
}


class BertOutput(NamedTuple):
    """What the network gives, as transformers calls it.

    Attributes:
        last_hidden_state: Features (B, S, E).
    """

    last_hidden_state: Tensor


class BertEmbeddings(nn.Module):
    """Word, position and the first token type, added and normed."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        super().__init__()
        width = stored["hidden_size"]
        self.word_embeddings = blank_embedding(stored["vocab_size"], width)
        self.position_embeddings = blank_embedding(stored["max_position_embeddings"], width)
        self.token_type_embeddings = blank_embedding(stored["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=stored["layer_norm_eps"])

    def forward(self, ids_BS: Tensor) -> Tensor:
        positions_SE = self.position_embeddings.weight[: ids_BS.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids_BS) + self.token_type_embeddings.weight[0] + positions_SE)


class _Projections(nn.Module):
    """Queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


class _AddedAndNormed(nn.Module):
    """A linear layer whose result is added to what the branch came from, and normed."""

    def __init__(self, inputs: int, stored: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, stored["hidden_size"])
        self.LayerNorm = nn.LayerNorm(stored["hidden_size"], eps=stored["layer_norm_eps"])

    def forward(self, branch_BSI: Tensor, x_BSE: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(branch_BSI) + x_BSE)


class BertLayer(nn.Module):
    """Attention and a feed-forward layer, each normed after it was added."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        super().__init__()
        width, hidden = stored["hidden_size"], stored["intermediate_size"]
        self.num_heads = stored["num_attention_heads"]
        self.attention = nn.ModuleDict({"self": _Projections(width), "output": _AddedAndNormed(width, stored)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = _AddedAndNormed(hidden, stored)
        self.is_quick = stored["hidden_act"] == "quick_gelu"

    def forward(self, x_BSE: Tensor, seen_B11S: Tensor | None) -> Tensor:
        projections: Any = self.attention["self"]
        query, key, value = (
            layer(x_BSE).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (projections.query, projections.key, projections.value)
        )
        mixed_BHSK = attend(query, key, value, seen_SS=seen_B11S)
        x_BSE = self.attention["output"](mixed_BHSK.transpose(1, 2).flatten(2), x_BSE)
        hidden = self.intermediate["dense"](x_BSE)
        return self.output(hidden * torch.sigmoid(1.702 * hidden) if self.is_quick else F.gelu(hidden), x_BSE)


class BertEncoder(nn.Module):
    """BERT without its pooling layer; it never trains, so there is no dropout.

    Source: Devlin et al. 2019; weights and config.json in transformers' layout.
    """

    def __init__(self, stored: Mapping[str, Any]) -> None:
        """Builds the network that a config.json describes; what it leaves out is as in BERT's base size.

        Raises:
            CheckpointError: It asks for what is not built here.
        """
        super().__init__()
        stored = {**BASE, **stored}
        positions = stored.get("position_embedding_type", "absolute")
        if positions != "absolute" or stored.get("is_decoder"):
            raise CheckpointError(f"a text encoder is no decoder and has absolute positions, not {positions} ones")
        self.stored = dict(stored)
        self.embeddings = BertEmbeddings(stored)
        layers = nn.ModuleList(BertLayer(stored) for _ in range(stored["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BertOutput:
        """Features of captions.

        Args:
            input_ids: Ids (B, S).
            attention_mask: 0 where nobody looks (B, S), such as padding; None where all see all.
        """
        x_BSE = self.embeddings(input_ids)
        seen_B11S = None if attention_mask is None else attention_mask.bool()[:, None, None]
        layers: Any = self.encoder["layer"]
        for layer in layers:
            x_BSE = layer(x_BSE, seen_B11S)
        return BertOutput(x_BSE)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def save_pretrained(self, folder: str | Path, also: Mapping[str, Any] | None = None) -> None:
        """Writes config.json, with what is given besides, and model.safetensors; transformers reads them too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(self.embeddings.word_embeddings.weight.dtype).removeprefix("torch.")
        stored: dict[str, Any] = self.stored | {"architectures": ["BertModel"], "dtype": dtype, **(also or {})}
        text = json.dumps(stored, indent=2, sort_keys=True) + "\n"
        write_file_atomically(folder / "config.json", text.encode())
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        write_file_atomically(folder / "model.safetensors", save(weights, {"format": "pt"}))


def load_bert(folder: Path, activation: str, dtype: torch.dtype) -> BertEncoder:
    """Opens config.json and model.safetensors of a folder; weights of a pooling layer or another head are left there.

    Args:
        folder: Where they are.
        activation: Takes the place of the one that config.json names.
        dtype: Type of the weights.

    Raises:
        CheckpointError: If something is missing, damaged, not finite or not built here.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"the text encoder's weights are missing: there is no file {path}")
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"hidden_act": activation}
        network = store.build(lambda: BertEncoder(stored))
        found = plain_names(store.load_state(path))
    except (ValueError, TypeError) as error:  # CheckpointError is a ValueError
        raise CheckpointError(f"cannot load the text encoder in {folder}: {error}") from error
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{path} lacks {len(missing)} weights of the text encoder: {', '.join(missing[:3])}")
    return store.load_into(network, {name: found[name] for name in wanted}, what=str(path), dtype=dtype)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that they have here: without the prefix of a larger model, norms' as they are called now."""
    renamed = {}
    for name, weight in state.items():
        name = name.removeprefix("bert.")
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.replace(old, new)
        renamed[name] = weight
    return renamed
