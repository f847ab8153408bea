"""`flowtok bench` tells a user which settings to take; what it advises must be what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import Run, refused

from flowtok.app import bench, bench_rates
from flowtok.app.bench_rates import TYPES, product_rate
from flowtok.nn.packed import can_pack


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed here: every matrix product is said to run at the same rate."""
    monkeypatch.setattr(bench_rates, "product_rate", lambda kind, *sizes, **how: 1e9)


def test_it_measures_and_advises(run: Run, tiny_folder: Path) -> None:
    found = json.loads(run("bench", "--model", str(tiny_folder), "--device", "cpu", "--json").out)
    assert {way["dtype"] for way in found["pictures"]} == {"float32", "bfloat16", "int8"}
    assert found["gflops"] == {"float32": 1, "bfloat16": 1, "float16": 1, "int8": 1} and found["not_measured"] == []
    fastest = min(found["pictures"], key=lambda way: way["seconds"])
    assert found["choose"] == {name: fastest[name] for name in ("dtype", "threads")}
    assert found["choose_without_int8"]["dtype"] != "int8"


@pytest.mark.parametrize("kind", TYPES)
def test_the_ceiling_is_the_best_product_that_there_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plain product alone it would lie below what packed layers reach: more than 100 % of a ceiling."""
    taken = iter((2.0, 1.0))
    asked: list[object] = []
    monkeypatch.setattr(bench_rates, "seconds_of", lambda call, **how: asked.append(call()) or next(taken))
    packs = kind != "int8" and can_pack(getattr(torch, kind))
    assert product_rate(kind, 3, 64, 72) == 2.0 * 3 * 64 * 72 / (1.0 if packs else 2.0)
    assert [tuple(result.shape) for result in asked if isinstance(result, torch.Tensor)] == [(3, 72)] * (1 + packs)


def test_types_for_which_no_time_is_left_are_named(
    run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model must not make the minute an hour, nor be said to be fastest in a type that was not tried."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    said = run("bench", "--model", str(tiny_folder), "--device", "cpu").out
    assert "bfloat16  not measured" in said and "int8      not measured" in said
    assert "fastest here: --dtype float32\n" in said


def test_fewer_steps_are_advised_for_the_model_they_were_measured_with(
    run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model, a few-step one for instance, may be spoilt by them."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    assert "fewer evaluations" not in run("bench", "--model", str(tiny_folder), "--device", "cpu").out
    monkeypatch.setattr(bench, "SHIPPED", str(tiny_folder))
    said = run("bench", "--model", str(tiny_folder), "--device", "cpu").out
    assert "--solver ab2 --time-grid early --steps 8" in said


def test_what_is_wrong_is_one_line(run: Run) -> None:
    refused(run("bench", "--model", "emojy"), "emojy")
    refused(run("bench", "--device", "cpuu"), "cpuu")


def test_a_picture_in_another_type_says_so(run: Run) -> None:
    """It is a slightly different picture: without the type its file could not be drawn again."""
    assert run("generate", "king", "--seed", "1", "--dtype", "bfloat16", "-o", "half.png").code == 0
    assert run("generate", "king", "--seed", "1", "--dtype", "auto", "--device", "cpu", "-o", "auto.png").code == 0
    with Image.open("half.png") as picture:
        assert picture.info["dtype"] == "bfloat16"
    refused(run("generate", "king", "--dtype", "int4"), "--dtype int4", "int8", "auto")
