"""Arithmetic over prompts: "king - man + woman" read as signs and prompts, and summed as text tokens.

Knows no picture; `FlowTok.interpolate` in pipeline.py draws what comes out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.text.encoder import TextEncoder
from flowtok.text.projector import TextProjector


@dataclass(frozen=True, kw_only=True)
class TextPoint:
    """A point on the text side, with the features that guide the decoder of a text-guided tokenizer."""

    z_LC: Tensor
    features_SE: Tensor

    def towards(self, other: "TextPoint", share: float) -> "TextPoint":
        """The point at a share (0 here, 1 there) of the straight way to another."""
        return TextPoint(
            z_LC=torch.lerp(self.z_LC, other.z_LC, share),
            features_SE=torch.lerp(self.features_SE, other.features_SE, share),
        )


def parse_arithmetic(text: str) -> list[tuple[int, str]]:
    """Splits "king - man + woman" into signs and prompts; a sign stands between spaces, so "t-shirt" is one word.

    Raises:
        FlowTokError: A sign without a prompt on both sides, or more minus than plus, which has no middle.
    """
    first, *rest = re.split(r"(?:^|\s+)([+-])(?=\s|$)", text)
    signed = zip(rest[::2], rest[1::2], strict=True)
    terms = [(1, first.strip()), *((1 if sign == "+" else -1, term.strip()) for sign, term in signed)]
    if rest and not all(term for _, term in terms):
        raise FlowTokError(f"{text!r} has a + or - without a prompt on both sides")
    if sum(sign for sign, _ in terms) < 1:
        raise FlowTokError(f"{text!r} takes away as much as it gives; add a prompt, as in 'king - man + woman'")
    return terms


def text_point(
    terms: Sequence[tuple[int, str]], encoder: TextEncoder, projector: TextProjector, noise_LC: Tensor
) -> TextPoint:
    """The weighted mean of the text tokens of some prompts, each computed alone, all with the same noise.

    Args:
        terms: Signs and prompts, as `parse_arithmetic` gives them.
        encoder: Prompts to features.
        projector: Features to tokens.
        noise_LC: Picks the tokens; on the networks' device.
    """
    total = sum(sign for sign, _ in terms)
    z_LC, features_SE = torch.zeros(()), torch.zeros(())
    for sign, prompt in terms:
        features_BSE = encoder.encode([prompt]).features_BSE
        z_LC = z_LC + sign / total * projector(features_BSE).sample(noise_LC[None])[0]
        features_SE = features_SE + sign / total * features_BSE[0]
    return TextPoint(z_LC=z_LC, features_SE=features_SE)
