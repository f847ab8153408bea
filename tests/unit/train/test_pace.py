"""Training by the clock: a stage is over in time on a machine that is slower than planned, and stays over."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from line_stage import LineStage, config

from flowtok.train import pace
from flowtok.train.loop import LossTerms, train
from flowtok.train.optim import OptimizerConfig, Updater
from flowtok.train.runtime import Runtime

HERE = Runtime(device=torch.device("cpu"))
COSINE = OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule="cosine", final_share=0.0)


class Clock:
    """A clock that the test turns on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: self.now))


class SlowStage(LineStage):
    """Each of its steps takes a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        self.clock.now += 1.0
        return super().loss(batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of all steps."""
    seen: list[float] = []

    def update(self: Updater, step: int, num_steps: float) -> None:
        seen.append(self.config.rate_at(step, num_steps))
        original(self, step, num_steps)

    original = Updater.update
    monkeypatch.setattr(Updater, "update", update)
    return seen


def test_a_stage_ends_when_its_time_is_used_and_stays_so(
    clock: Clock, rates: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = config(num_steps=100, optimizer=COSINE, log_every=1, preview_every=1000)
    left: list[float] = []

    def report(_step: int, figures: dict[str, float]) -> None:
        left.append(figures["seconds_left"])

    trained = train(SlowStage(clock), training, tmp_path, HERE, seconds_left=lambda: 40.0 - clock.now, report=report)
    assert len(rates) == 40 and "stage line: ended at step 40 of 100, as its time is used" in caplog.text
    # Cut off at its height a cosine leaves weights that still jump about: it comes down in the time that there is.
    assert rates[0] == 0.1 and rates[-1] < 0.001 and sorted(rates, reverse=True) == rates
    assert left[-1] == 0.0, "what is shown as left follows the clock"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-0000040.safetensors"]
    assert (tmp_path / "preview-0000040.png").is_file() and (tmp_path / "report.html").is_file()
    # Started again it is what it was, with any amount of time, and says nothing.
    caplog.clear()
    for seconds_left in (None, lambda: 1e9, lambda: -5.0):
        again = train(SlowStage(clock), training, tmp_path, HERE, seconds_left=seconds_left)
        assert all(torch.equal(one, other) for one, other in zip(again.parameters(), trained.parameters(), strict=True))
    assert len(rates) == 40 and not caplog.text


def test_with_time_enough_all_steps_are_done_as_without_a_clock(
    clock: Clock, rates: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = config(num_steps=20, optimizer=COSINE)
    free = train(SlowStage(clock), training, tmp_path / "free", HERE)
    clock.now = 0.0
    timed = train(SlowStage(clock), training, tmp_path / "timed", HERE, seconds_left=lambda: 100.0 - clock.now)
    assert torch.equal(free.get_parameter("weight"), timed.get_parameter("weight"))
    assert rates[:20] == rates[20:] and not caplog.text


def test_a_stage_that_begins_too_late_leaves_something(clock: Clock, rates: list[float], tmp_path: Path) -> None:
    # Reading the pictures took all the minutes: a few steps are what there is to look at then.
    train(SlowStage(clock), config(num_steps=100), tmp_path / "late", HERE, seconds_left=lambda: -1.0)
    assert len(rates) == pace.FEWEST_STEPS
    rates.clear()
    train(SlowStage(clock), config(num_steps=4), tmp_path / "short", HERE, seconds_left=lambda: -1.0)
    assert len(rates) == 4


def test_a_stage_that_goes_on_has_the_time_of_its_new_start(clock: Clock, rates: list[float], tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 20:
            raise Stopped

    training = config(num_steps=100, optimizer=COSINE, log_every=10, checkpoint_every=5)
    with pytest.raises(Stopped):
        train(SlowStage(clock), training, tmp_path, HERE, report=stop)
    clock.now = 0.0
    rates.clear()
    train(SlowStage(clock), training, tmp_path, HERE, seconds_left=lambda: 30.0 - clock.now)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rates) == 30 and max(line["step"] for line in lines) == 45, "15 steps were saved before"
