"""The house keeps its own promises: README, CI, configs, shipped models, and nothing of one machine in any file."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from flowtok.app.cli import app, main
from flowtok.checkpoints import catalogue, folder

BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
BINARY = {
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tiff",
    ".safetensors",
    ".pt",
    ".pth",
    ".bin",
    ".npy",
    ".npz",
}


def sections(readme: str) -> dict[str, list[str]]:
    """The lines of the bash blocks below each heading of the README."""
    parts = re.split(r"^## (.+)\n", readme, flags=re.MULTILINE)
    return {
        heading: [line for block in BLOCK.findall(text) for line in block.splitlines()]
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def own_files(repository: Path) -> list[Path]:
    """Text files of the repository, tracked or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if not (repository / ".git").exists():
        pytest.skip("not a git clone: its own files cannot be told from others")
    names = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()
    return [repository / name for name in names if Path(name).suffix not in BINARY and (repository / name).is_file()]


def test_readme_has_one_line_to_start_and_one_line_to_test(repository: Path) -> None:
    """A newcomer copies one line; two lines are twice as many ways to fail."""
    lines = sections((repository / "README.md").read_text(encoding="utf-8"))
    (start,) = lines["Quick start"]
    (tests,) = lines["Tests"]
    install = "python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e "
    assert start.startswith(install + ". && .venv/bin/flowtok generate ")
    assert tests == install + "'.[test]' && .venv/bin/python -m pytest -m 'not slow'"


def test_ci_runs_the_readmes_test_line(repository: Path) -> None:
    """Otherwise CI is green while the line that users copy is broken."""
    script = (repository / ".ci" / "run").read_text()
    awk = re.search(r"line=\$\((awk .*? README\.md)\)", script, re.DOTALL)
    assert awk and '"$line"' in script
    shown = subprocess.run(["bash", "-c", awk[1]], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == sections((repository / "README.md").read_text(encoding="utf-8"))["Tests"]
    assert (repository / ".ci" / "run").stat().st_mode & 0o111


def test_every_local_link_leads_somewhere(repository: Path) -> None:
    """Docs that point at files that are gone help nobody."""
    for page in [path for path in own_files(repository) if path.suffix == ".md"]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(repository)} links to {target}"


def test_every_command_in_the_readme_is_one(repository: Path) -> None:
    """A command or option that was renamed must not live on in the README."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    (start,) = sections(readme)["Quick start"]
    commands = [start.rpartition("bin/")[2], *re.findall(r"`(flowtok [a-z][^`]*)`", readme)]
    assert len(commands) > 7
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([*shlex.split(command)[1:], "--help"])
        assert end.value.code == 0, command


def test_every_option_in_the_runs_is_one(repository: Path) -> None:
    """A run of hours must not end at an option that was renamed."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = 0
    for script in sorted((repository / "runs").glob("*.sh")):
        text = script.read_text().replace("\\\n", " ")
        # An array such as pack=(flowtok pack ...) goes over several lines.
        text = re.sub(r"\([^()]*\)", lambda found: found[0].replace("\n", " "), text)
        for name, rest in re.findall(r"bin/flowtok ([a-z-]+)(.*)", text):
            known = {option for parameter in commands[name].params for option in parameter.opts}
            options = set(re.findall(r"(?<!\S)--?[a-z-]+", rest))
            seen += bool(options) and name != "data"
            assert name == "data" or options <= known, f"{script.name}: flowtok {name} has no {options - known}"
    assert seen >= 3


# Put together from halves, so that this file does not contain what it forbids.
FORBIDDEN = [
    first + second
    for first, second in [
        ("/wo", "rk/"),
        ("/opt/py", "pi"),
        ("/opt/wh", "eels"),
        ("/ro", "ot/"),
        ("SPEC", ".md"),
        ("DESIGN", ".md"),
        ("FACTS", ".md"),
        ("TO", "DO"),
        ("FIX", "ME"),
        ("files.python", "hosted"),
        ("pypi.", "org"),
        ("registry.npm", "js"),
        ("index", "-url"),
        ("find", "-links"),
    ]
]


def test_nothing_of_one_machine_or_left_undone_in_any_file(repository: Path) -> None:
    """A path, a package host or an unfinished corner of one workplace breaks the next one."""
    files = own_files(repository)
    assert len(files) > 20
    found = [
        f"{path.relative_to(repository)}: {word}"
        for path in files
        for word in FORBIDDEN
        if word in path.read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found


def test_constraints_hold_versions_and_nothing_else(repository: Path) -> None:
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_the_model_of_the_quick_start_ships() -> None:
    """Without it the first command of the README fails, and the test below has nothing to look at."""
    assert "emoji" in catalogue.list_models()


@pytest.mark.parametrize("name", catalogue.list_models())
def test_shipped_model_is_whole_licensed_and_small(name: str) -> None:
    """The quick start uses it: every byte as recorded, at most 120 MB, and a card that says where it comes from."""
    path = catalogue.shipped_folder() / name
    folder.verify_checksums(path)
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= 120_000_000
    card = (path / folder.CARD_FILE).read_text(encoding="utf-8").lower()
    assert "license" in card or "licence" in card
