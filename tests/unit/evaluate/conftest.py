"""A tiny model and a set of pictures of its size, for the tests in this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from emoji_like import write_set
from fixtures_tiny_model import tiny_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in `tiny` and the set in `set`; what one test file leaves there no other one sees."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder).save_pretrained(folder / "tiny")
    write_set(folder / "set")
    return folder


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements here go on as on a machine without Java, which takes seconds to start; one file tests it."""
    from flowtok.evaluate import coco_captions

    monkeypatch.setattr(coco_captions, "hindrance", lambda: "no Java in these tests")
