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
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from line_stage import BlockStage, config
from safetensors.torch import load_file

from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.config import save
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.image.discriminator import DiscriminatorConfig
from flowtok.recipes import TINY
from flowtok.train.loop import train
from flowtok.train.optim import OptimizerConfig
from flowtok.train.runtime import Runtime
from flowtok.train.tokenizer import AdversaryConfig

TESTS = Path(__file__).parents[1]
HERE = Runtime(device=torch.device("cpu"))
DATA = TESTS / "data" / "emoji_small"
STAGES = TINY.trained_stages
KILLS_OF_A_STAGE = 5
NUM_STEPS, PREVIEW_EVERY = 8, 4

# Every step ends with a checkpoint, so that most kills meet one that is being written. Muon and AdamW, a cosine, a
# discriminator from the middle on: all that has a state is there.
TRAINING = replace(
    TINY.text_training, num_steps=NUM_STEPS, batch_size=4, checkpoint_every=1, preview_every=PREVIEW_EVERY, log_every=1
)
ADAMW = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, schedule="cosine")
DISCRIMINATOR = AdversaryConfig(
    start_step=NUM_STEPS // 2, network=DiscriminatorConfig(channels=4, num_stages=2), optimizer=ADAMW
)
KILLED = replace(
    TINY,
    name="killed",
    captions_per_picture=1,
    tokenizer_stage=replace(TINY.tokenizer_stage, adversary=DISCRIMINATOR),
    tokenizer_training=TRAINING,
    text_stage=replace(TINY.text_stage, random_words=16),
    text_training=replace(TRAINING, optimizer=ADAMW),
    flow_stage=replace(TINY.flow_stage, random_words=16),
    flow_training=TRAINING,
    captioner_training=TRAINING,
)

# Imports once and forks a life for each line it reads. A life trains one stage; it is killed so many seconds after its
# start or, where that is asked for, after its first step.
LIVES = """
import os, signal, sys, time
from pathlib import Path
import torch
import transformers.models.bert.modeling_bert  # what a life imports late; to compute here would give it dead threads
from flowtok.config import load
from flowtok.train.course import run_course
from flowtok.train.recipe import Recipe
from flowtok.train.runtime import Runtime

torch.set_num_threads(1)
recipe, data, text_encoder = load(Recipe, sys.argv[1]), sys.argv[2], Path(sys.argv[3])
for line in sys.stdin:
    seconds, after_a_step, stage, folder = line.rstrip("\\n").split(" ", 3)
    began, stepped, child = time.perf_counter(), Path(f"{folder}-stepped"), os.fork()
    if child == 0:
        run_course(recipe, data, Path(folder), text_encoder=text_encoder, runtime=Runtime.start(device="cpu"),
                   stages=(stage,), report=lambda *_: stepped.touch())
        os._exit(0)
    ended, first = (0, 0), None
    while not ended[0]:
        time.sleep(0.001)
        ended = os.waitpid(child, os.WNOHANG)
        now = time.perf_counter()
        if first is None and stepped.exists():
            first = now
        since = first if int(after_a_step) else began
        if not ended[0] and float(seconds) and since is not None and now - since > float(seconds):
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
    stepped.unlink(missing_ok=True)
    now = time.perf_counter()
    print(os.waitstatus_to_exitcode(ended[1]), now - began, now - (first or now), flush=True)
"""


class Lives:
    """Trains single stages in processes of their own, and kills them."""

    def __init__(self, folder: Path) -> None:
        save(KILLED, folder / "recipe.yaml")
        program = [sys.executable, "-c", LIVES, folder / "recipe.yaml", DATA, shipped_folder() / "emoji/text_encoder"]
        self.server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(
        self, stage: str, folder: Path, seconds: float = 0.0, *, after_a_step: bool = False
    ) -> tuple[bool, float, float]:
        """Trains a stage in the folder; where seconds are given, kills that after so many.

        Returns:
            Whether it came to its end before; how long it lived, in all and since its first step.
        """
        assert self.server.stdin is not None and self.server.stdout is not None
        print(seconds, int(after_a_step), stage, folder, file=self.server.stdin, flush=True)
        code, lived, trained = self.server.stdout.readline().split()
        assert int(code) in (0, -signal.SIGKILL), f"the training failed with {code}"
        return int(code) == 0, float(lived), float(trained)

    def end(self) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def assert_same_run(stage: str, folder: Path, unbroken: Path) -> None:
    """Every number in what the stage has saved and handed on is the same, and its notes tell of each step once."""
    last = f"{stage}/checkpoint-{NUM_STEPS:07d}.safetensors"
    for path in (last, *(str(path.relative_to(unbroken)) for path in (unbroken / "model").glob("*.safetensors"))):
        if (folder / path).is_file():
            ours, theirs = load_file(folder / path), load_file(unbroken / path)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs), path
    assert (folder / last).is_file()
    for path in (folder, unbroken):
        lines = [json.loads(line) for line in (path / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "total" in line] == list(range(1, NUM_STEPS + 1))
        assert [line["step"] for line in lines if "total" not in line] == list(
            range(PREVIEW_EVERY, NUM_STEPS + 1, PREVIEW_EVERY)
        )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_every_stage_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Machines lose power, and clusters kill what runs too long: what comes out must not depend on it."""
    lives, generator = Lives(tmp_path), random.Random(4)
    folder, unbroken = tmp_path / "run", tmp_path / "unbroken"
    for stage in STAGES:
        ended, whole, training = lives.live(stage, unbroken)
        assert ended and whole > training > 0
        killed = 0
        while killed < KILLS_OF_A_STAGE:
            after_a_step = killed % 2 == 0  # else it may be opening its data or what earlier stages have left
            seconds = generator.uniform(0.001, 0.5 * training if after_a_step else whole)
            if lives.live(stage, folder, seconds, after_a_step=after_a_step)[0]:
                assert_same_run(stage, folder, unbroken)
                shutil.rmtree(folder / stage)  # and once more from its first step
            else:
                killed += 1
        assert lives.live(stage, folder)[0]
        assert_same_run(stage, folder, unbroken)
    assert sorted(path.name for path in (folder / "model").iterdir()) == sorted(
        path.name for path in (unbroken / "model").iterdir()
    )
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
    where = ["--data", str(DATA), "-o", str(tmp_path / "run"), "--device", "cpu"]
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
