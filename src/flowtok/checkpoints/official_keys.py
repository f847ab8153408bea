"""The key names of the authors' released checkpoints and ours, as tables that are read in both directions.

Knows no module and no file; official.py builds modules with them.
"""

from collections.abc import Iterable
from itertools import groupby

Names = dict[str, str]
"""Released keys and ours for each."""

LINEAR = ("weight", "bias")

# Rows of (released name, our name, leaves below both). {i} counts blocks or layers.
VELOCITY_KEYS = (
    ("pos_embed", "positions_1LD", ()),
    ("x_embedder", "tokens_in", LINEAR),
    ("t_embedder.mlp.0", "time.fc1", LINEAR),
    ("t_embedder.mlp.2", "time.fc2", LINEAR),
    ("y_embedder.embedding_table", "null", ("weight",)),
    ("blocks.{i}.attn.qkv", "blocks.{i}.attention.qkv", LINEAR),
    ("blocks.{i}.attn.proj", "blocks.{i}.attention.proj", LINEAR),
    ("blocks.{i}.mlp.fc1", "blocks.{i}.feed_forward.fc1", LINEAR),
    ("blocks.{i}.mlp.fc2", "blocks.{i}.feed_forward.fc2", LINEAR),
    ("blocks.{i}.adaLN_modulation.1", "blocks.{i}.modulation", LINEAR),
    ("final_layer.linear", "head.linear", LINEAR),
    ("final_layer.adaLN_modulation.1", "head.modulation", LINEAR),
)
PROJECTOR_KEYS = (
    ("context_encoder.layers.{i}.attn.W_Q", "layers.{i}.query", LINEAR),
    ("context_encoder.layers.{i}.attn.W_K", "layers.{i}.key", LINEAR),
    ("context_encoder.layers.{i}.attn.W_V", "layers.{i}.value", LINEAR),
    ("context_encoder.layers.{i}.attn.W_O", "layers.{i}.out", LINEAR),
    ("context_encoder.layers.{i}.feed_forward.ffn_1", "layers.{i}.fc1", LINEAR),
    ("context_encoder.layers.{i}.feed_forward.ffn_2", "layers.{i}.fc2", LINEAR),
    ("context_encoder.layers.{i}.norm1.g", "layers.{i}.norm_1.gain", ()),
    ("context_encoder.layers.{i}.norm1.b", "layers.{i}.norm_1.bias", ()),
    ("context_encoder.layers.{i}.norm2.g", "layers.{i}.norm_2.gain", ()),
    ("context_encoder.layers.{i}.norm2.b", "layers.{i}.norm_2.bias", ()),
    ("context_encoder.linear", "to_moments", LINEAR),
)
HEAD_KEYS = (
    ("t2t_temperature", "log_temperature", ()),
    ("context_projector.0", "fc1", LINEAR),
    ("context_projector.2", "fc2", LINEAR),
    ("context_projector.4", "fc3", LINEAR),
)
TOKENIZER_ENCODER_KEYS = (
    ("latent_tokens", "latent_tokens", ()),
    ("encoder.latent_token_positional_embedding", "encoder.latent_token_positional_embedding", ()),
    ("encoder.patch_embed", "encoder.patch_embed", LINEAR),
    ("encoder.conv_out", "encoder.to_moments", LINEAR),
)
TOKENIZER_DECODER_KEYS = (
    ("decoder.mask_token", "decoder.mask_token", ()),
    ("decoder.latent_token_positional_embedding", "decoder.latent_token_positional_embedding", ()),
    ("decoder.text_guidance_positional_embedding", "decoder.text_guidance_positional_embedding", ()),
    ("decoder.decoder_embed", "decoder.decoder_embed", LINEAR),
    ("decoder.text_guidance_proj", "decoder.text_guidance_proj", LINEAR),
    ("decoder.ffn.0", "decoder.to_pixels", LINEAR),
    ("decoder.conv_out", "decoder.conv_out", LINEAR),
)
# Both sides of the tokenizer have these; the names are the released ones.
VISION_KEYS = (
    ("positional_embedding", ("freqs_cos", "freqs_sin")),
    ("ln_pre", LINEAR),
    ("ln_post", LINEAR),
    ("transformer.{i}.ln_1", LINEAR),
    ("transformer.{i}.attn.qkv", LINEAR),
    ("transformer.{i}.attn.proj", LINEAR),
    ("transformer.{i}.ln_2", LINEAR),
    ("transformer.{i}.mlp.w12", LINEAR),
    ("transformer.{i}.mlp.w3", LINEAR),
)
# Convolutions over single pixels in the release, linear layers here: the same numbers without two axes of length 1.
POINTWISE = ("encoder.conv_out.weight", "decoder.ffn.0.weight")
# What each component's keys begin with, in whatever file they stand.
BEGINNINGS = {
    "velocity network": ("pos_embed", "x_embedder.", "t_embedder.", "y_embedder.", "blocks.", "final_layer."),
    "text projector": ("context_encoder.",),
    "alignment head": ("context_projector.", "t2t_temperature"),
    "image tokenizer": ("latent_tokens", "encoder.", "decoder."),
}


def names(table: Iterable[tuple[str, str, tuple[str, ...]]], depth: int = 1) -> Names:
    """All released keys of a table and ours for each, in the released order."""
    pairs: Names = {}
    for repeated, rows in groupby(table, key=lambda row: "{i}" in row[0]):
        group = list(rows)
        for i in range(depth if repeated else 1):
            for theirs, ours, leaves in group:
                for leaf in (f".{leaf}" for leaf in leaves) if leaves else ("",):
                    pairs[theirs.replace("{i}", str(i)) + leaf] = ours.replace("{i}", str(i)) + leaf
    return pairs


def tokenizer_names(encoder_depth: int, decoder_depth: int) -> Names:
    """All released keys of the image tokenizer and ours for each."""
    pairs: Names = {}
    for side, depth, rows in (
        ("encoder", encoder_depth, TOKENIZER_ENCODER_KEYS),
        ("decoder", decoder_depth, TOKENIZER_DECODER_KEYS),
    ):
        shared = ((f"{side}.{name}", f"{side}.{name}", leaves) for name, leaves in VISION_KEYS)
        pairs |= names(rows) | names(shared, depth)
    return pairs
