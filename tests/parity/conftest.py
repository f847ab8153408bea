"""Makes filling.py importable by the parity tests and keeps them from storing gradients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Full-size networks keep no activations; the test of a training step turns gradients on again."""
    with torch.no_grad():
        yield
