"""The commands as a user starts them, each in a process of its own, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import flowtok
from flowtok.pipeline import FlowTok

COMMAND = [sys.executable, "-m", "flowtok.app.cli"]


def run(*arguments: str, cwd: Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, input=stdin, capture_output=True, check=False)


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    """Help must be there in a fraction of a second: no torch, no transformers, no numpy, no pictures."""
    code = (
        "import sys\nfrom flowtok.app.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy', 'PIL', 'safetensors') if name in sys.modules]\n"
        "sys.exit(','.join(heavy) or 0)"
    )
    for arguments in (["--help"], ["generate", "--help"], ["train", "--help"], ["eval", "--help"], ["models"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, check=False
        )
        assert result.returncode == 0, (arguments, result.stderr)


def test_from_words_to_a_picture_and_back(tmp_path: Path, tiny_folder: Path, tiny: FlowTok) -> None:
    """The whole round in fresh processes: the seed gives the picture that Python gave, and captions agree too."""
    model = ["--model", str(tiny_folder), "--dtype", "float32"]  # as Python computes
    drawn = run("generate", "a red cat", "--seed", "9", "-o", "cat.png", "--json", *model, cwd=tmp_path)
    assert drawn.returncode == 0 and drawn.stderr == b"", drawn.stderr
    assert json.loads(drawn.stdout)[0]["flowtok"] == flowtok.__version__
    expected = tiny.generate(["king", "a red cat"], seed=9)[1]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cat.png")), np.asarray(expected))
    said = run("caption", "-", *model, cwd=tmp_path, stdin=(tmp_path / "cat.png").read_bytes())
    assert said.stdout.decode().strip() == tiny.caption(expected)[0]


def test_errors_are_one_line_and_code_2(tmp_path: Path, tiny_folder: Path) -> None:
    result = run("generate", " ", "--model", str(tiny_folder), cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.startswith(b"flowtok: ") and result.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error_to_show(tmp_path: Path, tiny_folder: Path) -> None:
    """`flowtok info | head -0` must not end in a traceback."""
    with subprocess.Popen(
        [*COMMAND, "info", str(tiny_folder)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert complaint == b"" and process.returncode in (0, 1)
