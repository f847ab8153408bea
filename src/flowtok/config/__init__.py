"""Strict conversion between frozen config dataclasses and plain data: dicts, YAML, JSON, `key=value` overrides.

Knows no particular config: each stands directly above the one class that reads it. Named values are in `recipes.py`.
The data's types are in values.py, files in documents.py, changes in overrides.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from flowtok.config.documents import load_data, parse_json, save_data
from flowtok.config.overrides import apply_overrides
from flowtok.config.values import did_you_mean, from_dict, to_dict

__all__ = ["apply_overrides", "did_you_mean", "from_dict", "load", "load_data", "parse_json", "save", "to_dict"]

Config = TypeVar("Config")


def load(cls: type[Config], path: str | Path) -> Config:
    """Reads a config from a .yaml, .yml or .json file, as strictly as `from_dict`."""
    return from_dict(cls, load_data(path), where=str(path))


def save(config: Any, path: str | Path) -> Path:
    """Writes a config as .yaml, .yml or .json; `load` gives an equal one back."""
    return save_data(to_dict(config), path)
