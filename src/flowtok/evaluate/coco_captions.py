"""The usual scores of captions, as COCO's own evaluation computes them: BLEU, METEOR, ROUGE-L, CIDEr and SPICE.

The border to pycocoevalcap, which runs Java for its tokenizer and for METEOR; knows strings and no model. Scores that
need neither are in captions.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowtok.errors import FlowTokError

LIBRARY = "pycocoevalcap"
TOKENS = "PTB tokenizer, lower-case, punctuation dropped"
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def hindrance() -> str | None:
    """What keeps these scores from being computed here and how to mend it, in one line; None if nothing does."""
    if importlib.util.find_spec(LIBRARY) is None:
        return "BLEU, METEOR, ROUGE-L and CIDEr need pycocoevalcap; install the extra: pip install 'flowtok[eval]'"
    java = shutil.which("java")
    if java is None:
        return "BLEU, METEOR, ROUGE-L and CIDEr need Java for their tokenizer; install a JRE so that `java` is found"
    try:
        subprocess.run([java, "-version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"BLEU, METEOR, ROUGE-L and CIDEr need Java, and {java} does not run ({error}); mend or replace it"
    return None


def has_spice() -> bool:
    """Whether SPICE's models lie where pycocoevalcap looks for them; it would fetch them without asking."""
    return all((_folder() / "spice" / "lib" / name).is_file() for name in _SPICE_MODELS)


def coco_scores(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to 4, METEOR, ROUGE-L and CIDEr over a whole set, times 100 as they are published; SPICE where it can be.

    Args:
        written: A caption for each picture.
        references: Captions of record of each picture, at least one.

    Raises:
        FlowTokError: pycocoevalcap or Java is missing, or Java fails.
        ValueError: The two are not equally many, there are none, or a picture has no reference.
    """
    if len(written) != len(references) or not written or not all(references):
        raise ValueError(f"need a caption and references for each picture: {len(written)}, {len(references)}")
    if (missing := hindrance()) is not None:
        raise FlowTokError(missing)
    with _quiet_java() as said:
        try:
            return _scored(written, references)
        except (OSError, ValueError, AssertionError, subprocess.SubprocessError) as error:
            raise FlowTokError(
                f"pycocoevalcap could not score the captions: {said() or ' '.join(str(error).split())}"
            ) from error


def _scored(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    given = {number: [_entry(text)] for number, text in enumerate(written)}
    wanted = {number: [_entry(text) for text in own] for number, own in enumerate(references)}
    given, wanted = PTBTokenizer().tokenize(given), PTBTokenizer().tokenize(wanted)
    bleu, _ = Bleu(4).compute_score(wanted, given, verbose=0)
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scorers: dict[str, Any] = {"meteor": Meteor(), "rouge_l": Rouge(), "cider": Cider()}
    if has_spice():
        from pycocoevalcap.spice.spice import Spice

        scorers["spice"] = Spice()
    for name, scorer in scorers.items():
        scores[name] = float(scorer.compute_score(wanted, given)[0])
    return {name: 100.0 * value for name, value in scores.items()}


def _entry(text: str) -> dict[str, str]:
    """A caption as the tokenizer takes it: one line, so that captions and lines stay one to one."""
    return {"caption": " ".join(text.split())}


def _folder() -> Path:
    found = importlib.util.find_spec(LIBRARY)
    assert found is not None and found.submodule_search_locations, f"{LIBRARY} is looked for first"
    return Path(next(iter(found.submodule_search_locations)))


@contextlib.contextmanager
def _quiet_java() -> Iterator[Any]:
    """Keeps what Java says on stderr for an error's message, and has it read and write UTF-8 in every locale."""
    before, options = os.dup(2), os.environ.get("JAVA_TOOL_OPTIONS")
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        os.environ["JAVA_TOOL_OPTIONS"] = f"{options or ''} -Dfile.encoding=UTF-8".strip()

        def said() -> str:
            file.seek(0)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if "Exception" in line]
            return lines[0][:200] if lines else ""

        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            if options is None:
                del os.environ["JAVA_TOOL_OPTIONS"]
            else:
                os.environ["JAVA_TOOL_OPTIONS"] = options
