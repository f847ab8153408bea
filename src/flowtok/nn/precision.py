"""Which type of numbers a device multiplies fastest, by what it is: a rule, so that a machine always says the same.

Knows no network. What a machine really reaches is measured by app/bench.py.
"""

import torch

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "auto")


def best_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32: CPUs with AMX, GPUs since Ampere; else float32.

    A CPU with AVX-512's bfloat16 instructions alone computes it slower than float32 (docs/lab-notes.md).

    Args:
        device: Such as "cpu" or "cuda:1".
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.bfloat16
    return torch.float32
