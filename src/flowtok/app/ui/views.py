"""What comes out, as HTML: the player of a flow, words for a picture, a round trip, a sum of words.

Knows PIL pictures and text, which it escapes, and no model. What it looks like: page.css; how it moves: player.js.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flowtok.app.output import readable, slug

Picture = Image.Image


def waiting(what: str) -> str:
    """What stands in the place of a result before there is one."""
    return f'<div class="ft-waiting"><p>{escape(what)}</p></div>'


def player(
    pictures: Sequence[Picture], labels: Sequence[str], *, title: str, note: str, slider: str, ends: tuple[str, str]
) -> str:
    """Pictures on a way: the last one large, a slider and a strip that show the others, a button that plays all.

    Args:
        pictures: In their order; controls are left out if there is only one.
        labels: A short one for each, such as "t = 0.10".
        title: What is shown, for people and screen readers.
        note: The settings.
        slider: The slider's name.
        ends: What stands at the slider's left and right.
    """
    last = len(pictures) - 1
    link = _link(pictures[-1])
    parts = [
        f'<figure class="ft-player" data-title="{escape(title)}">',
        f'<img class="ft-large" src="{link}" alt="{escape(f"{title}, {labels[-1]}")}">',
    ]
    if last:
        parts += [
            '<div class="ft-controls">',
            '<button type="button" class="ft-play">Play</button>',
            f'<input type="range" class="ft-range" min="0" max="{last}" step="1" value="{last}" '
            f'aria-label="{escape(slider)}" aria-valuetext="{escape(labels[-1])}">',
            f'<output class="ft-label">{escape(labels[-1])}</output></div>',
            f'<div class="ft-ends"><span>{escape(ends[0])}</span><span>{escape(ends[1])}</span></div>',
            '<div class="ft-strip">',
        ]
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            current = ' aria-current="true"' if i == last else ""
            # The slider does the same from the keyboard: one stop for Tab instead of eleven.
            parts.append(
                f'<button type="button" class="ft-frame" tabindex="-1" data-label="{escape(label)}"{current} '
                f'aria-label="{escape(label)}"><img src="{_link(picture)}" alt=""></button>'
            )
        parts.append("</div>")
    parts += [
        f'<figcaption><strong role="status">{escape(title)}</strong><span>{escape(note)}</span>',
        f'<a class="ft-save" href="{link}" download="{escape(slug(title))}.png">Save the picture</a></figcaption>',
        "</figure>",
    ]
    return "".join(parts)


def reading(seen: Picture, words: str) -> str:
    """Words for a picture, beside what the model saw of it."""
    return (
        f'<div class="ft-reading" role="status"><blockquote class="ft-words">{_said(words)}</blockquote>'
        f"{_figure(seen, 'the picture as the model sees it', 'what the model sees')}</div>"
    )


def round_trip(seen: Picture, words: str, again: Picture, *, note: str) -> str:
    """A picture, the words for it, and a picture of those words."""
    return (
        '<div class="ft-round" role="status">'
        f"{_figure(seen, 'the picture as the model sees it', 'your picture')}"
        '<span class="ft-sign" aria-hidden="true">→</span>'
        f'<figure><blockquote class="ft-words">{_said(words)}</blockquote><figcaption>its words</figcaption></figure>'
        '<span class="ft-sign" aria-hidden="true">→</span>'
        f"{_figure(again, words, 'drawn again')}"
        f'</div><p class="ft-note">{escape(note)}</p>'
    )


def equation(terms: Sequence[tuple[int, str, Picture]], result: Picture, *, note: str) -> str:
    """A sum of words: a picture of each with its sign, and one of the result."""
    parts = ['<div class="ft-equation" role="status">']
    for i, (sign, prompt, picture) in enumerate(terms):
        shown = "+" if sign > 0 else "−"
        # A sign stays with its picture where the line breaks.
        sign_span = f'<span class="ft-sign">{shown}</span>' if i or sign < 0 else ""
        parts.append(f'<div class="ft-term">{sign_span}{_figure(picture, prompt, prompt)}</div>')
    title = str(result.info.get("prompt", "the sum"))
    parts.append(
        f'<div class="ft-term ft-result"><span class="ft-sign">=</span>{_figure(result, title, "the sum")}</div>'
        f'</div><p class="ft-note">{escape(note)}</p>'
    )
    return "".join(parts)


def _figure(picture: Picture, alternative: str, caption: str) -> str:
    return (
        f'<figure><img src="{_link(picture)}" alt="{escape(alternative)}"><figcaption>{escape(caption)}</figcaption>'
        "</figure>"
    )


def _said(words: str) -> str:
    return escape(words.strip()) or "(no words)"


def _link(picture: Picture) -> str:
    """The picture inside its address, with its story in the PNG text, as the command line writes it."""
    story = PngInfo()
    for key in ("prompt", "seed", "model", "flowtok", "dtype"):
        if picture.info.get(key) is not None:
            story.add_itxt(key, readable(str(picture.info[key])))
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=story)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
