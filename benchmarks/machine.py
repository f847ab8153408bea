"""What the machine reaches by itself: matrix products, memory, attention in two ways, one layer in int8.

Knows sizes, not models; sampling.py prints these beside the pictures.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from measuring import race
from torch import Tensor

from flowtok.app.bench_rates import TYPES, memory_rate, product_rate
from flowtok.nn import attention
from flowtok.nn.int8 import Int8Linear


def print_ceilings(
    widths: dict[tuple[str, int], tuple[int, int]], seconds: float, device: str = "cpu"
) -> dict[tuple[str, int], dict[str, float]]:
    """The rate of matrix products of each size's own shapes.

    Each is the better of the plain and the packed product, where there is one.

    Args:
        widths: Tokens of a guided step and width of the network, by size and batch.
        seconds: For each product.
        device: Where.

    Returns:
        By size and batch: operations a second by type, and as "memory" the bytes that are read in a second.
    """
    types = TYPES if device == "cpu" else TYPES[:3]  # int8 on a GPU takes other shapes
    print("\n## What the machine reaches: matrix products, GFLOP/s\n", flush=True)
    print(f"| size | batch | {' | '.join(types)} |\n|---|---|{'---|' * len(types)}", flush=True)
    memory = memory_rate(seconds=seconds, device=device)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for (size, batch), (rows, width) in widths.items():
        shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        rates = {
            kind: max(product_rate(kind, rows, *shape, seconds=seconds, device=device) for shape in shapes)
            for kind in types
        }
        found[size, batch] = {**rates, "memory": memory}
        print(f"| {size} | {batch} | {' | '.join(f'{rates[kind] / 1e9:.0f}' for kind in types)} |", flush=True)
    print(f"\nMemory is read at {memory / 1e9:.1f} GB/s.", flush=True)
    return found


@torch.inference_mode()
def print_attention(seconds: float) -> None:
    """Fused attention beside the written-out softmax, in turns."""
    print("\n## Attention of 16 heads of width 64: milliseconds fused / written out\n", flush=True)
    print("| tokens | float32, batch 1 | batch 16 | bfloat16, batch 1 | batch 16 | chosen |\n|---|---|---|---|---|---|")
    for tokens in (32, 77, 96, 128, 154, 334, 410):
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 16):
                qkv = [torch.randn(batch, 16, tokens, 64).to(dtype) for _ in range(3)]
                fused = partial(torch.nn.functional.scaled_dot_product_attention, *qkv)
                found = race({"fused": fused, "written": partial(written_out, *qkv)}, 5, seconds)
                cells.append(f"{found['fused'] * 1e3:.2f} / {found['written'] * 1e3:.2f}")
        chosen = "written out" if tokens <= attention.LONGEST_WRITTEN_OUT else "fused"
        print(f"| {tokens} | {' | '.join(cells)} | {chosen} |", flush=True)


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The other of the two ways in nn/attention.py, for any length."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1) @ value


@torch.inference_mode()
def print_rounding(seconds: float) -> None:
    """A linear layer of XL in float32 and in our int8, eager and compiled, and in torchao's where that is installed."""
    print("\n## One linear layer of XL, 1152 to 4608: ms, times float32, error\n", flush=True)
    print("| tokens | layer | ms | times float32 | error |\n|---|---|---|---|---|", flush=True)
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        quantize_ = Int8DynamicActivationInt8WeightConfig = None
    for tokens in (154, 1232):
        exact = torch.nn.Linear(1152, 4608)
        x_1MK = torch.randn(1, tokens, 1152)
        ours = Int8Linear(exact)
        layers: dict[str, Callable[[Tensor], Tensor]] = {
            "float32": exact, "int8, ours": ours, "int8, ours, compiled": torch.compile(ours, dynamic=False),
        }  # fmt: skip
        if quantize_ is not None:
            theirs = copy.deepcopy(exact)
            quantize_(theirs, Int8DynamicActivationInt8WeightConfig())
            layers |= {"int8, torchao": theirs, "int8, torchao, compiled": torch.compile(theirs, dynamic=False)}
        taken = race({name: partial(layer, x_1MK) for name, layer in layers.items()}, 5, 4 * seconds)
        reference = exact(x_1MK)
        for name, layer in layers.items():
            error = ((layer(x_1MK) - reference).square().mean() / reference.square().mean()).sqrt().item()
            times = taken["float32"] / taken[name]
            print(f"| {tokens} | {name} | {taken[name] * 1e3:.2f} | {times:.2f} | {error:.1e} |", flush=True)
