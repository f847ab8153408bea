"""Ctrl-C and SIGTERM, wherever they come: the first is answered with a line, the second ends at once."""

import os
import signal
import time

import pytest

from flowtok.train.stops import LeftAtOnce, StopWish, TrainingStopped, told_of_sigterm


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # a signal is heard between two instructions


def test_the_second_one_ends_at_once() -> None:
    with pytest.raises(LeftAtOnce), StopWish() as wish:
        send(signal.SIGINT)
        assert wish.signal == signal.SIGINT
        send(signal.SIGINT)


def test_one_that_came_before_counts() -> None:
    # The docs promise that pressing again leaves at once, also while the model is written that the first has asked for.
    with pytest.raises(LeftAtOnce), StopWish(again=True):
        send(signal.SIGINT)


def test_sigterm_outside_the_loop_ends_with_a_line() -> None:
    # Between two stages caches are filled for minutes: a machine that is shut down must leave a word in the log.
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match="stopped by SIGTERM") as caught, told_of_sigterm():
        with StopWish() as wish:
            send(signal.SIGTERM)
        assert wish.signal == signal.SIGTERM, "the loop saves first"
        send(signal.SIGTERM)
    assert caught.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) == before
