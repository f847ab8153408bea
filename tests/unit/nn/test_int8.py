"""Layers in int8 stay near the exact ones, whatever else is in the batch, and are never saved as if they were exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowtok.errors import CheckpointError
from flowtok.nn.int8 import Int8Linear, round_linears
from flowtok.nn.precision import best_dtype


def pair(bias: bool = True) -> tuple[nn.Linear, Int8Linear]:
    draws = torch.Generator().manual_seed(0)
    exact = nn.Linear(64, 96, bias=bias).requires_grad_(False)
    exact.weight.normal_(generator=draws)
    return exact, Int8Linear(exact)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_near_the_exact_layer(bias: bool) -> None:
    """Rounding to 255 values leaves about 1 % of the result; a wrong scale or a lost bias leaves far more."""
    exact, rounded = pair(bias)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    x[0, 0] *= 1000.0  # a token of its own size must not cost the others their digits
    expected = exact(x)
    error = (rounded(x) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert rounded(x).shape == expected.shape and error.max() < 0.02
    assert rounded(torch.zeros(1, 3, 64)).equal(exact(torch.zeros(1, 3, 64)))


def test_a_token_does_not_depend_on_its_batch() -> None:
    """The same seed must give the same picture beside any others."""
    _, rounded = pair()
    x = torch.randn(6, 5, 64, generator=torch.Generator().manual_seed(1))
    assert rounded(x)[2:3].equal(rounded(x[2:3]))


def test_sides_that_8_does_not_divide() -> None:
    """Feed-forward layers of image tokenizers have such sides: 341, 682, 2730."""
    draws = torch.Generator().manual_seed(0)
    exact = nn.Linear(341, 70).requires_grad_(False)
    exact.weight.normal_(generator=draws)
    x, rounded = torch.randn(3, 341, generator=draws), Int8Linear(exact)
    error = (rounded(x) - exact(x)).norm(dim=-1) / exact(x).norm(dim=-1)
    assert error.max() < 0.02


def test_narrow_layers_stay_and_nothing_is_saved() -> None:
    network = nn.Sequential(nn.Linear(16, 64), nn.Sequential(nn.Linear(64, 64)), nn.Linear(64, 100), nn.Linear(100, 63))
    assert round_linears(network) == 2
    assert [type(layer) for layer in (network[0], network[1][0], network[2], network[3])] == [
        nn.Linear, Int8Linear, Int8Linear, nn.Linear,
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="save the model before"):
        network.state_dict()


def test_the_best_type_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 is slow it is half as fast as float32, where it is fast four times: a wrong rule costs as much."""
    for has_amx, has_products, name, best in (
        (True, True, "Intel(R) Xeon(R) Platinum", torch.bfloat16),
        (False, True, "Intel(R) Xeon(R) Platinum", torch.float32),
        (False, True, "AMD EPYC", torch.bfloat16),
        (False, False, "AMD EPYC", torch.float32),
    ):
        able = {"amx_bf16": has_amx, "avx512_bf16": has_products, "cpu_name": name}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert best_dtype("cpu") == best
    assert best_dtype("meta") == torch.float32
