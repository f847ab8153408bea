"""Captions are scored by COCO's own code, and a machine that cannot do it says what is missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowtok.errors import FlowTokError
from flowtok.evaluate import coco_captions

_HINDRANCE = coco_captions.hindrance()


@pytest.fixture(autouse=True)
def no_java() -> None:
    """In place of the fixture of this folder: Java is what is tested here."""


needs_java = pytest.mark.skipif(_HINDRANCE is not None, reason=str(_HINDRANCE))


@pytest.mark.slow
@needs_java
def test_scores_are_those_of_published_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Papineni et al. 2002, example 1: candidate 1 shares 17 of 18 words and 10 of 17 pairs with its references.

    Their BLEU has no brevity penalty here, as a reference is as long as the candidate. Captions in other scripts must
    reach Java whole in any locale.
    """
    monkeypatch.setenv("LC_ALL", "C")
    references = (
        "It is a guide to action that ensures that the military will forever heed Party commands.",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
        "It is the practical guide for the army always to heed the directions of the party.",
    )
    candidate = "It is a guide to action which ensures that the military always obeys the commands of the party."
    scores = coco_captions.coco_scores([candidate], [references])
    assert scores["bleu_1"] == pytest.approx(100 * 17 / 18, abs=1e-3)
    assert scores["bleu_2"] == pytest.approx(100 * (17 / 18 * 10 / 17) ** 0.5, abs=1e-3)
    # Lin 2004, section 3.1: of four words three stand in order, then two.
    lin = ["police kill the gunman", "the gunman kill police", "Élan, naïve café!", ""]
    wanted = [("police killed the gunman",)] * 2 + [("élan naïve café",), ("a cat",)]
    scores = coco_captions.coco_scores(lin, wanted)
    assert scores["rouge_l"] == pytest.approx(100 * (0.75 + 0.5 + 1.0 + 0.0) / 4)
    assert 0 < scores["meteor"] < 100 and 0 < scores["cider"] < 1000
    same = coco_captions.coco_scores(
        ["a red cat on a mat", "two dogs run"], [("a red cat on a mat",), ("two dogs run",)]
    )
    assert same["meteor"] == pytest.approx(100) and same["rouge_l"] == pytest.approx(100)
    assert ("spice" in same) == coco_captions.has_spice()


class Annotations:
    """What COCO's own evaluation asks a set of captions for."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.imgToAnns = {number: [{"caption": text} for text in own] for number, own in enumerate(captions)}

    def getImgIds(self) -> list[int]:
        return list(self.imgToAnns)


class NoSpice:
    """In the place of a scorer that downloads a gigabyte."""

    def method(self) -> str:
        return "SPICE"

    def compute_score(self, wanted: object, given: object) -> tuple[float, list[float]]:
        return 0.0, []


@pytest.mark.slow
@needs_java
def test_scores_are_those_of_cocos_own_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """References and captions that change places, or captions that are not tokenized, move all of these numbers."""
    from pycocoevalcap import eval as theirs

    written = ["A red cat sits on a mat .", "two dogs are running", "a plate of food, with a fork", "Nothing to see"]
    wanted = [
        ("A red cat on the mat.", "The cat is sitting on a red mat."),
        ("Two dogs run through grass!", "dogs playing"),
        ("A plate with food and a fork.", "Food on a plate, next to a fork"),
        ("A man riding a wave.", "A surfer"),
    ]
    monkeypatch.setattr(theirs, "Spice", NoSpice)
    monkeypatch.setattr(coco_captions, "has_spice", lambda: False)
    official = theirs.COCOEvalCap(Annotations(wanted), Annotations([[one] for one in written]))
    official.evaluate()
    expected = {name.lower(): 100 * float(value) for name, value in official.eval.items() if name != "SPICE"}
    assert coco_captions.coco_scores(written, wanted) == pytest.approx(expected, rel=1e-9)
    assert len(expected) == 7 and all(value > 0 for value in expected.values())


def test_missing_library_or_java_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pycocoevalcap itself fails with a broken pipe, or begins to download a gigabyte."""
    monkeypatch.setattr(coco_captions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlowTokError, match=r"flowtok\[eval\]"):
        coco_captions.coco_scores(["a"], [["a"]])
    monkeypatch.setattr(coco_captions.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(coco_captions.shutil, "which", lambda name: None)
    assert "install a JRE" in (coco_captions.hindrance() or "")
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(coco_captions.shutil, "which", lambda name: str(broken))
    assert "does not run" in (coco_captions.hindrance() or "")


def test_spice_is_asked_for_only_where_its_models_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(coco_captions, "_folder", lambda: tmp_path)
    assert not coco_captions.has_spice()
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "spice" / "lib" / name).touch()
    assert coco_captions.has_spice()


def test_what_java_says_becomes_the_message(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """And the user's own stderr stays clean and whole."""

    def fails(written: object, references: object) -> dict[str, float]:
        os.write(2, b"Exception in thread main: out of memory\n")
        raise subprocess.SubprocessError("code 1")

    monkeypatch.setattr(coco_captions, "hindrance", lambda: None)
    monkeypatch.setattr(coco_captions, "_scored", fails)
    monkeypatch.delenv("JAVA_TOOL_OPTIONS", raising=False)
    with pytest.raises(FlowTokError, match="out of memory"):
        coco_captions.coco_scores(["a"], [["a"]])
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n" and "JAVA_TOOL_OPTIONS" not in os.environ


def test_captions_without_references_are_refused() -> None:
    for written, references in ((["a"], []), ([], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="need a caption and references"):
            coco_captions.coco_scores(written, references)
