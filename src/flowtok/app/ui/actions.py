"""What the buttons of the page do: fields checked, the model called, the result as HTML.

Knows the model and views.py, but no Gradio, so it can be called without a browser. The fields stand in page.py.
"""

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flowtok.app.ui import views
from flowtok.data.images import PLAIN_KINDS, open_picture, to_pil
from flowtok.errors import FlowTokError
from flowtok.flow.solver import CHOOSES_ITS_STEPS
from flowtok.pipeline import FlowTok, parse_arithmetic

MOST_STEPS = 100
MOST_FRAMES = 11
MOST_BETWEEN = 12
MOST_TERMS = 6
FRESH_SEED = "A new seed each time"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a picture is drawn."""

    seed: int
    guidance: float
    steps: int

    def __str__(self) -> str:
        return f"seed {self.seed} · guidance {self.guidance:g} · {self.steps} steps"

    @property
    def chosen(self) -> dict[str, Any]:
        """As `FlowTok.generate` and its like take them."""
        return {"seed": self.seed, "guidance_scale": self.guidance, "num_inference_steps": self.steps}


class Actions:
    """The buttons of the page, for one model. All of them raise FlowTokError for what the user can mend.

    The last four arguments of those that draw are the fields of their settings: whether to take a new seed, the seed,
    guidance and steps. They return the HTML of the result and the seed that was used.
    """

    def __init__(self, model: FlowTok) -> None:
        self.model = model

    @property
    def reads(self) -> bool:
        """Whether the model has what captions need."""
        return "text_decoder" in self.model.parts

    def draw(self, prompt: str, fresh: Any, seed: Any, guidance: Any, steps: Any) -> tuple[str, int]:
        """A picture of a prompt, with the flow that leads to it."""
        settings = _settings(fresh, seed, guidance, steps)
        if self.model.sampling.solver == CHOOSES_ITS_STEPS:  # it stops nowhere on the way: there is only the picture
            frames = self.model.generate(prompt, **settings.chosen)
        else:
            number = min(MOST_FRAMES, settings.steps + 1)
            frames = self.model.flow_frames(prompt, number, **settings.chosen)
        self._note_type(frames)
        labels = [f"t = {frame.info.get('t', 1.0):.2f}" for frame in frames]
        shown = views.player(
            frames, labels, title=prompt, note=str(settings), slider="The flow, from words to picture",
            ends=("words", "picture"),
        )  # fmt: skip
        return shown, settings.seed

    def read_upload(self, upload: Any) -> str:
        """Words for an uploaded picture."""
        return views.reading(*self._read(_uploaded(upload)))

    def read_drawing(self, drawing: Any) -> str:
        """Words for a drawing."""
        return views.reading(*self._read(_drawn(drawing)))

    def round_upload(self, upload: Any, fresh: Any, seed: Any, guidance: Any, steps: Any) -> tuple[str, int]:
        """An uploaded picture, its words, and a picture of those words."""
        return self._round(_uploaded(upload), _settings(fresh, seed, guidance, steps))

    def round_drawing(self, drawing: Any, fresh: Any, seed: Any, guidance: Any, steps: Any) -> tuple[str, int]:
        """Likewise of a drawing."""
        return self._round(_drawn(drawing), _settings(fresh, seed, guidance, steps))

    def blend(
        self, first: str, last: str, number: Any, fresh: Any, seed: Any, guidance: Any, steps: Any
    ) -> tuple[str, int]:
        """The way from one prompt to another."""
        settings = _settings(fresh, seed, guidance, steps)
        count = _whole(number, "the number of pictures", 2, MOST_BETWEEN)
        pictures = self.model.interpolate(first, last, count, **settings.chosen)
        self._note_type(pictures)
        labels = [f"{100 * i / (count - 1):.0f} %" for i in range(count)]
        shown = views.player(
            pictures, labels, title=f"{first} → {last}", note=str(settings), slider="From the first words to the last",
            ends=(first, last),
        )  # fmt: skip
        return shown, settings.seed

    def add(self, text: str, fresh: Any, seed: Any, guidance: Any, steps: Any) -> tuple[str, int]:
        """Words added and taken away: a picture of each, and one of the sum."""
        settings = _settings(fresh, seed, guidance, steps)
        terms = parse_arithmetic(text)
        if len(terms) == 1:
            raise FlowTokError("there is nothing to add: put + or - between spaces, as in 'king - man + woman'")
        if len(terms) > MOST_TERMS:
            raise FlowTokError(f"that is a sum of {len(terms)} prompts, more than the {MOST_TERMS} drawn here")
        (result,) = self.model.interpolate(text, text, 1, **settings.chosen)
        drawn = [(sign, prompt, self.model.generate(prompt, **settings.chosen)[0]) for sign, prompt in terms]
        self._note_type([result, *(picture for *_, picture in drawn)])
        return views.equation(drawn, result, note=str(settings)), settings.seed

    # What they share

    def _note_type(self, pictures: Sequence[Image.Image]) -> None:
        """Has pictures tell, as `flowtok generate` does, what the networks computed in where that is not float32."""
        if self.model.precision != "float32":
            for picture in pictures:
                picture.info["dtype"] = self.model.precision

    def _read(self, picture: Image.Image) -> tuple[Image.Image, str]:
        """What the model sees of a picture, and its words for it."""
        (seen,) = to_pil(self.model.pixels(picture)[None])
        (words,) = self.model.caption(seen)
        return seen, words

    def _round(self, picture: Image.Image, settings: Settings) -> tuple[str, int]:
        seen, words = self._read(picture)
        if not words.strip():
            raise FlowTokError("the model has no words for this picture, so there is nothing to draw; try another")
        (again,) = self.model.generate(words, **settings.chosen)
        self._note_type([again])
        return views.round_trip(seen, words, again, note=str(settings)), settings.seed


def _settings(fresh: Any, seed: Any, guidance: Any, steps: Any) -> Settings:
    """The fields of a request, which may hold anything, as settings.

    Raises:
        FlowTokError: A field is empty, no number, or out of range.
    """
    return Settings(
        seed=secrets.randbelow(2**32) if fresh is True else _whole(seed, "the seed", 0, 2**53 - 1, FRESH_SEED),
        guidance=_number(guidance, "guidance"),
        steps=_whole(steps, "the number of steps", 1, MOST_STEPS),
    )


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise FlowTokError(f"{what} must be a number; fill in the field")
    return value


def _whole(value: Any, what: str, least: int, most: int, otherwise: str | None = None) -> int:
    number = None if value is None else _number(value, what)
    if number is None or number != int(number) or not least <= number <= most:
        got = "" if number is None else f", not {number:g}"
        remedy = f"; or tick “{otherwise}”" if otherwise else ""
        raise FlowTokError(f"{what} must be a whole number from {least} to {most}{got}{remedy}")
    return int(number)


def _uploaded(upload: Any) -> Image.Image:
    """An upload. Gradio has checked that its path is one of the files that were uploaded.

    Its bytes are opened, not the path, so that no error names a path of this machine.
    """
    path = upload.get("path") if isinstance(upload, dict) else None
    if not path:
        raise FlowTokError("there is no picture yet; choose a file, drop one here, or click an example")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FlowTokError("the picture is no longer here; choose it again") from error
    return open_picture(content, kinds=PLAIN_KINDS)


def _drawn(drawing: Any) -> Image.Image:
    picture = drawing.get("composite") if isinstance(drawing, dict) else None
    if picture is None or all(low == high for low, high in picture.convert("RGB").getextrema()):
        raise FlowTokError("the canvas is empty; draw something first")
    return picture
