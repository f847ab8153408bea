"""The command line, run inside the test's process, and what a refusal looks like."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from flowtok.app import cli


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> Run:
    """Runs a command in an empty folder, with the tiny model where it takes one; `stdin` is what it reads."""
    # On some processors commands compute in bfloat16 by default, and the tests compare with float32.
    monkeypatch.setattr("flowtok.pipeline.best_dtype", lambda device: torch.float32)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        given = list(arguments)
        takes_model = given and given[0] in ("generate", "caption", "reconstruct", "interpolate")
        if takes_model and "--model" not in given and "--help" not in given:
            given += ["--model", str(tiny_folder)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(given)
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return run


def refused(result: Result, *words: str) -> None:
    """One line on stderr with these words, exit code 2, nothing on stdout."""
    assert result.code == 2, result
    assert result.err.startswith("flowtok: ") and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words), (words, result.err)
    assert result.out == ""
