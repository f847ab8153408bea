"""Which type of numbers networks compute in on a device, by what it is: rules, so that a machine always says the same.

Knows no network. What a machine really reaches is measured by app/bench.py.
"""

import torch

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "auto")


def text_dtype(dtype: torch.dtype, device: torch.device | str) -> torch.dtype:
    """What the language encoder and the text projector of a model compute in, whose networks compute in `dtype`.

    float32 for bfloat16 on a CPU: they say where the flow starts, and rounded to bfloat16 they put it further off than
    all rounded steps after it together, for a small share of the arithmetic (docs/speed.md).
    """
    return torch.float32 if dtype is torch.bfloat16 and torch.device(device).type == "cpu" else dtype


def best_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32; else float32.

    These are CPUs with AMX, CPUs of AMD with AVX-512's bfloat16 products (Zen 4 and later), and GPUs since Ampere.
    Intel's CPUs have these products too, but without AMX compute them slower than float32 (docs/lab-notes.md).

    Args:
        device: Such as "cpu" or "cuda:1".
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        is_amd = str(able.get("cpu_name", "")).startswith("AMD")
        fast = able.get("amx_bf16") or (able.get("avx512_bf16") and is_amd)
        return torch.bfloat16 if fast else torch.float32
    return torch.float32
