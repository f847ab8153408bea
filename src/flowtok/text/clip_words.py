"""How CLIP reads a caption: cleaned and cut into runs as its own tokenizer does, then into ids.

Knows no network; encoder.py frames and pads the ids.
"""

import html
import re
from itertools import groupby

from tokenizers import Tokenizer

from flowtok.errors import FlowTokError

# The tokenizer takes the first two names in a caption for the ids themselves, but not inside a run of punctuation.
RUNS = re.compile(r"<start_of_text>|<end_of_text>|[^\W_]+|(?:[^\w\s]|_)+|\s+")


def clip_word_ids(text: str, tokenizer: Tokenizer, start_id: int, end_id: int) -> list[int]:
    """The ids of a caption, without the frame of start and end.

    Raises:
        FlowTokError: If the package ftfy is not installed.
    """
    specials = {"<start_of_text>": start_id, "<end_of_text>": end_id}
    ids: list[int] = []
    for is_special, runs in groupby(RUNS.findall(cleaned(text)), key=specials.__contains__):
        if is_special:
            ids += [specials[run] for run in runs]
        else:
            ids += tokenizer.encode("".join(runs), add_special_tokens=False).ids
    return ids


def cleaned(text: str) -> str:
    """A caption without broken characters, HTML entities (unescaped twice), long white space and capitals."""
    try:
        import ftfy
    except ImportError as error:
        raise FlowTokError("CLIP's tokenizer needs the package ftfy: pip install ftfy") from error
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
