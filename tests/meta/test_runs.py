"""The scripts of runs/ are right to the last line: what trains for weeks must not end at a word that is misspelt."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from flowtok.app.cli import app, main
from flowtok.config import apply_overrides
from flowtok.recipes import RECIPES
from flowtok.train.course import STAGES

STUB = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$COMMANDS"
echo >>"$COMMANDS"
"""


@pytest.mark.parametrize("name", ["emoji.sh", "paper.sh"])
def test_bash_can_read_it(repository: Path, name: str) -> None:
    script = repository / "runs" / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture
def commands(repository: Path, tmp_path: Path) -> list[list[str]]:
    """What runs/paper.sh runs, with flowtok and torchrun replaced by notes of their arguments."""
    note, log = tmp_path / "note", tmp_path / "commands.txt"
    note.write_text(STUB)
    note.chmod(0o755)
    launch = tmp_path / "launch"
    launch.write_text('#!/usr/bin/env bash\nexec "$@"\n')
    launch.chmod(0o755)
    sets = ("TOKENIZER_DATA", "STAGE1_DATA", "STAGE2_DATA", "COCO", "COCO_TRAIN", "COCO_VAL")
    data = {name: name.lower() for name in sets}
    settings = {"FLOWTOK": str(note), "TORCHRUN": str(launch), "COMMANDS": str(log), "MJHQ": "mjhq", **data}
    script = [str(repository / "runs" / "paper.sh"), str(tmp_path / "out"), "h"]
    subprocess.run(script, env=os.environ | settings, check=True)
    return [shlex.split(line) for line in log.read_text().splitlines()]


def test_every_command_of_the_papers_run_is_one(commands: list[list[str]]) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [command[0] for command in commands]
    assert names.count("train") == 6 and names.count("eval") == 4 and "import" in names
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert end.value.code == 0, command
        options = {option for parameter in known[command[0]].params for option in parameter.opts}
        given = {word for word in command if word.startswith("-")}
        assert given <= options, command


def test_every_training_of_the_papers_run_has_its_recipe_and_what_it_starts_from(commands: list[list[str]]) -> None:
    """Each stage starts from a folder that an earlier line has made, and its changes fit the recipe."""
    made: set[str] = set()
    for _, name, *rest in (command for command in commands if command[0] == "train"):
        changes = [word for word in rest if "=" in word and not word.startswith("-")]
        recipe = apply_overrides(RECIPES[name], changes)
        assert set(recipe.trained_stages) <= set(STAGES)
        starts = [rest[place + 1] for place, word in enumerate(rest) if word == "--from"]
        assert set(starts) <= made, f"{name} starts from what is not there yet"
        assert starts or recipe.tokenizer_training is not None
        made.add(rest[rest.index("-o") + 1])
    for _, model, *_rest in (command for command in commands if command[0] == "eval"):
        assert str(Path(model).parent) in made


def test_rebuilt_pictures_are_of_a_set_that_fits_into_memory(commands: list[list[str]]) -> None:
    """What is learned from is far too large to be read whole: after weeks the last line would be refused."""
    trained_on = {command[command.index("--data") + 1] for command in commands if command[0] == "train"}
    (rebuilt,) = (command for command in commands if "reconstruction" in command)
    assert rebuilt[rebuilt.index("--data") + 1] not in trained_on
    assert rebuilt[rebuilt.index("--weights") + 1] == "download", "else rFID and LPIPS are left out"
