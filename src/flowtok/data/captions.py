"""The wording of captions: icon and Unicode names become plain English names, and a name becomes several captions.

Pure functions of text; where names come from is `flowtok.data.iconify`, who uses them is `flowtok.data.emoji`.
"""

import random
import re
import unicodedata
from collections.abc import Sequence

SKIN_TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": None, "”": None, '"': None})
_KEYCAPS = {"keycap: #": "keycap hash", "keycap: *": "keycap asterisk"}
_TAKES_THE = re.compile(
    r"^(united |netherlands|philippines|bahamas|gambia|maldives|seychelles|comoros|vatican city|czech|"
    r"central african republic|dominican republic|isle of|european union)|( islands| territory| territories)$"
)
_JOINED = ("kiss", "couple with heart", "family")


def clean_name(label: str) -> str:
    """Turns a CLDR label ("flag: France", "man: red hair") into a plain lower-case name ("flag of france").

    Accents, quotation marks and brackets go; a colon becomes the word it stands for. Cleaning twice changes nothing.
    A label that is not of this shape is returned lower-case and tidied.
    """
    text = _KEYCAPS.get(label, label).translate(_QUOTES)
    for _ in range(2):  # lower case can hold new accents, and a compatibility form new capitals
        text = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in text if not unicodedata.combining(character)).lower()
    text = re.sub(r"[()\[\]!?…]", " ", text.translate(_QUOTES)).replace("&", "and")
    head, colon, tail = (part.strip() for part in text.partition(":"))
    parts = [part for part in (" ".join(part.split()) for part in tail.replace(":", " ").split(",")) if part]
    if head and colon and parts:
        text = _join(head, parts)
    return re.sub(r"[\s,]+$", "", " ".join(text.split()))


def _join(head: str, parts: list[str]) -> str:
    tones = [part for part in parts if SKIN_TONE.fullmatch(part)]
    others = [part for part in parts if not SKIN_TONE.fullmatch(part)]
    if head == "flag":
        place = ", ".join(others)
        return f"flag of {'the ' if _TAKES_THE.search(place) else ''}{place}"
    if head == "keycap":
        return f"keycap {' '.join(others)}"
    if "bald" in others:
        head, others = f"bald {head}", [part for part in others if part != "bald"]
    facing = [part for part in others if part.startswith("facing ")]
    head = " ".join([head, *facing])
    others = [part for part in others if part not in facing]
    link = " of " if head in _JOINED else " with "
    name = head + (link + _listed(others) if others else "")
    return name + (" with " + _listed(tones) if tones and not others else ", " + _listed(tones) if tones else "")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def slug_name(slug: str) -> str:
    """Turns an icon's slug ("partly-cloudy-day", "image_edit") into words ("partly cloudy day", "image edit")."""
    text = " ".join(word for word in re.split(r"[-_\s]+", slug.lower()) if word)
    text = re.sub(r"\bmedium (light|dark) skin tone\b", r"medium-\1 skin tone", text)
    return re.sub(rf"(?<!with) ({SKIN_TONE.pattern})$", r" with \1", text)


def without_skin_tone(name: str) -> str:
    """The concept behind a name: "waving hand with dark skin tone" is the waving hand."""
    text = re.sub(r"(,| and| with)*\s*" + SKIN_TONE.pattern, "", name)
    return re.sub(r"\s+", " ", text).strip(" ,")


def count_skin_tones(name: str) -> int:
    """How many skin tones a name says."""
    return len(SKIN_TONE.findall(name))


def with_article(name: str) -> str:
    """Puts "a" or "an" before a name, unless it starts with a number or an article or what it names is a plural."""
    thing = re.split(r" (?:with|of|in|on|and|for|facing) ", name)[0]
    if re.match(r"(\d|a |an |the |two |three |four |keycap )", name) or re.search(r"[^suiao']s$", thing):
        return name
    return (
        "an " if re.match(r"[aeio]|u(?!n[it]|s[ae]|ti|k)", name) and not name.startswith(("one-", "eu")) else "a "
    ) + name


def canonical_caption(name: str, style: str) -> str:
    """The caption of record: "NAME, in STYLE style"."""
    return f"{name}, in {style} style"


def caption_variants(
    name: str, style: str, keywords: Sequence[str], generator: random.Random, descriptions: Sequence[str] = ()
) -> list[str]:
    """Several ways to ask for one picture, the canonical caption first, without repeats.

    Args:
        name: a cleaned name. style: the name of its style. keywords: words people search it by (may be empty); with two
            or more there are captions of these alone, since people often describe a thing without naming it.
        generator: draws which keywords are used; the same state gives the same captions.
        descriptions: other words for it (descriptions.py), each alone and some of them in the style.
    """
    article = with_article(name)
    captions = [
        canonical_caption(name, style),
        name,
        article,
        f"{article} in {style} style",
        f"{style} style {name}",
        f"a small picture of {article}",
    ]
    useful = [word for word in dict.fromkeys(k.lower() for k in keywords) if word not in name and len(word) > 1]
    if useful:
        chosen = generator.sample(useful, min(3, len(useful)))
        captions.append(f"{name}: {', '.join(chosen)}")
        captions.append(canonical_caption(f"{name}, {chosen[0]}", style))
    if len(useful) > 1:
        unnamed = [" ".join(generator.sample(useful, min(count, len(useful)))) for count in (2, 3)]
        captions += [unnamed[0], canonical_caption(unnamed[1], style)]
    if descriptions:
        styled = generator.sample(list(descriptions), min(3, len(descriptions)))
        captions += [*descriptions, *(canonical_caption(words, style) for words in styled)]
    return list(dict.fromkeys(captions))
