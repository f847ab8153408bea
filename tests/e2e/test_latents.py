"""`flowtok data latents` as it is run: killed, started by torchrun, over Ray; the shards are the same each time."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making_datasets import shard

from flowtok.data.latent_folders import open_latents
from flowtok.data.latent_streams import collect_latents

COMMAND = [sys.executable, "-m", "flowtok.app.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(6):
        shard(tmp_path / "shards" / f"{number}.tar", range(number * 100, number * 100 + 20))
    return tmp_path / "shards"


def arguments(shards: Path, out: Path, model: Path, *more: str) -> list[str]:
    return ["data", "latents", str(shards), "-o", str(out), "--model", str(model), "--batch-size", "4", *more]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_killed_then_on_two_ranks_it_is_the_same(tmp_path: Path, shards: Path, tiny_folder: Path) -> None:
    """kill -9 in the middle; then two ranks of torchrun make what is missing, each shard once."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    said = run([*COMMAND, *arguments(shards, whole, tiny_folder)]).stdout
    assert "120 samples in 6 shards\n" in said
    killed = subprocess.Popen([*COMMAND, *arguments(shards, out, tiny_folder)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not (out / "000001.json").exists() and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    there = {path.name for path in out.glob("*.json")} - {"latents.json"}
    assert there, "it was killed before anything was done, or did not start"
    done = run([*TORCHRUN, "-m", "flowtok.app.cli", *arguments(shards, out, tiny_folder)])
    assert "120 samples in 6 shards" in done.stdout
    assert files(out) == files(whole)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed: pip install -e '.[ray]'"
)
def test_over_ray_it_is_the_same(tmp_path: Path, shards: Path, tiny_folder: Path) -> None:
    """A cluster of one machine makes the same bytes; what is there is not made again."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run([*COMMAND, *arguments(shards, whole, tiny_folder)])
    run([*COMMAND, *arguments(shards, out, tiny_folder, "--engine", "ray", "--actors", "2")])
    assert files(out) == files(whole)
    (out / "000003.tar").unlink()
    again = run([*COMMAND, *arguments(shards, out, tiny_folder, "--engine", "ray", "--actors", "2")])
    assert "5 of them from before" in again.stdout and files(out) == files(whole)
    assert len(collect_latents(open_latents(out)).rows) == 120
