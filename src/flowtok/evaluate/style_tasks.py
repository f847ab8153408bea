"""The task on styles: is a picture drawn in the style that was asked for? Judged by style_classifier.py.

Tasks by name: tasks.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from flowtok.errors import DataError
from flowtok.evaluate.bench import Bench, uint8_pictures
from flowtok.evaluate.captioned_tasks import draw_for_retrieval
from flowtok.evaluate.page import Exhibit, Shown
from flowtok.evaluate.report import Record
from flowtok.evaluate.style_classifier import StyleClassifier, StyleClassifierConfig, opened_or_learned
from flowtok.evaluate.words_tasks import TRAINED, shares_by_kind

CLASSIFIER = StyleClassifierConfig()
_SHOWN_EACH = 8


def check_styles(bench: Bench, limit: int | None) -> None:
    """Looks for pictures of at least two styles to learn from and for others to test the classifier on."""
    del limit
    styles = {row.style for row in bench.open(TRAINED).rows}
    if len(styles) < 2:
        raise DataError(
            f"the pictures in {bench.folder} are of {len(styles)} style, and styles are told apart from two on; take "
            "the set that `flowtok data emoji` builds"
        )
    bench.open("validation")


def style_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Draws captions of record, which end with a style, and asks a classifier which style it sees.

    The prompts are those of the task `retrieval` on the training split, and so are the pictures where they are kept.
    The classifier is trained on the set's own training pictures; what it makes of validation pictures stands beside.
    """
    rows = bench.open(TRAINED).rows
    judge = bench.keep(("style classifier",), lambda: _judge(bench))
    theirs = bench.open("validation")
    found = judge.styles_of(theirs.images_N3YX)
    kept = [style == row.style for style, row in zip(found, theirs.rows, strict=True)]
    chosen = bench.choose(TRAINED, limit)
    drawn = draw_for_retrieval(bench, TRAINED, limit)
    asked, seen = [rows[i].style for i in chosen], judge.styles_of(uint8_pictures(drawn))
    right = [one == other for one, other in zip(asked, seen, strict=True)]
    by_style = shares_by_kind(asked, right)
    kept_by_style = shares_by_kind([row.style for row in theirs.rows], kept)
    scores = {
        "style_agreement": 100.0 * sum(right) / len(right),
        "style_agreement_mean": sum(by_style.values()) / len(by_style),
        "chance_style_agreement": 100.0 * max(Counter(asked).values()) / len(asked),
        "classifier_accuracy": 100.0 * sum(kept) / len(kept),
        "classifier_accuracy_mean": sum(kept_by_style.values()) / len(kept_by_style),
        **{f"style_agreement {style}": share for style, share in by_style.items()},
    }
    _show_styles(bench, [rows[i].text for i in chosen], drawn, asked, seen)
    record = bench.record(
        "styles",
        TRAINED,
        scores,
        len(chosen),
        prompts="captions of record; number k of the order is drawn with seed + k",
        seed=bench.seed,
        chance="what a model reaches that draws everything in the style asked for most",
        mean="over the styles asked for, or of the validation pictures, each counted alike",
        classifier={
            "trained_on": "training pictures of the same set, each style by the square root of its number",
            "tested_on": f"all {len(theirs.rows)} validation pictures",
            "styles": list(judge.styles),
            "config": asdict(judge.config),
            "sha256": judge.sha256,
        },
        sampling=bench.image_sampling,
    )
    return [record]


def _judge(bench: Bench) -> StyleClassifier:
    """The classifier of the bench's set, kept in its folder as its decoded pictures are."""

    def pictures() -> tuple[Tensor, list[str]]:
        opened = bench.open(TRAINED)
        return opened.images_N3YX, [row.style for row in opened.rows]

    return opened_or_learned(
        Path(bench.folder),
        bench.metadata_sha256,
        pictures,
        CLASSIFIER,
        progress=lambda done, total: bench.progress("style classifier", done, total),
    )


def _show_styles(
    bench: Bench, prompts: Sequence[str], drawn: Sequence[Image.Image], asked: Sequence[str], seen: Sequence[str]
) -> None:
    """Pictures of each style; where another one is seen, which."""
    for style, count in sorted(Counter(asked).items(), key=lambda one: (-one[1], one[0])):
        own = [k for k, one in enumerate(asked) if one == style]
        cells = tuple(
            Shown(
                pictures=(drawn[k],),
                words=(prompts[k],) if seen[k] == style else (prompts[k], f"(seen: {seen[k]})"),
                is_right=seen[k] == style,
            )
            for k in own[:_SHOWN_EACH]
        )
        found = sum(seen[k] == style for k in own)
        bench.show(Exhibit(section="styles", title=f"{style}: {found} of {count} are seen as such", cells=cells))
