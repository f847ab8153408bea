"""The golden fixtures: weights and inputs drawn by a fixed rule from their names, and the outputs to be met.

NAME.json lists every released key with its shape and kind, every input and every output; NAME.safetensors holds the
outputs and small tables. Both are described in docs/checkpoints.md. A weight is drawn from numpy's default generator
seeded with crc32(key) + seed, so full-size networks are tested without weight files.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "fixtures"

# float32 rounding moves these outputs by up to 1.1e-6 of their largest value (measured against float64).
FLOAT32 = 5e-6
# The same formulas in float64 from the same float32 weights and tables; only the order of sums differs.
FLOAT64 = 1e-10


def draws(name: str, seed: int) -> np.random.Generator:
    """The generator that belongs to a key or input."""
    return np.random.default_rng(zlib.crc32(name.encode()) + seed)


def weight(key: str, shape: list[int], seed: int) -> Tensor:
    """A parameter: gains around 1, other vectors around 0 (both 0.02 wide), everything else scaled by its fan-in."""
    numbers = draws(key, seed).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        numbers *= np.float32(math.prod(shape[1:]) ** -0.5)
    else:
        numbers *= np.float32(0.02)
        if key.split(".")[-1] in ("weight", "g"):
            numbers += np.float32(1.0)
    return torch.from_numpy(numbers)


class Golden:
    """One fixture."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        path = FOLDER / f"{name}.safetensors"
        self.stored: dict[str, Tensor] = load_file(path) if path.exists() else {}
        self.seed: int = self.spec.get("seed", 0)

    def weights(self, tables: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The whole state dict by its released keys; tables that the fixture does not hold are taken from `tables`."""
        state = {}
        for key, shape, kind in self.spec["keys"]:
            if kind == "fill":
                state[key] = weight(key, shape, self.seed)
            elif kind == "const":
                state[key] = torch.tensor(self.spec["consts"][key], dtype=torch.float32).reshape(shape)
            elif f"buffer:{key}" in self.stored:
                state[key] = self.stored[f"buffer:{key}"]
            else:
                state[key] = (tables or {})[key]
                assert list(state[key].shape) == shape
        return state

    def input(self, name: str) -> Tensor:
        """An input by its name."""
        (entry,) = (entry for entry in self.spec["inputs"] if entry["name"] == name)
        shape = entry["shape"]
        if entry["kind"] == "literal":
            return torch.from_numpy(np.asarray(entry["values"], dtype=entry.get("dtype", "float32")).reshape(shape))
        generator = draws(f"input:{name}", self.seed)
        if entry["kind"] == "uniform":
            return torch.from_numpy(generator.random(shape, dtype=np.float32))
        numbers = generator.standard_normal(shape, dtype=np.float32) * np.float32(entry.get("scale", 1.0))
        return torch.from_numpy(numbers)

    def check(self, name: str, got: Tensor, tolerance: float | None = None) -> None:
        """Asserts that an output is met, within a tolerance relative to its largest absolute value."""
        entry = self.spec["outputs"][name]
        if tolerance is None:
            tolerance = FLOAT64 if name.endswith(".f64") else FLOAT32
        expected = self.stored[name].double().flatten()
        assert got.numel() == math.prod(entry["shape"]), f"{self.name}: {name} has shape {tuple(got.shape)}"
        seen = got.detach().double().flatten()
        seen = seen if entry["store"] == "full" else seen[:: entry["stride"]]
        error = ((seen - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
        print(f"parity {self.name}: {name}: {error:.2e} of {tolerance:.0e}")
        assert error <= tolerance, f"{self.name}: {name} is off by {error:.2e} of its largest value"


def doubled_on_the_way(network: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """The network in float64 with one block at a time widened, so that the largest fits into little memory."""
    for child in network.children():
        if child is not blocks:
            child.double()
    for parameter in network.parameters(recurse=False):
        parameter.data = parameter.data.double()
    # The modulation layers are called by themselves, before the blocks.
    for module in (*blocks, *(block.modulation for block in blocks)):
        module.register_forward_pre_hook(lambda module, inputs: module.double() and None)
        module.register_forward_hook(lambda module, inputs, output: module.float() and None)
    return network
