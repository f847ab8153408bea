"""Training started by torchrun on two ranks: what both read is made once, and one of them writes the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowtok.checkpoints.catalogue import shipped_folder
from flowtok.config import load
from flowtok.recipes import TINY
from flowtok.train.recipe import Recipe

SMALL = Path(__file__).parents[1] / "data" / "emoji_small"

# The command as it is, but that it takes the small set for a large one, finds no shipped language encoder, and notes
# what is made. The encoder's folder must not be there yet, as for the real one.
DRIVER = """
import shutil, sys
from pathlib import Path
from flowtok.app.cli import main
from flowtok.checkpoints import catalogue
from flowtok.data import captioned
from flowtok.text import minilm

shipped, log = Path({shipped!r}), Path({log!r})
decode = captioned._decode

def noted(word):
    with log.open("a") as lines:
        lines.write(word + "\\n")

def decoded(*arguments):
    noted("pictures")
    return decode(*arguments)

def prepared(folder):
    noted("encoder")
    shutil.copytree(shipped / "emoji" / "text_encoder", folder)

catalogue.shipped_folder = lambda: Path("nowhere")
captioned._WORTH_KEEPING, captioned._decode, minilm.prepare_minilm = 1, decoded, prepared
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_ranks_share_what_is_made_once(tmp_path: Path) -> None:
    """On a new machine with eight GPUs, eight processes start at the same moment in empty folders."""
    data, log = tmp_path / "data", tmp_path / "made.txt"
    data.mkdir()
    for path in (*SMALL.glob("*.*"), SMALL / "images"):
        (data / path.name).symlink_to(path)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(shipped=str(shipped_folder()), log=str(log)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(driver)]
    command = ["train", "tiny", "--data", str(data), "-o", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        [*torchrun, *command, "--stage", "tokenizer"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(log.read_text().split()) == ["encoder", "pictures"]
    assert (tmp_path / "run" / "model" / "image_tokenizer.safetensors").is_file()
    assert load(Recipe, tmp_path / "run" / "recipe.yaml") == TINY
    lines = (tmp_path / "run" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in lines if '"gradient_norm"' in line]
    assert len(steps) == TINY.tokenizer_training.num_steps // TINY.tokenizer_training.log_every, "written by one rank"
