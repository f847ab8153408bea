"""The model card of a trained model, as `flowtok pack` writes it: what it is, how it was trained, how good it is.

Puts together what is handed over and measures nothing; packing.py gathers it. The card of an imported model:
released/card.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowtok.components import Model
from flowtok.config import to_dict
from flowtok.data.captioned import Row, read_rows
from flowtok.errors import DataError

LICENCES_FILE = "LICENSES.md"
PARTS = ("text_encoder", "text_projector", "velocity", "image_tokenizer", "text_decoder")


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a card says of the captioned set that a model learned from.

    Attributes:
        example: A canonical caption.
        counts: Pictures of each split.
        concepts: Different things that they show.
        styles: Of the training pictures, the most frequent one first.
        licences: The set's own page of licences, Markdown without its heading.
    """

    example: str
    counts: Mapping[str, int]
    concepts: int
    styles: tuple[str, ...]
    licences: str

    @classmethod
    def read(cls, folder: Path) -> "DataFacts":
        """Reads a built set.

        Raises:
            DataError: It is no such set, or has no page of licences.
        """
        rows: Sequence[Row] = read_rows(folder)
        try:
            licences = (folder / LICENCES_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{folder} has no readable {LICENCES_FILE}, which a card must repeat; build the set again, or write it"
            ) from error
        learned = [row for row in rows if row.split == "train"] or list(rows)
        return cls(
            example=learned[0].text,
            counts=Counter(row.split for row in rows),
            concepts=len({row.concept for row in rows}),
            styles=tuple(style for style, _ in Counter(row.style for row in learned).most_common() if style),
            licences="\n".join(line for line in licences.splitlines() if not line.startswith("# ")).strip(),
        )


def model_card(
    model: Model,
    *,
    reference: str,
    dtype: str,
    training: str,
    scores: str,
    data: DataFacts | None = None,
    licence: str | None = None,
    notes: str = "",
) -> str:
    """The card as Markdown.

    Args:
        model: What is described.
        reference: How its users name it: a shipped model's name, or its folder's.
        dtype: Float type of the stored weights.
        training: The command that trains it.
        scores: Tables of its scores; empty where it was not measured.
        data: What it learned from, where that is at hand.
        licence: Of the weights, such as "apache-2.0".
        notes: Markdown that whoever packs it wants to add.
    """
    tokens, pixels = model.velocity.config, model.image_tokenizer.config.image_size
    ways = "Pictures from words, and words from pictures," if "text_decoder" in model.parts else "Pictures from words"
    example = data.example if data is not None else "a red heart"
    head = [f"license: {licence}"] if licence else []
    head += ["library_name: flowtok", "pipeline_tag: text-to-image", "tags: [flow-matching, text-to-image]"]
    use = [f'flowtok generate "{example}" --model {reference} -o picture.png']
    use += [f"flowtok caption picture.png --model {reference}"] if "text_decoder" in model.parts else []
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {model.name}",
        f"{ways} at {pixels} x {pixels} pixels, through {tokens.num_tokens} tokens of {tokens.token_channels} numbers. "
        f"Trained with flowtok; the weights are stored in {dtype}.",
        notes.strip(),
        "\n".join(["```bash", *use, "```"]),
        f"It learned captions such as `{data.example}`. Styles: {', '.join(data.styles)}." if data is not None else "",
        "## What it is made of",
        _made_of(model),
        "## How it was trained",
        _trained(model.provenance["recipe"], training, data),
        "## Scores",
        scores.strip() or f"Not measured. `flowtok eval {reference} --data FOLDER` does.",
        "## Licences",
        _licences(model, licence, data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made_of(model: Model) -> str:
    lines = ["| part | shape | numbers |", "|---|---|---|"]
    for name in PARTS:
        if name in model.parts:
            part: Any = model.parts[name]
            count = sum(tensor.numel() for tensor in part.state_dict().values())
            lines.append(f"| {name.replace('_', ' ')} | {_shape(to_dict(part.config))} | {count / 1e6:.2f} M |")
    return "\n".join(lines)


def _shape(config: Mapping[str, Any]) -> str:
    """A config in a line; what is switched off is left out."""
    said = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            said.append(f"{name} ({_shape(value)})")
        elif value is True:
            said.append(name)
        elif value not in (None, False):
            said.append(f"{name} {value}")
    return ", ".join(said)


def _trained(recipe: Mapping[str, Any], command: str, data: DataFacts | None) -> str:
    """The command, the pictures and the stages, each with its length and rate."""
    on = "`FOLDER` is a set of captioned pictures."
    if data is not None:
        pictures = ", ".join(f"{count:,} {split.replace('_', ' ')}" for split, count in data.counts.items())
        on = f"`FOLDER` held {sum(data.counts.values()):,} pictures of {data.concepts:,} concepts: {pictures}."
    lines = ["| stage | updates x batch | optimiser | rate | precision |", "|---|---|---|---|---|"]
    for key, training in recipe.items():
        if key.endswith("_training") and training is not None:
            optimizer = training["optimizer"]
            lines.append(
                f"| {key.removesuffix('_training')} | {training['num_steps']:,} x {training['batch_size']} "
                f"| {optimizer['name']} | {optimizer['learning_rate']:g} | {training['precision']} |"
            )
    whole = "The whole recipe stands in `config.json` as `provenance.recipe`; a file of it can be trained from too."
    return "\n".join(["```bash", command, "```", "", f"{on} {whole}", "", *lines])


def _licences(model: Model, licence: str | None, data: DataFacts | None) -> str:
    """Of the weights, of the language encoder, and of what the model learned from."""
    said = [f"Weights: {licence}." if licence else "Weights: no licence was named; ask whoever gave you this model."]
    note = None if model.text_encoder_folder is None else model.text_encoder_folder / "README.md"
    if note is not None and note.is_file():
        title, *lines = note.read_text(encoding="utf-8").strip().splitlines()
        own = next((line for line in lines if line.lower().startswith(("licence:", "license:"))), "")
        said.append(f"Language encoder: {title.lstrip('# ')}, see `text_encoder/README.md`. {own}".strip())
    if data is None:
        return "\n\n".join([*said, "Pictures that it learned from: not named here."])
    return "\n\n".join([*said, "The pictures that it learned from are not part of the model.", data.licences])
