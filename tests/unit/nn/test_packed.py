"""Packed layers compute what the plain ones do, whatever else is in the batch, and give their weights back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowtok.errors import FlowTokError
from flowtok.nn import packed
from flowtok.nn.blocks import FeedForward
from flowtok.nn.packed import PackedLinear, can_pack, pack_linears

DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(not can_pack(dtype), reason="this torch or processor has no product"))
    for dtype in (torch.float32, torch.bfloat16)
]


def drawn(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    for weight in network.requires_grad_(False).parameters():
        weight.copy_(torch.randn(weight.shape, generator=draws) * weight.shape[-1] ** -0.5)
    return network.to(dtype)


def inputs(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_layer_does(dtype: torch.dtype, bias: bool) -> None:
    """In float32 only the order of the sums differs, 3e-7 of the result with this width; bfloat16 is rounded once, by
    2e-3 at most of two layers that differ in that order. Sides that 8 does not divide are those of image tokenizers."""
    plain = drawn(nn.Linear(341, 90, bias=bias), dtype)
    assert isinstance(plain, nn.Linear)
    x = inputs(2, 5, 341, dtype=dtype)
    expected, found = plain(x), PackedLinear(plain)(x)
    assert found.shape == expected.shape and found.dtype is dtype
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    assert error < (1e-6 if dtype is torch.float32 else 2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_feed_forward_layer_has_one_gelu(dtype: torch.dtype) -> None:
    """Joined and computed again, or joined to the wrong product, it would draw noise; in bfloat16 the plain layer
    rounds once more, so both are held against float64."""
    layer = drawn(FeedForward(64, 256), dtype)
    x = inputs(3, 7, 64, dtype=dtype)
    exact = drawn(FeedForward(64, 256), dtype).double()(x.double())
    plain = (layer(x).double() - exact).norm() / exact.norm()
    assert pack_linears(layer) == 2
    error = (layer(x).double() - exact).norm() / exact.norm()
    assert error < (1e-6 if dtype is torch.float32 else plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [6, 32, 77])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype, tokens: int) -> None:
    """The same seed must give the same picture beside any others: a kernel chosen by size may not sum otherwise."""
    layer = drawn(FeedForward(128, 512), dtype)
    pack_linears(layer)
    x = inputs(8, tokens, 128, dtype=dtype)
    together = layer(x)
    for i in (0, 3, 7):
        assert layer(x[i : i + 1]).equal(together[i : i + 1])
    assert layer(x[2:5]).equal(together[2:5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_come_back_as_they_were(dtype: torch.dtype) -> None:
    """A model that is saved after it was packed must be the model that was opened, under the same names."""
    network = drawn(nn.Sequential(nn.Linear(16, 64), FeedForward(80, 100), nn.Linear(64, 64, bias=False)), dtype)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    assert pack_linears(network) == 3, "layers narrower than 64 stay"
    after = network.state_dict()
    assert list(after) == list(before) and all(after[name].equal(weight) for name, weight in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_weight_goes(dtype: torch.dtype) -> None:
    """XL's layers take 1.8 GB: held twice they would not fit where they did."""
    network = drawn(FeedForward(64, 256), dtype)
    pack_linears(network)
    assert sum(weight.numel() for weight in (*network.parameters(), *network.buffers())) == 64 + 256, "the biases"


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_not_moved_or_cast(dtype: torch.dtype) -> None:
    """Only the bias would move, and the first picture end in an error of oneDNN's."""
    network = nn.Sequential(PackedLinear(nn.Linear(64, 64).to(dtype)))
    network.to("cpu")
    for move in (lambda: network.to("meta"), lambda: network.double()):
        with pytest.raises(FlowTokError, match="open the model again"):
            move()


def test_other_processors_and_types_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators are torch's own affair: where one is missing nothing may be packed, rather than fail in a call."""
    assert not can_pack(torch.float16) and not can_pack(torch.float64)
    monkeypatch.setattr(packed.platform, "machine", lambda: "aarch64")
    assert not can_pack(torch.float32)
    monkeypatch.setattr(packed.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not can_pack(torch.float32)
