"""What every test shares: few threads, no network, caches in a temporary folder, the same seeds each time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# Before torch and huggingface_hub are imported: they read these once.
_CACHE = Path(tempfile.gettempdir()) / "flowtok-test-cache"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HOME"] = str(_CACHE / "hub")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
from hypothesis import HealthCheck, settings

# Machines differ and nothing is timed here; the database would leave files in the working copy.
settings.register_profile(
    "flowtok",
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("flowtok")


@pytest.fixture(autouse=True)
def same_seed_each_time() -> None:
    """A test gives the same result alone, in any order and in the whole suite."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working copy."""
    return Path(__file__).resolve().parents[1]
