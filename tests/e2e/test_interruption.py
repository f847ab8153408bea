"""Training that is killed, stopped, or out of disk loses nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from line_stage import BlockStage, config

from flowtok.errors import CheckpointError, FlowTokError
from flowtok.train.loop import train
from flowtok.train.runtime import Runtime

TESTS = Path(__file__).parents[1]
HERE = Runtime(device=torch.device("cpu"))
NUM_KILLS = 20

# Imports once and forks a life for each line it reads, which then takes about a second. Every step ends with a
# checkpoint, so that most kills meet one that is being written.
LIVES = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from line_stage import BlockStage, config
from flowtok.train.loop import train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime

torch.set_num_threads(1)
muon = OptimizerConfig(name="muon", learning_rate=0.01, warmup_steps=5, schedule="cosine")
training = config(num_steps=40, batch_size=8, checkpoint_every=1, preview_every=5, log_every=1, optimizer=muon)
for line in sys.stdin:
    seconds, folder = line.rstrip("\\n").split(" ", 1)
    began, child = time.perf_counter(), os.fork()
    if child == 0:
        trained = train(BlockStage(width=64), training, Path(folder), Runtime.start(device="cpu"))
        torch.save(trained.state_dict(), Path(folder) / "trained.pt")
        os._exit(0)
    if float(seconds):
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)  # a child that has ended keeps its number until it is waited for
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, time.perf_counter() - began, flush=True)
"""


class Lives:
    """Runs trainings and kills them."""

    def __init__(self, driver: Path) -> None:
        driver.write_text(LIVES.format(tests=str(TESTS)))
        self.server = subprocess.Popen(
            [sys.executable, str(driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def live(self, folder: Path, seconds: float = 0.0) -> tuple[bool, float]:
        """Trains in the folder; where seconds are given, kills that after so many.

        Returns:
            Whether it came to its end before, and how long it lived.
        """
        assert self.server.stdin is not None and self.server.stdout is not None
        print(seconds, folder, file=self.server.stdin, flush=True)
        code, lived = self.server.stdout.readline().split()
        assert int(code) in (0, -signal.SIGKILL), f"the training failed with {code}"
        return int(code) == 0, float(lived)

    def end(self) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def assert_same_run(folder: Path, unbroken: Path) -> None:
    ours, theirs = (torch.load(path / "trained.pt", weights_only=True) for path in (folder, unbroken))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    for path in (folder, unbroken):
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "total" in line] == list(range(1, 41))
        assert [line["step"] for line in lines if "preview_norm" in line] == list(range(5, 41, 5))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Machines lose power, and clusters kill what runs too long: what comes out must not depend on it."""
    lives, generator = Lives(tmp_path / "driver.py"), random.Random(4)
    ended, length = lives.live(tmp_path / "unbroken")
    assert ended
    killed, number = 0, 0
    while killed < NUM_KILLS:
        folder = tmp_path / f"run-{number}"
        if lives.live(folder, generator.uniform(0.001, 0.7 * length))[0]:
            assert_same_run(folder, tmp_path / "unbroken")
            number += 1
        else:
            killed += 1
    folder = tmp_path / f"run-{number}"
    assert lives.live(folder)[0]
    assert_same_run(folder, tmp_path / "unbroken")
    lives.end()


STOPPED = """
import sys
sys.path.insert(0, {tests!r})
from flowtok.app.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_command_that_is_stopped_says_so(tmp_path: Path) -> None:
    # What a user sees after Ctrl-C must tell whether the night's work is there.
    command = ["train", "tiny", "tokenizer_training.num_steps=100000", "tokenizer_training.log_every=1"]
    where = ["--data", str(TESTS / "data" / "emoji_small"), "-o", str(tmp_path / "run"), "--device", "cpu"]
    program = [sys.executable, "-c", STOPPED.format(tests=str(TESTS)), *command, *where]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("flowtok: tokenizer 3/"):
                running.send_signal(signal.SIGTERM)
                break
        said = [line for line in running.stderr.read().splitlines() if "/100000  " not in line]
    assert running.returncode not in (0, None)
    # One line at once, since a step may take long, and one when all is saved; no trace.
    assert len(said) == 2 and said[0].startswith("stopping: this step is finished and saved first"), said
    assert re.match(r"flowtok: stage tokenizer: stopped by SIGTERM at step \d+ of 100000 and saved in .*; the", said[1])
    assert len(list((tmp_path / "run" / "tokenizer").glob("checkpoint-*.safetensors"))) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint and a bit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or sys.platform != "linux":
        pytest.skip("needs mount of Linux")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"may not mount a small disk: {done.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path, tmp_path: Path) -> None:
    # The commonest end of a long run; without care it leaves half a checkpoint in the place of the good one.
    training = config(num_steps=12, checkpoint_every=4)
    unbroken = train(BlockStage(width=64), training, tmp_path / "unbroken", HERE).state_dict()
    size = (tmp_path / "unbroken" / "checkpoint-0000012.safetensors").stat().st_size
    assert 410_000 < size < 750_000, "the small disk takes one checkpoint and not two"
    with pytest.raises(
        CheckpointError, match=r"0000008.safetensors: No space left on device .*; the checkpoint of step 4 is kept"
    ):
        train(BlockStage(width=64), training, small_disk / "run", HERE)
    left = sorted(path.name for path in (small_disk / "run").iterdir() if path.name != "tensorboard")
    assert left == ["checkpoint-0000004.safetensors", "config.json"]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    resumed = train(BlockStage(width=64), training, small_disk / "run", HERE).state_dict()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


@pytest.mark.parametrize("room", [0, 4, 40])
def test_a_disk_without_any_room_stops_with_one_line(small_disk: Path, room: int) -> None:
    # Notes, pictures and records are written too: none of them may end in a traceback.
    (small_disk / "ballast").write_bytes(bytes((800 - room) * 1024))
    with pytest.raises(FlowTokError, match="No space left on device"):
        train(BlockStage(width=64), config(num_steps=4, log_every=1), small_disk / "run", HERE)
