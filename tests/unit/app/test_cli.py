"""The command itself: version, help, and complaints of one line."""

from __future__ import annotations

from running import Run, refused

import flowtok


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"flowtok {flowtok.__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        shown = run(*arguments)
        assert shown.code == 0
        commands = ("generate", "caption", "reconstruct", "interpolate", "models", "info", "train", "eval", "data")
        assert all(command in shown.out for command in commands)
    assert "--deterministic" in run("generate", "--help").out


def test_unknown_commands_are_one_line(run: Run) -> None:
    refused(run("genrate", "cat"), "genrate", "flowtok --help")
    refused(run("data", "photos"), "photos")
