"""The text projector and its contrastive head give the release's numbers: the flow starts where the weights expect."""

from __future__ import annotations

import pytest
import torch
from filling import Golden

from flowtok.checkpoints.official import load_alignment_head, load_text_projector
from flowtok.text.projector import TextProjector


def check_inside(golden: Golden, projector: TextProjector, prefix: str) -> None:
    text = golden.input("text")
    layer = projector.layers[0]
    attended = layer.attend(text)
    golden.check(f"{prefix}layer0.attn", attended)
    normal = layer.norm_1(text + attended)
    golden.check(f"{prefix}layer0.norm1", normal)
    golden.check(f"{prefix}layer0.feed_forward", layer.feed_forward(normal))
    x = text
    for number, layer in enumerate(projector.layers):
        x = layer(x)
        if number == 0:
            golden.check(f"{prefix}layer0", x)
    golden.check(f"{prefix}last_layer", x)
    tokens = projector(text)
    golden.check("mu", tokens.mean_BLC)
    golden.check("logvar", tokens.logvar_BLC)
    golden.check("x0", tokens.sample(golden.input("eps")))


@pytest.mark.parametrize(("name", "heads", "prefix"), [("flowtok_tiny", 4, "context."), ("text_projector", None, "")])
def test_projector(name: str, heads: int | None, prefix: str) -> None:
    golden = Golden(name)
    weights, text = golden.weights(), golden.input("text")
    check_inside(golden, load_text_projector(weights, heads=heads).eval(), prefix)
    double = load_text_projector(weights, heads=heads, dtype=torch.float64).eval()(text.double())
    golden.check("mu.f64", double.mean_BLC)
    golden.check("logvar.f64", double.logvar_BLC)
    head = load_alignment_head(weights)
    assert head is not None
    golden.check("projected", head(text))
    if "projected.f64" in golden.stored:
        golden.check("projected.f64", head.double()(text.double()))
