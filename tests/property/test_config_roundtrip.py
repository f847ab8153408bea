"""Any config, saved and loaded or overridden value by value, is the same config: a run's file can be trusted."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowtok import config
from flowtok.errors import FlowTokError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    count: int = 1
    rate: float = 0.5
    word: str = ""
    mode: Literal["on", "off", 3] = "off"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    flag: bool = False
    limit: float | None = None
    named: dict[str, int] = dataclasses.field(default_factory=dict)
    size: int | str = 0


# YAML's own printable characters and every other: names and captions come from anywhere.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, count=st.integers(), rate=floats, word=texts, mode=st.sampled_from(["on", "off", 3]))
outers = st.builds(
    Outer,
    inner=inners,
    maybe=st.none() | inners,
    many=st.lists(inners, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), floats),
    flag=st.booleans(),
    limit=st.none() | floats,
    named=st.dictionaries(texts, st.integers(), max_size=3),
    size=st.integers() | texts,
)


@given(outers)
def test_plain_data_round_trip(value: Outer) -> None:
    plain = config.to_dict(value)
    assert config.from_dict(Outer, plain) == value
    assert json.loads(json.dumps(plain)) == plain


@given(outers)
def test_file_round_trip(value: Outer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("run.yaml", "run.json"):
            config.save(value, Path(folder) / name)
            assert config.load(Outer, Path(folder) / name) == value


@given(outers, outers)
def test_overrides_lead_from_any_config_to_any_other(start: Outer, end: Outer) -> None:
    def text(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n...\n").strip()

    plain = config.to_dict(end)
    overrides = [f"{key}={text(value)}" for key, value in plain.items() if key not in ("inner", "named", "size")]
    overrides += [f"inner.{key}={text(value)}" for key, value in plain["inner"].items() if key != "word"]
    expected = dataclasses.replace(
        end, inner=dataclasses.replace(end.inner, word=start.inner.word), named=start.named, size=start.size
    )
    assert config.apply_overrides(start, overrides) == expected


@given(st.text(max_size=30))
def test_no_text_breaks_the_readers(text: str) -> None:
    """Whatever a user types after `=` or into a key gives a value or one clear line, never a traceback."""
    try:
        changed = config.apply_overrides(Outer(), [f"inner.word={text}"])
        assert changed.inner.word == text.strip()
    except FlowTokError as error:
        raise AssertionError(f"any text is a word: {error}") from error
    for override in (text, f"{text}=1", f"inner.{text}=1", f"limit={text}", f"maybe={text}", f"many={text}"):
        try:
            config.apply_overrides(Outer(), [override])
        except FlowTokError:
            continue
    assert yaml.safe_load(yaml.safe_dump(text)) == text
