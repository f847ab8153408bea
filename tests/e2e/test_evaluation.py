"""A measurement that was stopped or shared between processes gives the records of one that ran through alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from making_datasets import folder_with_texts

ALONE = [sys.executable, "-m", "flowtok.app.cli"]
SHARED = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "flowtok.app.cli",
]


@pytest.mark.slow
def test_two_ranks_and_a_second_start_give_identical_records(tiny_folder: Path, tmp_path: Path) -> None:
    """Thirty thousand pictures take a night on eight GPUs: a node that fails must cost its own pictures alone."""
    data = folder_with_texts(tmp_path / "set", 24)
    options = ["--data", str(data), "--task", "retrieval", "--split", "train", "--limit", "5", "--device", "cpu"]

    def measured(start: list[str], out: str) -> tuple[dict[str, bytes], list[dict], str]:
        command = [*start, "eval", str(tiny_folder), *options, "-o", str(tmp_path / out)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / out
        drawn = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("0*.png"))}
        return drawn, json.loads((folder / "records.json").read_text())["records"], done.stderr

    pictures, records, said = measured(ALONE, "alone")
    assert len(pictures) == 5 and "5 drawn in" in said
    shared_pictures, shared_records, said = measured(SHARED, "shared")
    assert shared_pictures == pictures and shared_records == records
    assert "on 2 ranks" in said and said.count("images/s") == 1
    lost, cut, *_ = sorted(pictures)
    (tmp_path / "alone" / lost).unlink()
    (tmp_path / "alone" / cut).write_bytes(pictures[cut][:-20])
    again_pictures, again_records, said = measured(ALONE, "alone")
    assert again_pictures == pictures and again_records == records
    assert "3 kept; 1 damaged or drawn otherwise, drawn again; 2 drawn in" in said
