"""The tasks on what words reach: free paraphrases of what was trained on, and words to a picture and back.

The list is in prompt_lists.py, scores are in retrieval.py and captions.py. Tasks by name: tasks.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from flowtok.data.captioned import Row
from flowtok.errors import DataError
from flowtok.evaluate import captions, retrieval
from flowtok.evaluate.bench import Bench, uint8_pictures
from flowtok.evaluate.captioned_tasks import PIXEL_SIDE, WAYS, pixel_vectors, show_captions
from flowtok.evaluate.page import Exhibit, Shown
from flowtok.evaluate.prompt_lists import Paraphrase, list_sha256, paraphrases
from flowtok.evaluate.report import Record

TRAINED = "train"
_SHOWN, _SHOWN_EACH = 24, 8


def check_paraphrases(bench: Bench, limit: int | None) -> None:
    """Looks for pictures of all listed concepts; DataError where there are none of some."""
    del limit
    _gallery_positions(bench)


def _gallery_positions(bench: Bench) -> tuple[list[int], Tensor]:
    """Positions of the training pictures that show a listed concept, skin tones left out, and which one each shows."""
    numbers = {one.concept: number for number, one in enumerate(paraphrases())}
    rows = bench.open(TRAINED).rows
    positions = [i for i, row in enumerate(rows) if row.concept in numbers and not row.variant]
    concept_M = torch.tensor([numbers[rows[i].concept] for i in positions], dtype=torch.long)
    missing = [concept for concept, number in numbers.items() if number not in concept_M]
    if missing:
        raise DataError(
            f"the set in {bench.folder} has no training pictures of {len(missing)} of the {len(numbers)} concepts that "
            f"are paraphrased, such as {missing[0]!r}; build the whole set: flowtok data emoji -o FOLDER"
        )
    return positions, concept_M


def chosen_paraphrases(limit: int | None) -> list[int]:
    """Positions in the list of the first `limit` paraphrases in the fixed order; all where it is None."""
    return retrieval.fixed_order([one.prompt for one in paraphrases()])[:limit]


def draw_for_paraphrases(bench: Bench, split: str, limit: int | None) -> list[Image.Image]:
    """A picture of each paraphrase."""
    del split
    prompts = [paraphrases()[number].prompt for number in chosen_paraphrases(limit)]
    return bench.generate_kept(prompts, "paraphrases", "generation, paraphrases")


def paraphrase_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Draws from words that never name what they mean, and looks whether what is meant is found among 128 concepts.

    The gallery of a paraphrase is its own concept and 127 others of the list, none twice. A concept is as near as the
    nearest of its training pictures in any style, since a paraphrase asks for none: whoever draws a training picture of
    the right concept, in whatever style, finds it.
    """
    listed, chosen = paraphrases(), chosen_paraphrases(limit)
    positions, concept_M = _gallery_positions(bench)
    concepts = [one.concept for one in listed]
    ways = min(WAYS, len(concepts))
    candidates_NK = retrieval.draw_candidates(concepts, chosen, ways)
    drawn = draw_for_paraphrases(bench, split, limit)
    query_N3YX, gallery_M3YX = uint8_pictures(drawn), bench.open(TRAINED).images_N3YX[positions]

    def made() -> Tensor:
        return bench.vectors(gallery_M3YX, "vectors, pictures of paraphrased concepts")

    query_ND = bench.vectors(query_N3YX, "vectors, generated for paraphrases")
    ranks_N = retrieval.concept_ranks(query_ND, bench.gallery(TRAINED, "paraphrases", made), concept_M, candidates_NK)
    by_pixels_N = retrieval.concept_ranks(
        pixel_vectors(query_N3YX), pixel_vectors(gallery_M3YX), concept_M, candidates_NK
    )
    scores = retrieval.retrieval_scores(ranks_N, ways)
    by_pixels = retrieval.retrieval_scores(by_pixels_N, ways)
    scores |= {f"pixel_{name}": value for name, value in by_pixels.items() if not name.startswith("chance_")}
    kinds = [listed[number].kind for number in chosen]
    scores |= {f"r_at_1 {kind}": share for kind, share in shares_by_kind(kinds, (ranks_N <= 1).tolist()).items()}
    _show_paraphrases(bench, [listed[number] for number in chosen], drawn, ranks_N, positions, concept_M)
    record = bench.record(
        "paraphrases",
        TRAINED,
        scores,
        len(chosen),
        samples=f"the first {len(chosen)} in the order of crc32(paraphrase), paraphrase",
        prompts={"list": "paraphrases", "sha256": list_sha256("paraphrases"), "count": len(listed)},
        seed=bench.seed,
        seed_rule="number k of the order is drawn with seed + k",
        ways=ways,
        gallery="concepts of the list, each by that of its training pictures without skin tone that is nearest to what "
        "was drawn: no two pictures of one concept",
        others="of the list, drawn by torch.randperm seeded with crc32 of the own concept",
        similarity="cosine; equally near counts as nearer",
        vector="posterior mean of the image tokenizer for the 8-bit picture, whitened by the model's latent scale",
        pixel_vector=f"mean over squares, {PIXEL_SIDE} x {PIXEL_SIDE} colours in [0, 1], less one half",
        sampling=bench.image_sampling,
    )
    return [record]


def _show_paraphrases(
    bench: Bench,
    asked: Sequence[Paraphrase],
    drawn: Sequence[Image.Image],
    ranks_N: Tensor,
    positions: Sequence[int],
    concept_M: Tensor,
) -> None:
    """What was drawn beside a picture of what was meant, by kind; green where it was found first."""
    numbers = {one.concept: number for number, one in enumerate(paraphrases())}
    first = {number: position for position, number in reversed(list(zip(positions, concept_M.tolist(), strict=True)))}
    for kind in dict.fromkeys(one.kind for one in asked):
        own = [k for k, one in enumerate(asked) if one.kind == kind][:_SHOWN_EACH]
        meant = bench.pictures(TRAINED, [first[numbers[asked[k].concept]] for k in own])
        cells = tuple(
            Shown(
                pictures=(drawn[k], picture),
                words=(asked[k].prompt, f"{asked[k].concept}: rank {int(ranks_N[k])}"),
                is_right=bool(ranks_N[k] == 1),
            )
            for k, picture in zip(own, meant, strict=True)
        )
        bench.show(Exhibit(section="paraphrases", title=f"{kind}: generated, one that is meant", cells=cells))


def chosen_names(bench: Bench, split: str, limit: int | None) -> list[int]:
    """For each name of a split one picture, the first of that name in the fixed order; names in the order of crc32."""
    rows = bench.open(split).rows
    first: dict[str, int] = {}
    for i in bench.choose(split, None):
        first.setdefault(_name(rows[i]), i)
    names = list(first)
    return [first[names[number]] for number in retrieval.fixed_order(names)[:limit]]


def _name(row: Row) -> str:
    return captions.split_caption(row.text)[0]


def draw_for_round_trip(bench: Bench, split: str, limit: int | None) -> list[Image.Image]:
    """A picture for each name, from the caption of record of one of its pictures."""
    rows = bench.open(split).rows
    prompts = [rows[i].text for i in chosen_names(bench, split, limit)]
    return bench.generate_kept(prompts, f"round-trip-{split}", f"generation, names of {split}")


def round_trip_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Words to a picture and back: which share of the names comes back as it was."""
    rows = bench.open(split).rows
    chosen = chosen_names(bench, split, limit)
    drawn = draw_for_round_trip(bench, split, limit)
    written = [
        caption
        for part in bench.batches(drawn, f"captions, generated for names of {split}")
        for caption in bench.caption(part)
    ]
    asked = [rows[i].text for i in chosen]
    scores = captions.caption_scores(written, asked, known_style=split != "unseen_style")
    right = [
        captions.words_of(captions.split_caption(ours)[0]) == captions.words_of(captions.split_caption(theirs)[0])
        for ours, theirs in zip(written, asked, strict=True)
    ]
    groups = [rows[i].group for i in chosen]
    scores |= {f"exact_name {group}": share for group, share in shares_by_kind(groups, right).items()}
    show_captions(bench, f"round trip, {split}", drawn[:_SHOWN], written, asked)
    record = bench.record(
        "round_trip",
        split,
        scores,
        len(chosen),
        samples=f"the first {len(chosen)} names in the order of crc32(name), name, each once",
        prompts="the caption of record of a name's first picture in the order of crc32(file_name), file_name",
        names=len(chosen_names(bench, split, None)),
        seed=bench.seed,
        seed_rule="number k of the order is drawn with seed + k",
        same="equal words and punctuation marks in order, lower-case",
        name='what stands before ", in STYLE style"',
        word_f1="of the name's words as a bag, mean over names",
        sampling=bench.image_sampling | bench.caption_sampling,
    )
    return [record]


def shares_by_kind(kinds: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    """The percentage of right ones of each kind."""
    marks: dict[str, list[bool]] = {}
    for kind, one in zip(kinds, right, strict=True):
        marks.setdefault(kind, []).append(one)
    return {kind: 100.0 * sum(own) / len(own) for kind, own in sorted(marks.items())}
