"""What a run was started with: config.json in its folder, and the refusal to go on with anything else.

Knows configs and a folder, no training.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from flowtok.config import parse_json, to_dict
from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically
from flowtok.train.runtime import Runtime


def claim(folder: Path, record: Mapping[str, Any], runtime: Runtime, *, free: frozenset[str] = frozenset()) -> None:
    """Writes the configuration into a new run's folder, or compares it with the run that is there.

    An earlier record may lack fields that have their default value now: they came later.

    Args:
        folder: The run's folder.
        record: Configs and plain values by name.
        runtime: Where.
        free: Dotted names of what may differ, since it does not change the weights.

    Raises:
        FlowTokError: If the folder holds a run of another configuration.
    """
    path = folder / "config.json"
    if runtime.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_file_atomically(path, json.dumps(_plain(record), indent=2) + "\n")
    runtime.wait_for_all()
    now = json.loads(json.dumps(_plain(record)))
    earlier = json.loads(json.dumps(_completed(parse_json(path.read_text(), str(path)), record)))
    was, now_is = _flat(earlier), _flat(now)
    differing = [key for key in sorted((was.keys() | now_is.keys()) - free) if was.get(key) != now_is.get(key)]
    if differing:
        shown = ", ".join(f"{key} was {was.get(key)} and is {now_is.get(key)}" for key in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise FlowTokError(
            f"{folder} holds a run of another configuration ({shown}{more}); take another folder or delete this one"
        )
    if runtime.is_main:
        for left in folder.glob(".*.part*"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Configs as mappings, at any depth."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _completed(earlier: Any, now: Any) -> Any:
    """An earlier record with the defaults of the fields that its configs did not have yet."""
    if not isinstance(earlier, Mapping):
        return earlier
    if isinstance(now, Mapping):
        return {key: _completed(value, now.get(key)) for key, value in earlier.items()}
    if not is_dataclass(now):
        return earlier
    completed = dict(earlier)
    for field in fields(now):
        if field.name in completed:
            completed[field.name] = _completed(completed[field.name], getattr(now, field.name))
        elif field.default is not MISSING:
            completed[field.name] = _plain(field.default)
        elif field.default_factory is not MISSING:
            completed[field.name] = _plain(field.default_factory())
    return completed


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {
        key: leaf
        for part, branch in tree.items()
        for key, leaf in _flat(branch, f"{name}.{part}" if name else str(part)).items()
    }
