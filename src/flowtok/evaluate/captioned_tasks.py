"""The tasks on any captioned set: reconstruction, retrieval and captions.

The scores are functions in reconstruction.py, fid.py, retrieval.py, captions.py and coco_captions.py; how a model is
run on a set is in bench.py. Tasks by name: tasks.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flowtok.data.captioned import EmojiSet
from flowtok.errors import FlowTokError
from flowtok.evaluate import captions, coco_captions, fid, needs, reconstruction, retrieval
from flowtok.evaluate.bench import Bench, uint8_pictures
from flowtok.evaluate.clip import ClipScorer, clip_score
from flowtok.evaluate.page import Exhibit, Shown
from flowtok.evaluate.report import Record

WAYS = 128
PIXEL_SIDE = 16
_SHOWN, _SHOWN_EACH, _CATEGORIES = 24, 8, 12


def check_reconstruction(bench: Bench, limit: int | None) -> None:
    """Looks for the networks behind rFID and LPIPS where these are asked for; FlowTokError where they are missing."""
    if bench.weights is not None:
        needs.inception(bench)
        needs.lpips(bench)
        if limit == 1:
            raise FlowTokError("rFID needs at least 2 pictures, and --limit is 1; leave --weights out or take more")


def reconstruction_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """PSNR and SSIM of rebuilt pictures; where weights are named, rFID and LPIPS in a record of their own."""
    chosen = bench.choose(split, limit)
    judges = _Judges(bench) if bench.weights is not None else None
    psnr, ssim = [], []
    for part in bench.batches(chosen, f"reconstruction, {split}"):
        originals = bench.pictures(split, part)
        rebuilt = _rebuilt(bench, split, part)
        image_B3YX, rebuilt_B3YX = (uint8_pictures(one).float() / 255 for one in (originals, rebuilt))
        psnr.append(reconstruction.psnr_B(image_B3YX, rebuilt_B3YX))
        if reconstruction.has_ssim():
            ssim.append(reconstruction.ssim_B(image_B3YX, rebuilt_B3YX))
        if judges is not None:
            judges.see(originals, rebuilt)
    psnr_N = torch.cat(psnr)
    _show_reconstructions(bench, split, chosen, psnr_N)
    records = [
        bench.record(
            "reconstruction",
            split,
            reconstruction.reconstruction_scores(psnr_N, torch.cat(ssim) if ssim else None),
            len(chosen),
            optional=["torchmetrics"] if ssim else [],
            pixels="8 bit, on white, as fractions in [0, 1]",
            psnr="decibels over all pixels and colours of a picture, mean over pictures",
            ssim="Gaussian window of 11 pixels, sigma 1.5, mean over pictures",
        )
    ]
    return records + ([judges.record(split, len(chosen))] if judges is not None else [])


def measure_reconstruction(bench: Bench, split: str, limit: int | None) -> Record:
    """PSNR, and SSIM where it can be measured, of the 8-bit pictures that `FlowTok.reconstruct` gives."""
    return reconstruction_records(bench, split, limit)[0]


class _Judges:
    """The networks that compare rebuilt pictures with their originals: Inception for rFID, VGG for LPIPS."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.network = bench, needs.inception(bench)
        self.lpips, self.lpips_files = needs.lpips(bench)
        self.distances: list[float] = []
        self.features: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.inference_mode()
    def see(self, originals: Sequence[Image.Image], rebuilt: Sequence[Image.Image]) -> None:
        """Takes pictures and what came back."""
        for kept, pictures in zip(self.features, (originals, rebuilt), strict=True):
            kept.append(self.network(pictures, "tf1"))
        pixels = [(uint8_pictures(one).float() / 255).to(self.bench.model.device) for one in (originals, rebuilt)]
        for image_3YX, rebuilt_3YX in zip(*pixels, strict=True):
            self.distances.append(float(self.lpips(image_3YX[None], rebuilt_3YX[None])))

    def record(self, split: str, count: int) -> Record:
        """Both scores over all pictures seen."""
        originals, rebuilt = (fid.statistics_of(torch.cat(parts)) for parts in self.features)
        scores = {
            "rfid": fid.frechet_distance(originals, rebuilt),
            "lpips": sum(self.distances) / len(self.distances),
        }
        return self.bench.record(
            "rfid",
            split,
            scores,
            count,
            pixels="8 bit, on white",
            reference="the originals of the same pictures at the model's size",
            features=self.network.protocol("tf1"),
            lpips={"network": "VGG16, version 0.1", "sha256": [_sha256(path) for path in self.lpips_files]},
        )


def _rebuilt(bench: Bench, split: str, part: Sequence[int]) -> list[Image.Image]:
    """Some pictures through their tokens and back; a decoder that is guided by text is told the captions of record."""
    guided = bench.model.image_tokenizer.config.text_width is not None
    texts = [bench.open(split).rows[i].text for i in part] if guided else None
    return bench.model.reconstruct(bench.pictures(split, part), captions=texts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _show_reconstructions(bench: Bench, split: str, chosen: Sequence[int], psnr_N: Tensor) -> None:
    """Best, median and worst pictures, each beside its original, for the report."""
    rows, order = bench.open(split).rows, psnr_N.argsort(descending=True).tolist()
    middle = max(0, len(order) // 2 - _SHOWN_EACH // 2)
    parts = {
        "best": order[:_SHOWN_EACH],
        "median": order[middle : middle + _SHOWN_EACH],
        "worst": order[::-1][:_SHOWN_EACH],
    }
    for name, numbers in parts.items():
        part = [chosen[i] for i in numbers]
        originals, rebuilt = bench.pictures(split, part), _rebuilt(bench, split, part)
        cells = tuple(
            Shown(pictures=(original, ours), words=(f"{psnr_N[i]:.1f} dB", rows[chosen[i]].text))
            for i, original, ours in zip(numbers, originals, rebuilt, strict=True)
        )
        title = f"{name} by PSNR: original, rebuilt"
        bench.show(Exhibit(section=f"reconstruction, {split}", title=title, cells=cells))


def check_retrieval(bench: Bench, limit: int | None) -> None:
    """Looks for the CLIP where one is named; CheckpointError where it is none."""
    del limit
    needs.clip(bench)


def draw_for_retrieval(bench: Bench, split: str, limit: int | None) -> list[Image.Image]:
    """The pictures that are looked for."""
    opened = bench.open(split)
    prompts = [opened.rows[i].text for i in bench.choose(split, limit)]
    return bench.generate_kept(prompts, f"retrieval-{split}", f"generation, {split}")


def retrieval_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Generates from captions of record and looks for each one's picture: by tokens, by pixels, by CLIP.

    Among 128 pictures, so that sets of any size compare, and among all pictures of the split.
    """
    opened = bench.open(split)
    chosen = bench.choose(split, limit)
    names = [row.file_name for row in opened.rows]
    ways = min(WAYS, len(names))
    clip = needs.clip(bench)
    candidates_NK = retrieval.draw_candidates(names, chosen, ways)
    drawn = draw_for_retrieval(bench, split, limit)
    query_N3YX = uint8_pictures(drawn)

    def found(query_ND: Tensor, gallery_MD: Tensor) -> dict[str, float]:
        among_some = retrieval.retrieval_scores(retrieval.own_ranks(query_ND, gallery_MD, candidates_NK), ways)
        return among_some | retrieval.scores_among_all(retrieval.ranks_among_all(query_ND, gallery_MD, chosen))

    scores = found(bench.vectors(query_N3YX, f"vectors, generated for {split}"), bench.gallery(split))
    scores["chance_all_r_at_1"] = 100.0 / len(names)
    by_pixels = found(pixel_vectors(query_N3YX), pixel_vectors(opened.images_N3YX))
    scores |= {f"pixel_{name}": value for name, value in by_pixels.items() if not name.startswith("chance_")}
    _show_generated(bench, split, chosen, drawn)
    common: dict[str, Any] = {
        "prompts": "captions of record; number k of the order is drawn with seed + k",
        "seed": bench.seed,
        "ways": ways,
        "all": len(names),
        "others": "of the same split, drawn by torch.randperm seeded with crc32(file_name) of the own picture",
        "similarity": "cosine; equally near counts as nearer",
        "sampling": bench.image_sampling,
    }
    vector = "posterior mean of the image tokenizer for the 8-bit picture, whitened by the model's latent scale"
    pixels = f"mean over squares, {PIXEL_SIDE} x {PIXEL_SIDE} colours in [0, 1], less one half"
    records = [bench.record("retrieval", split, scores, len(chosen), **common, vector=vector, pixel_vector=pixels)]
    if clip is not None:
        query_ND, gallery_MD, score = _by_clip(bench, clip, split, chosen, drawn)
        scores = {"clip_score": score, **found(query_ND, gallery_MD)}
        records.append(
            bench.record("retrieval_clip", split, scores, len(chosen), libraries=["transformers"], **common,
                         clip=clip.protocol(), clip_score="100 max(cosine, 0), mean")
        )  # fmt: skip
    return records


def _by_clip(
    bench: Bench, clip: ClipScorer, split: str, chosen: Sequence[int], drawn: Sequence[Image.Image]
) -> tuple[Tensor, Tensor, float]:
    """CLIP's vectors of what was drawn and of all pictures of the split, and the CLIP score."""
    rows = bench.open(split).rows
    query_ND = torch.cat([clip.of_pictures(part) for part in bench.batches(drawn, f"CLIP, generated for {split}")])
    prompts = bench.batches([rows[i].text for i in chosen], f"CLIP, prompts of {split}")
    score = clip_score(query_ND, torch.cat([clip.of_texts(part) for part in prompts]))

    def made() -> Tensor:
        parts = bench.batches(range(len(rows)), f"CLIP, all of {split}")
        return torch.cat([clip.of_pictures(bench.pictures(split, part)) for part in parts])

    return query_ND, bench.gallery(split, f"CLIP {bench.clip}", made), score


def measure_retrieval(bench: Bench, split: str, limit: int | None) -> Record:
    """Retrieval by the tokenizer's vectors and by pixels."""
    return retrieval_records(bench, split, limit)[0]


def pixel_vectors(image_N3YX: Tensor) -> Tensor:
    """Pictures (uint8) as what one sees from afar: means over 16 x 16 squares, grey at zero."""
    parts = [F.adaptive_avg_pool2d(part.float() / 255, PIXEL_SIDE).flatten(1) - 0.5 for part in image_N3YX.split(1024)]
    return torch.cat(parts)


def _show_generated(bench: Bench, split: str, chosen: Sequence[int], drawn: Sequence[Image.Image]) -> None:
    """Samples beside what their prompts stand for, by category, for the report."""
    rows = bench.open(split).rows
    groups: dict[str, list[int]] = {}
    for number, i in enumerate(chosen):
        groups.setdefault(rows[i].style or rows[i].group, []).append(number)
    largest = sorted(groups.items(), key=lambda one: (-len(one[1]), one[0]))[:_CATEGORIES]
    said = f"{bench.chosen.num_inference_steps} steps, guidance {bench.chosen.guidance_scale:g}"
    for name, numbers in largest:
        first = numbers[:_SHOWN_EACH]
        originals = bench.pictures(split, [chosen[k] for k in first])
        cells = tuple(
            Shown(pictures=(drawn[k], original), words=(rows[chosen[k]].text,))
            for k, original in zip(first, originals, strict=True)
        )
        title = f"{name}: generated, original ({said})"
        bench.show(Exhibit(section=f"retrieval, {split}", title=title, cells=cells))


def caption_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Captions pictures and compares with the captions of record; beside it, the nearest training picture's names."""
    opened: EmojiSet = bench.open(split)
    chosen = bench.choose(split, limit)
    written = [
        caption
        for part in bench.batches(chosen, f"captions, {split}")
        for caption in bench.caption(bench.pictures(split, part))
    ]
    references = [opened.rows[i].text for i in chosen]
    scores = captions.caption_scores(written, references, known_style=split != "unseen_style")
    protocol: dict[str, Any] = {
        "same": "equal words and punctuation marks in order, lower-case",
        "name": 'what stands before ", in STYLE style"',
        "word_f1": "of the name's words as a bag, mean over pictures",
        "sampling": bench.caption_sampling,
    }
    if split != "train":  # a training picture is its own nearest one
        train = bench.open("train")
        query_ND = bench.vectors(opened.images_N3YX[chosen], f"vectors, {split}")
        texts = [train.rows[i].text for i in captions.nearest(query_ND, bench.gallery("train")).tolist()]
        baseline = captions.caption_scores(texts, references, known_style=False)
        scores |= {f"nearest_{name}": value for name, value in baseline.items()}
        protocol["nearest"] = "cosine of whitened posterior means of the image tokenizer, among all training pictures"
    protocol["coco"] = {"tokens": coco_captions.TOKENS, "references": "all captions of the picture"}
    missing = coco_captions.hindrance()
    if missing is None:
        try:
            scores |= coco_captions.coco_scores(written, [opened.rows[i].texts for i in chosen])
        except FlowTokError as error:  # the other scores of a long run must not be lost with these
            missing = str(error)
    if missing is not None:
        bench.note(f"captions, {split}: {missing}")
    show_captions(bench, f"captions, {split}", bench.pictures(split, chosen[:_SHOWN]), written, references)
    library = [coco_captions.LIBRARY] if missing is None else []
    return [bench.record("captions", split, scores, len(chosen), optional=library, **protocol)]


def measure_captions(bench: Bench, split: str, limit: int | None) -> Record:
    """Captions against the captions of record, by words and by COCO's scores where Java is."""
    return caption_records(bench, split, limit)[0]


def show_captions(
    bench: Bench, section: str, pictures: Sequence[Image.Image], written: Sequence[str], references: Sequence[str]
) -> None:
    """Pictures with what was written of them, and below it what is right where that is something else."""
    cells = []
    for picture, ours, theirs in zip(pictures, written, references, strict=False):
        right = captions.words_of(captions.split_caption(ours)[0]) == captions.words_of(
            captions.split_caption(theirs)[0]
        )
        cells.append(Shown(pictures=(picture,), words=(ours,) if right else (ours, f"({theirs})"), is_right=right))
    bench.show(Exhibit(section=section, title="what the model writes (and what is right)", cells=tuple(cells)))
