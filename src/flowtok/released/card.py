"""The model card of an imported model: what it is, where its weights come from, how it is used.

Says nothing of licences that is not known; see importing.py for when it is written.
"""

from collections.abc import Mapping
from typing import Any

from flowtok.components import HOW_TO_ADD
from flowtok.flow.transformer import VelocityTransformerConfig

# Depth and width of the velocity networks that have a name; the same sizes as in recipes.py.
SIZES = {(12, 384): "S", (12, 768): "B", (24, 1024): "L", (28, 1152): "XL", (36, 1280): "H"}


def size_name(config: VelocityTransformerConfig) -> str | None:
    """S, B, L, XL or H; None for another size."""
    return SIZES.get((config.depth, config.width))


def model_card(
    folder: str, title: str, pixels: int | None, configs: Mapping[str, Any], sources: Mapping[str, Any]
) -> str:
    """The card as Markdown."""
    velocity = configs["velocity"]
    side = f"{pixels} x {pixels} pixels" if pixels else "no image tokenizer yet"
    lines = [
        f"# {title}",
        "",
        f"The authors' {title} ({velocity.depth} layers, width {velocity.width}; {side}), imported into flowtok.",
        "The weights were not trained here and not changed, apart from their float type where another was asked for.",
        "",
        "## Where the weights come from",
        "",
        "| component | imported from | bytes |",
        "|---|---|---|",
        *(f"| {part} | `{source['source']}` | {source['bytes']:,} |" for part, source in sources.items()),
        "",
        "FlowTok is by its authors (Hub repository `turkeyju/FlowTok`), CLIP by OpenAI. What you may do with these",
        "weights is theirs to say: flowtok does not know their licence and gives none for them.",
        "",
        "## Use",
        "",
        "```bash",
        f'flowtok generate "a red heart" --model {folder} -o heart.png',
        "```",
        "",
        "Sampled as in the release unless told otherwise: 20 Euler steps on the time grid `release`, guidance 2.0,",
        "tokens scaled by 1.0143.",
    ]
    if "text_encoder" in configs:
        lines += [f"The text tower runs with the activation `{configs['text_encoder'].activation}`."]
    lines += [f"\nNo {part} yet; {add}" for part, add in HOW_TO_ADD.items() if part not in configs]
    return "\n".join(lines) + "\n"
