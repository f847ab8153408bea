"""A misspelt or mistyped setting must stop a run before it starts, with the setting's own name in the message."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any, Literal

import pytest

from flowtok import config
from flowtok.errors import FlowTokError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetConfig:
    width: int = 8
    heads: int = 2
    kind: Literal["mlp", "attention"] = "mlp"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    net: NetConfig = NetConfig()
    teacher: NetConfig | None = None
    stages: tuple[NetConfig, ...] = (NetConfig(),)
    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    limit: int | None = None
    size: int | str = "auto"
    colour: Colour = Colour.RED
    folder: Path = Path("outputs")
    shuffle: bool = True
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: Any = None
    tags: list[str] = dataclasses.field(default_factory=list)


RUN = RunConfig(
    name="long",
    net=NetConfig(width=6, heads=3, kind="attention"),
    teacher=NetConfig(),
    stages=(NetConfig(), NetConfig(width=4)),
    limit=7,
    colour=Colour.BLUE,
    folder=Path("a/b"),
    weights={"kl": 0.5},
    extra={"any": [1, "x", None]},
    tags=["ü", "null"],
)


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_saved_config_is_the_same_when_loaded(tmp_path: Path, suffix: str) -> None:
    """A run started from its own saved config must be the same run."""
    path = tmp_path / f"run.{suffix}"
    config.save(RUN, path)
    assert config.load(RunConfig, path) == RUN


def test_fields_left_out_keep_their_defaults() -> None:
    assert config.from_dict(RunConfig, {"name": "x", "net": {"width": 10}}) == RunConfig(
        name="x", net=NetConfig(width=10)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "nett": {}}, r"unknown key 'nett' for RunConfig; did you mean net\?"),
        ({"name": "x", "net": {"widht": 3}}, r"net: unknown key 'widht' for NetConfig; did you mean width\?"),
        ({"name": "x", "net": {"zzzz": 3}}, r"net: unknown key 'zzzz' for NetConfig; known: heads, kind, width"),
        ({}, "RunConfig needs name"),
        ({"name": 3}, "name: expected text, got 3"),
        ({"name": "x", "net": {"width": "8"}}, "net.width: expected a whole number, got '8'"),
        ({"name": "x", "net": {"width": 8.5}}, r"net.width: expected a whole number, got 8\.5"),
        ({"name": "x", "net": {"width": True}}, "net.width: expected a whole number, got True"),
        ({"name": "x", "net": {"width": float("inf")}}, "net.width: expected a whole number, got inf"),
        ({"name": "x", "net": {"width": 9}}, "net: width 9 is not a multiple of heads 2"),
        ({"name": "x", "net": {"kind": "mpl"}}, "net.kind: got 'mpl', allowed: mlp, attention"),
        ({"name": "x", "net": 3}, "net: expected the fields of NetConfig, got 3"),
        ({"name": "x", "net": None}, "net: expected the fields of NetConfig, got None"),
        ({"name": "x", "stages": [{}, {"heads": 3}]}, "stages.1: width 8 is not a multiple of heads 3"),
        ({"name": "x", "stages": "ab"}, "stages: expected a list, got 'ab'"),
        ({"name": "x", "betas": [0.9]}, "betas: expected 2 values, got 1"),
        ({"name": "x", "rate": "fast"}, "rate: expected a number, got 'fast'"),
        ({"name": "x", "rate": True}, "rate: expected a number, got True"),
        ({"name": "x", "limit": "none"}, "limit: expected a whole number, got 'none'"),
        ({"name": "x", "size": [1]}, r"size: expected a whole number or text, got \[1\]"),
        ({"name": "x", "colour": "green"}, "colour: got 'green', allowed: red, blue"),
        ({"name": "x", "shuffle": 1}, "shuffle: expected true or false, got 1"),
        ({"name": "x", "weights": [1]}, r"weights: expected a mapping, got \[1\]"),
        ({"name": "x", "weights": {"kl": "a"}}, "weights.kl: expected a number, got 'a'"),
        ({"name": "x" * 3, "rate": "y" * 500}, "expected a number, got 'yyy"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowTokError, match=message) as error:
        config.from_dict(RunConfig, data, where="")
    assert len(str(error.value)) < 200


def test_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nnet:\n  widht: 3\n")
    with pytest.raises(FlowTokError, match=r"run\.yaml\.net: unknown key 'widht'"):
        config.load(RunConfig, path)


def test_whole_floats_are_whole_numbers_and_whole_numbers_are_floats() -> None:
    """`1e3` in YAML is a float, and a rate of 1 is an int: both mean what they say."""
    run = config.from_dict(RunConfig, {"name": "x", "rate": 1, "limit": 1e3})
    assert (run.rate, type(run.rate)) == (1.0, float)
    assert (run.limit, type(run.limit)) == (1000, int)


def test_overrides_are_applied_together_and_read_by_the_fields_type() -> None:
    changed = config.apply_overrides(
        RUN,
        [
            "net.width=9",  # 9 and 3 fit each other, 9 and the old heads would too; 10 and 3 would not:
            "stages.0.width=10",
            "stages.0.heads=5",
            "rate=3e-4",
            "name=on",
            "limit=null",
            "teacher=null",
            "betas=[0.8, 0.9]",
            "size=64",
            "colour=red",
            "folder=c/d",
            "shuffle=false",
            "weights.kl=1",
            "weights.l1=2",
            "tags=[a, b]",
        ],
    )
    assert changed == dataclasses.replace(
        RUN,
        net=NetConfig(width=9, heads=3, kind="attention"),
        stages=(NetConfig(width=10, heads=5), NetConfig(width=4)),
        rate=3e-4,
        name="on",
        limit=None,
        teacher=None,
        betas=(0.8, 0.9),
        size=64,
        colour=Colour.RED,
        folder=Path("c/d"),
        shuffle=False,
        weights={"kl": 1.0, "l1": 2.0},
        tags=["a", "b"],
    )
    assert config.apply_overrides(RUN, []) == RUN
    assert config.apply_overrides(RUN, ["size=auto", "name=a=b"]).name == "a=b"
    unset = dataclasses.replace(RUN, teacher=None)
    assert config.apply_overrides(unset, ["teacher.width=4"]).teacher == NetConfig(width=4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("net.widht=3", r"net: unknown key 'widht'.*did you mean width\?"),
        ("net.width=10", "width 10 is not a multiple of heads 3"),
        ("rate=fast", "rate: expected a number, got 'fast'"),
        ("net.kind=mpl", "net.kind: got 'mpl', allowed: mlp, attention"),
        ("rate", "must look like key=value"),
        ("=3", "must look like key=value"),
        ("net..width=3", "must look like key=value"),
        ("net.width.more=3", "width is a single value"),
        ("stages.7.width=3", "'7' is not a position in a list of 2"),
        ("stages.x=3", "'x' is not a position in a list of 2"),
        ("net=3", "net: expected the fields of NetConfig, got 3"),
        ("rate=[", "rate: expected a number"),
        ("rate=", "rate: expected a number, got None"),
    ],
)
def test_override_that_cannot_take_effect_is_refused(override: str, message: str) -> None:
    with pytest.raises(FlowTokError, match=message):
        config.apply_overrides(RUN, [override])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "name: x\nname: y\n", "twice"),
        ("a.json", '{"name": "x", "name": "y"}', "twice"),
        ("a.yaml", "name: [", "not valid YAML"),
        ("a.yaml", "? [1]\n: 2\n", "is not a name"),
        ("a.json", '{"name": ', "not valid JSON"),
        ("a.yaml", "", "expected `key: value` lines, got None"),
        ("a.yaml", "- 1\n", "expected `key: value` lines"),
        ("a.json", "[]", "expected `key: value` lines"),
        ("a.toml", "name = 1", r"must end in \.yaml, \.yml or \.json"),
        ("a.yaml", b"\xff\xfe\x00", "cannot read config file"),
        ("a.yaml", "name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FlowTokError, match=message) as error:
        config.load(RunConfig, path)
    assert "\n" not in str(error.value)


def test_missing_file_and_infinite_json(tmp_path: Path) -> None:
    with pytest.raises(FlowTokError, match="there is no config file"):
        config.load(RunConfig, tmp_path / "no.yaml")
    infinite = dataclasses.replace(RUN, rate=float("inf"))
    with pytest.raises(FlowTokError, match=r"use a \.yaml file"):
        config.save(infinite, tmp_path / "run.json")
    config.save(infinite, tmp_path / "run.yaml")
    assert config.load(RunConfig, tmp_path / "run.yaml") == infinite


def test_scientific_numbers_in_yaml_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as text; a learning rate of '1e-4' helps nobody."""
    path = tmp_path / "run.yaml"
    for text, value in [("1e-4", 1e-4), ("2E5", 2e5), ("-3.e-2", -0.03), ("1.5e3", 1500.0)]:
        path.write_text(f"name: x\nrate: {text}\n")
        assert config.load(RunConfig, path).rate == value


def test_did_you_mean() -> None:
    assert config.did_you_mean("Emojy", ["emoji", "paper"]) == "did you mean emoji?"
    assert config.did_you_mean("qqqq", ["b", "a"]) == "known: a, b"
    assert config.did_you_mean("qqqq", []) == "known: none"
