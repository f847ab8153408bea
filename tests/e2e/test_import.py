"""Released files to a picture, each command in a process of its own, on tiny weights drawn by the fixtures' rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_released import TINY_HEADS, tokenizer_file, velocity_file, write_tiny
from PIL import Image

from flowtok.checkpoints import official
from flowtok.pipeline import FlowTok
from flowtok.text.encoder import TextEncoder

COMMAND = [sys.executable, "-m", "flowtok.app.cli"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


def test_released_files_to_a_picture_and_back_to_files(tmp_path: Path) -> None:
    velocity, tokenizer, clip = write_tiny(tmp_path)
    run(
        "import", velocity.name, "--tokenizer", tokenizer.name, "--text-encoder", clip.name,
        "--heads", str(TINY_HEADS), "-o", "model", cwd=tmp_path,
    )  # fmt: skip
    exact = ("--dtype", "float32")  # where bfloat16 is faster, it is what the command takes by itself
    drawn = run("generate", "a cat", "--seed", "5", "-m", "model", "-o", "cat.png", "--json", *exact, cwd=tmp_path)
    (story,) = json.loads(drawn.stdout)
    assert (story["time_grid"], story["steps"], story["guidance"], story["seed"]) == ("release", 20, 2.0, 5)
    run("export-official", "model", "-o", "back", cwd=tmp_path)
    back = torch.load(tmp_path / "back" / "FlowTok-other.pth", weights_only=True)
    assert all(back[name].equal(weight) for name, weight in velocity_file().items())
    picture = np.asarray(Image.open(tmp_path / "cat.png")).astype(int)
    assert np.abs(picture - by_hand(clip)).max() <= 1, "float32 rounding moves a byte at most"


def by_hand(clip: Path) -> np.ndarray:
    """The release's own way from the prompt to the bytes, straight from the files and without our grid and pipeline."""
    network = official.load_velocity(velocity_file(), heads=TINY_HEADS)
    projector = official.load_text_projector(velocity_file(), heads=TINY_HEADS).eval()
    tokenizer = official.load_tokenizer(tokenizer_file())
    with torch.no_grad():
        features = TextEncoder.from_pretrained(clip).encode(["a cat"]).features_BSE
        start = projector(features)
        noise = torch.randn(77, 16, generator=torch.Generator().manual_seed(5))[None]
        z = start.mean_BLC + torch.exp(0.5 * start.logvar_BLC) * noise
        told, ends = torch.linspace(0, 0.99999, 20), torch.linspace(1e-5, 1, 21)
        for i in range(20):
            t = told[i : i + 1]
            conditional = network(z, t, torch.tensor([False]))
            null = network(z, t, torch.tensor([True]))
            z = z + (null + 2.0 * (conditional - null)) * (ends[i + 1] - ends[i])
        pixels = tokenizer.decode(z / 1.0143, features)[0]
    return (255 * pixels + 0.5).clamp(0, 255).floor().permute(1, 2, 0).int().numpy()


def test_a_seed_gives_the_same_picture_alone_and_among_others(tmp_path: Path) -> None:
    velocity, tokenizer, clip = write_tiny(tmp_path)
    run(
        "import", velocity.name, "--tokenizer", tokenizer.name, "--text-encoder", clip.name,
        "--heads", str(TINY_HEADS), "-o", "model", cwd=tmp_path,
    )  # fmt: skip
    model = FlowTok.from_pretrained(tmp_path / "model")
    alone = model.generate("a cat", seed=5)[0]
    assert model.generate(["a red dog", "a cat"], seed=5)[1].tobytes() == alone.tobytes()
    means = [model.generate("a cat", deterministic_text=True)[0].tobytes() for _ in range(2)]
    assert means[0] == means[1] != alone.tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_nearly_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights and products in two bytes, norms, tables and tokens in float32: far from noise on noise."""
    velocity, tokenizer, clip = write_tiny(tmp_path)
    run(
        "import", velocity.name, "--tokenizer", tokenizer.name, "--text-encoder", clip.name,
        "--heads", str(TINY_HEADS), "-o", "model", cwd=tmp_path,
    )  # fmt: skip
    exact = np.asarray(FlowTok.from_pretrained(tmp_path / "model").generate("a cat", seed=5)[0]).astype(float)
    rounded = FlowTok.from_pretrained(tmp_path / "model", dtype=dtype).generate("a cat", seed=5)[0]
    error = np.abs(np.asarray(rounded).astype(float) - exact).mean()
    assert error < 0.1 * exact.std(), (error, exact.std())
