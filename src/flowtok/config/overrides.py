"""Changes of a config by `key=value`, as the command line takes them.

What a value means is decided by the field it lands in; see values.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from flowtok.config.values import Written, from_dict, to_dict
from flowtok.errors import FlowTokError

Config = TypeVar("Config")


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Returns `config` with `a.b=value` overrides applied together, checked as strictly as `from_dict`.

    Values are read as YAML (`3`, `1e-4`, `true`, `null`, `[1, 2]`); text needs no quotes. The overrides are applied
    at once, so that values that only fit each other (a width and its heads) can be changed in one go.

    Raises:
        FlowTokError: an override without `=`, an unknown key, or a value that does not fit its field.
    """
    data: dict[str, Any] = to_dict(config)
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise FlowTokError(f"override {override!r} must look like key=value, as in train.batch_size=64")
        _set(data, names, Written(text.strip()), override)
    return from_dict(type(config), data)


def _set(data: Any, names: list[str], value: Written, override: str) -> None:
    """Puts `value` under the nested keys `names`; list items are named by their number."""
    for name in names[:-1]:
        if isinstance(data, list):
            data = data[_index(data, name, override)]
        else:
            if data.get(name) is None:
                data[name] = {}
            data = data[name]
        if not isinstance(data, (dict, list)):
            raise FlowTokError(f"override {override!r}: {name} is a single value and has no keys below it")
    if isinstance(data, list):
        data[_index(data, names[-1], override)] = value
    else:
        data[names[-1]] = value


def _index(items: list[Any], name: str, override: str) -> int:
    """The position `name` stands for in a list that an override reaches into."""
    if not name.isdecimal() or int(name) >= len(items):
        raise FlowTokError(f"override {override!r}: {name!r} is not a position in a list of {len(items)}")
    return int(name)
