"""The image tokenizer gives the release's moments and pictures; a wrong table or norm would blur every picture."""

from __future__ import annotations

import pytest
import torch
from filling import Golden
from torch import Tensor

from flowtok.checkpoints.official import load_tokenizer
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.nn.gaussian import LOGVAR_RANGE, Gaussian
from flowtok.nn.rope import RotaryTable


def tokens(released_BC1L: Tensor) -> Tensor:
    """The release keeps tokens as (B, C, 1, L)."""
    return released_BC1L.squeeze(2).transpose(1, 2)


def released(z_BLC: Tensor) -> Tensor:
    return z_BLC.transpose(1, 2).unsqueeze(2)


def inputs(golden: Golden, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    image, text = golden.input("image").to(dtype), golden.input("text_guidance").to(dtype)
    return image, tokens(golden.input("latents")).to(dtype), text


def check_outputs(golden: Golden, tokenizer: ImageTokenizer, dtype: torch.dtype) -> None:
    image, z, text = inputs(golden, dtype)
    ending = ".f64" if dtype == torch.float64 else ""
    golden.check(f"moments{ending}", released(tokenizer.encoder(image, tokenizer.latent_tokens)))
    golden.check(f"image{ending}", tokenizer.decode(z, text))
    if not ending:
        posterior = tokenizer.encode(image)
        golden.check("mean", released(posterior.mean_BLC))
        golden.check("logvar", released(posterior.logvar_BLC))


def test_tiny_tokenizer() -> None:
    golden = Golden("flowtitok_tiny")
    tokenizer = load_tokenizer(golden.weights())
    assert (tokenizer.config.image_size, tokenizer.config.num_tokens) == (64, 16)
    check_outputs(golden, tokenizer, torch.float32)
    check_outputs(golden, tokenizer.double(), torch.float64)


def test_inside_of_the_tiny_tokenizer() -> None:
    golden = Golden("flowtitok_tiny")
    tokenizer = load_tokenizer(golden.weights())
    image, z, text = inputs(golden, torch.float32)
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: seen.__setitem__(name, output))

    for side in ("encoder", "decoder"):
        network = getattr(tokenizer, side)
        network.ln_pre.register_forward_pre_hook(
            lambda _module, arguments, side=side: seen.__setitem__(f"{side}.tokens_before_ln_pre", arguments[0])
        )
        keep(f"{side}.ln_pre", network.ln_pre)
        keep(f"{side}.block0", network.transformer[0])
        keep(f"{side}.block0.attn", network.transformer[0].attn)
        keep(f"{side}.last_block", network.transformer[-1])
    keep("encoder.patch_embed", tokenizer.encoder.patch_embed)
    keep("encoder.block0.ln_1", tokenizer.encoder.transformer[0].ln_1)
    keep("encoder.block0.mlp", tokenizer.encoder.transformer[0].mlp)
    keep("encoder.ln_post", tokenizer.encoder.ln_post)
    tokenizer.decoder.conv_out.register_forward_pre_hook(
        lambda _module, arguments: seen.__setitem__("decoder.ffn_pixel_shuffled", arguments[0])
    )
    tokenizer.encode(image)
    tokenizer.decode(z, text)
    inside = {name for name in golden.spec["outputs"] if name.startswith(("encoder.", "decoder."))}
    assert inside <= set(seen)
    for name in sorted(inside):
        golden.check(name, seen[name])


def test_rotary_tables_of_the_release() -> None:
    golden = Golden("flowtitok_tiny")
    table = RotaryTable(4, 64)
    for side in ("encoder", "decoder"):
        stored = golden.stored[f"buffer:{side}.positional_embedding.freqs_cos"]
        torch.testing.assert_close(table.freqs_cos, stored, rtol=0, atol=6e-8)
        stored = golden.stored[f"buffer:{side}.positional_embedding.freqs_sin"]
        torch.testing.assert_close(table.freqs_sin, stored, rtol=0, atol=6e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("flowtitok_256", 256), ("flowtitok_512_keys", 512)])
def test_release_sizes(name: str, size: int) -> None:
    golden = Golden(name)
    table = RotaryTable(size // 16, 64)
    tables = {
        f"{side}.positional_embedding.{part}": getattr(table, part)
        for side in ("encoder", "decoder")
        for part in ("freqs_cos", "freqs_sin")
    }
    tokenizer = load_tokenizer(golden.weights(tables))
    assert tokenizer.config.image_size == size
    encoder = tokenizer.latent_tokens.numel() + sum(weight.numel() for weight in tokenizer.encoder.parameters())
    assert encoder == 85_803_296
    assert sum(weight.numel() for weight in tokenizer.decoder.parameters()) == 304_047_924
    check_outputs(golden, tokenizer, torch.float32)
    check_outputs(golden, tokenizer.double(), torch.float64)


def test_posterior() -> None:
    golden = Golden("posterior")
    mean, logvar = tokens(golden.input("moments")).chunk(2, dim=-1)
    posterior = Gaussian(mean_BLC=mean, logvar_BLC=logvar.clamp(*LOGVAR_RANGE))
    golden.check("mean", released(posterior.mean_BLC))
    golden.check("logvar", released(posterior.logvar_BLC))
    golden.check("std", released(posterior.std_BLC))
    sample = posterior.sample(tokens(golden.input("eps")))
    golden.check("sample", released(sample))
    golden.check("train_tokens", sample * 1.0143)
    # The release sums channels only; ours sums the tokens too.
    kl_B = golden.stored["kl"].sum(1)
    torch.testing.assert_close(posterior.kl_B(), kl_B, rtol=1e-6, atol=0)
