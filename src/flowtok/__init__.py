"""FlowTok: a picture from words and words from a picture, by one flow between two sets of tokens.

What a user imports. Importing it stays light: torch and the networks come with the first use of a name below.
Start reading in `pipeline.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowtok.checkpoints.catalogue import list_models
    from flowtok.pipeline import FlowTok, load

__version__ = "0.1.0"

__all__ = ["FlowTok", "__version__", "list_models", "load"]

_HOMES = {"FlowTok": "flowtok.pipeline", "load": "flowtok.pipeline", "list_models": "flowtok.checkpoints.catalogue"}


def __getattr__(name: str) -> Any:
    """Imports the module of a public name when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flowtok' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
