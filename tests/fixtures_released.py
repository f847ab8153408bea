"""Files in the layout of the authors' release, of any size, with weights drawn by the rule of the golden fixtures.

Also used by benchmarks/full_size.py. What such weights draw is noise; everything around them is as with the real ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from parity.filling import FOLDER, weight
from safetensors.torch import save_file
from torch import Tensor

from flowtok.checkpoints import official
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.nn.embeddings import position_table
from flowtok.nn.rope import RotaryTable
from flowtok.text.projector import AlignmentHead, AlignmentHeadConfig, TextProjector, TextProjectorConfig

State = dict[str, Tensor]

# CLIP's own vocabulary cut down to a few words; the ids are those of the whole one.
CUT_TOKENIZER = FOLDER / "clip_tokenizer_cut.json"
SEED = 7

TINY_TEXT = 16
TINY_VELOCITY = VelocityTransformerConfig(depth=2, width=32, num_heads=2, num_tokens=77, token_channels=16)
TINY_PROJECTOR = TextProjectorConfig(text_width=TINY_TEXT, num_layers=1, num_heads=2, hidden=8)
TINY_HEAD = AlignmentHeadConfig(text_width=TINY_TEXT, hidden=8)
TINY_VISION = VisionTransformerConfig(width=64, depth=1, num_heads=1)
TINY_TOKENIZER = ImageTokenizerConfig(
    image_size=32, patch_size=16, encoder=TINY_VISION, decoder=TINY_VISION, text_width=TINY_TEXT
)
TINY_HEADS = 2


def velocity_file(
    velocity: VelocityTransformerConfig = TINY_VELOCITY,
    projector: TextProjectorConfig = TINY_PROJECTOR,
    head: AlignmentHeadConfig = TINY_HEAD,
) -> State:
    """What FlowTok-*.pth holds."""
    with torch.device("meta"):
        empty = official.released_velocity(VelocityTransformer(velocity), TextProjector(projector), AlignmentHead(head))
    state = {name: weight(name, list(tensor.shape), SEED) for name, tensor in empty.items() if tensor.ndim}
    state["pos_embed"] = position_table(velocity.num_tokens, velocity.width)[None]
    state["t2t_temperature"] = torch.tensor(math.log(1 / 0.07))
    return {name: state[name] for name in empty}


def tokenizer_file(config: ImageTokenizerConfig = TINY_TOKENIZER) -> State:
    """What FlowTiTok_*.bin holds."""
    with torch.device("meta"):
        empty = official.released_tokenizer(ImageTokenizer(config))
    tables = RotaryTable(config.grid, config.encoder.width // config.encoder.num_heads).state_dict()
    return {
        name: tables[name.rpartition(".")[2]] if "freqs" in name else weight(name, list(tensor.shape), SEED)
        for name, tensor in empty.items()
    }


def write_clip_folder(
    folder: Path,
    *,
    width: int = TINY_TEXT,
    layers: int = 1,
    heads: int = 2,
    vocabulary: int = 49408,
    whole: bool = False,
) -> Path:
    """A CLIP text tower in transformers' layout; as a part of a whole CLIPModel's folder if asked for."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder.mkdir(parents=True)
    text = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 77, "vocab_size": vocabulary,
        "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu",
    }  # fmt: skip
    config = {"model_type": "clip", "text_config": text} if whole else {"model_type": "clip_text_model", **text}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.device("meta"):
        empty = CLIPTextModel(CLIPTextConfig(**text)).state_dict()
    names = {f"text_model.{name.removeprefix('text_model.')}": list(tensor.shape) for name, tensor in empty.items()}
    state = {name: weight(name, shape, SEED) for name, shape in names.items()}
    if whole:
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        state["logit_scale"] = torch.tensor(4.6)
        state["visual_projection.weight"] = torch.ones(4, 4)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_bytes(CUT_TOKENIZER.read_bytes())
    return folder


def write_tiny(folder: Path) -> tuple[Path, Path, Path]:
    """A tiny velocity file, tokenizer file and CLIP folder."""
    torch.save(velocity_file(), folder / "FlowTok-tiny.pth")
    torch.save(tokenizer_file(), folder / "FlowTiTok_32.bin")
    return folder / "FlowTok-tiny.pth", folder / "FlowTiTok_32.bin", write_clip_folder(folder / "clip")
