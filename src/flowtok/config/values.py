"""Between config dataclasses and plain data: every value is brought to its field's annotated type, or refused.

Knows no particular config and no file; see documents.py for those.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from flowtok.config.documents import parse_yaml
from flowtok.errors import FlowTokError

Config = TypeVar("Config")


class Written(str):
    """The text of an override, whose meaning depends on the field it lands in: a number, a list, or itself."""


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config into plain data that YAML and JSON can hold: tuples become lists, enums their values."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type), f"not a config: {config!r}"
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def from_dict(cls: type[Config], data: Mapping[str, Any], *, where: str = "") -> Config:
    """Builds a config from plain data; fields left out keep their defaults.

    Args:
        cls: the dataclass to build; nested dataclasses, tuples, literals, enums, paths and optionals are followed.
        data: plain data as `to_dict` gives it. Where a field allows several dataclasses, the first that fits is taken.
        where: a prefix for the messages, such as a file name.

    Raises:
        FlowTokError: an unknown key (the nearest known one is named), a missing key, a value of another type, or
            values that clash by the config's own rules.
    """
    return _dataclass(cls, data, [where] if where else [])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ends an error message about an unknown name: the nearest known one, or all of them where they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(word.lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    if near:
        return "did you mean " + next(name for name in names if name.lower() == near[0]) + "?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown or 'none'}"


def _plain(value: Any) -> Any:
    """Plain data for one value of a config."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    assert value is None or isinstance(value, (bool, int, float, str)), f"a config cannot hold {value!r}"
    return value


def _dataclass(cls: type[Config], data: Any, at: list[str]) -> Config:
    """Builds dataclass `cls` from a mapping found at key path `at`."""
    assert dataclasses.is_dataclass(cls), f"not a config class: {cls!r}"
    data = _read(data)
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise _error(at, f"expected the fields of {cls.__name__}, got {_shown(data)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = [str(key) for key in data if key not in fields]
    if unknown:
        raise _error(at, f"unknown key {unknown[0]!r} for {cls.__name__}; {did_you_mean(unknown[0], fields)}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in data]
    if missing:
        raise _error(at, f"{cls.__name__} needs {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    values = {key: _coerce(hints[key], value, [*at, key]) for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise _error(at, str(error)) from error


def _coerce(kind: Any, value: Any, at: list[str]) -> Any:
    """Turns plain `value` into the annotated type `kind`, or says why it cannot."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _coerce(arguments[0], value, at)
    if origin in (Union, types.UnionType):
        return _union(kind, arguments, value, at)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, at)
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return _choice(kind, arguments, value, at)
    if origin in (tuple, list):
        return _sequence(origin, arguments, _read(value), at)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        value = _read(value)
        if not isinstance(value, Mapping):
            raise _error(at, f"expected a mapping, got {_shown(value)}")
        return {str(key): _coerce(arguments[1], item, [*at, str(key)]) for key, item in value.items()}
    return _scalar(kind, value, at)


def _scalar(kind: Any, value: Any, at: list[str]) -> Any:
    """A number, a text, a path, a truth value or None."""
    if kind is str:
        if isinstance(value, str):
            return str(value)
    elif kind is Path:
        if isinstance(value, (str, Path)):
            return Path(str(value))
    else:
        value = _read(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind is Any:
            return value
        if kind in (None, type(None)) and value is None:
            return None
        if kind is bool and isinstance(value, bool):
            return value
        if kind is float and number:
            return float(value)
        if kind is int and number and math.isfinite(value) and value == int(value):
            return int(value)
    raise _error(at, f"expected {_named(kind)}, got {_shown(value)}")


def _union(kind: Any, members: tuple[Any, ...], value: Any, at: list[str]) -> Any:
    """The first member that takes the value; None and text come last, so that `null` and `3` mean what they say."""
    if type(None) in members and _read(value) is None:
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        return _coerce(rest[0], value, at)
    exact = [member for member in rest if member is type(_read(value))]
    for member in exact + sorted(rest, key=lambda member: member in (str, Path)):
        try:
            return _coerce(member, value, at)
        except FlowTokError:
            continue
    raise _error(at, f"expected {_named(kind)}, got {_shown(value)}")


def _choice(kind: Any, arguments: tuple[Any, ...], value: Any, at: list[str]) -> Any:
    """One of the values of a Literal or an Enum."""
    allowed = {argument: argument for argument in arguments} or {member.value: member for member in kind}
    for candidate in dict.fromkeys([value, _read(value)]) if isinstance(value, Written) else [value]:
        for plain, meant in allowed.items():
            if candidate is meant or (type(plain) in (type(candidate), str) and candidate == plain):
                return meant
    shown = ", ".join(str(plain) for plain in allowed)
    raise _error(at, f"got {_shown(value)}, allowed: {shown}")


def _sequence(origin: type, arguments: tuple[Any, ...], value: Any, at: list[str]) -> Any:
    """A tuple or list: of one kind and any length, or of fixed length."""
    if not isinstance(value, (list, tuple)):
        raise _error(at, f"expected a list, got {_shown(value)}")
    if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        kinds = [arguments[0]] * len(value)
    else:
        kinds = [] if arguments == ((),) else list(arguments)
    if len(kinds) != len(value):
        raise _error(at, f"expected {len(kinds)} values, got {len(value)}")
    items = (_coerce(kind, item, [*at, str(i)]) for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))
    return origin(items)


def _read(value: Any) -> Any:
    """The value that an override's text stands for; everything else as it is."""
    if not isinstance(value, Written):
        return value
    try:
        return parse_yaml(value, "override")
    except FlowTokError:
        return str(value)


def _named(kind: Any) -> str:
    """A type as a message names it."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    members = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else ()
    if members:
        return " or ".join("null" if member is type(None) else _named(member) for member in members)
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    """A value as a message shows it: at most one short line."""
    text = repr(str(value) if isinstance(value, Written) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _error(at: list[str], message: str) -> FlowTokError:
    return FlowTokError(f"{'.'.join(at)}: {message}" if at else message)
