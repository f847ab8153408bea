"""Plain data as text: YAML and JSON files in and out, strict about keys given twice.

Knows no config class; values.py makes configs of the data.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically


def load_data(path: str | Path) -> dict[str, Any]:
    """Reads the mapping that a .yaml, .yml or .json file holds; keys given twice are refused.

    Raises:
        FlowTokError: the file is missing, has another ending, is not UTF-8 text or holds no mapping.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FlowTokError(f"there is no config file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FlowTokError(f"cannot read config file {path}: {error}") from error
    data = parse_json(text, str(path)) if path.suffix == ".json" else parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise FlowTokError(f"{path}: expected `key: value` lines, got {repr(data)[:60]}")
    return data


def save_data(data: dict[str, Any], path: str | Path) -> Path:
    """Writes a mapping as .yaml, .yml or .json.

    Raises:
        FlowTokError: another ending, a folder that cannot be written to, or infinite numbers for JSON.
    """
    path = Path(path)
    _check_suffix(path)
    if path.suffix == ".json":
        try:
            return write_file_atomically(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        except ValueError as error:
            raise FlowTokError(f"cannot write {path}: JSON has no infinite numbers; use a .yaml file") from error
    return write_file_atomically(path, yaml.dump(data, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True))


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML text and refuses a key given twice; `where` names the source in messages."""
    try:
        return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FlowTokError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def parse_json(text: str, where: str) -> Any:
    """Reads JSON text and refuses a key given twice; `where` names the source in messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"key {min(twice)!r} twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FlowTokError(f"{where}: not valid JSON: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise FlowTokError(f"config file {path} must end in .yaml, .yml or .json")


class _YamlLoader(yaml.SafeLoader):
    """YAML that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4) and refuses a key given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType]
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _YamlDumper(yaml.SafeDumper):
    """YAML that quotes texts with unusual line breaks: PyYAML would fold U+0085 and lose it."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_YamlDumper.add_representer(str, _text_node)
