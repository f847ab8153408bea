"""The tasks on public test sets with pictures: COCO FID-30K, MJHQ-30K and captions of the Karpathy split.

Files are read in layouts.py, features made in inception.py, distances taken in fid.py. Tasks by name: tasks.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowtok.data.images import open_picture
from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate import coco_captions, fid, needs
from flowtok.evaluate.bench import Bench
from flowtok.evaluate.clip import clip_score
from flowtok.evaluate.drawing import Wanted, fingerprint, open_drawn
from flowtok.evaluate.inception import FeatureNetwork, Resize
from flowtok.evaluate.layouts import TestPicture, read_coco, read_karpathy, read_mjhq
from flowtok.evaluate.page import Exhibit, Shown
from flowtok.evaluate.report import Record

COCO_PROMPTS = 30_000
_UNCUT = "none, native size"
_SHOWN, _SHOWN_EACH = 24, 8


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """What generated pictures are held against: features by picture, or statistics alone."""

    statistics: fid.Statistics
    features_MD: Tensor | None = None
    keys: tuple[str, ...] = ()


def check_coco(bench: Bench, limit: int | None) -> None:
    """Looks for Inception, the reference and the CLIP where one is named; FlowTokError where something is missing."""
    needs.check_distance(bench, limit, "tf1", _cut(bench), read_coco(bench.folder).pictures)
    needs.clip(bench)


def _cut(bench: Bench) -> str:
    return f"shorter side to {bench.image_size} px, centre cropped (Pillow bicubic, antialiased)"


def draw_coco(bench: Bench, split: str, limit: int | None) -> tuple[Path, list[Wanted], Sequence[TestPicture]]:
    """A picture for each chosen caption of COCO val2014."""
    del split
    chosen = read_coco(bench.folder).first(limit or COCO_PROMPTS)
    wanted = bench.wanted([one.captions[0] for one in chosen])
    return bench.draw(wanted, "coco30k", "generation, COCO"), wanted, chosen


def coco_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """FID and KID of pictures drawn from COCO's captions; the CLIP score in a record of its own where a CLIP is named.

    The model must not have been trained on COCO for this to be what is called zero-shot.
    """
    network, clip = needs.inception(bench), needs.clip(bench)
    folder, wanted, chosen = draw_coco(bench, split, limit)
    size = bench.image_size

    def cropped(path: Path) -> Image.Image:
        return open_picture(path, size=size)

    listed = read_coco(bench.folder)
    reference = _reference(bench, network, "tf1", listed.pictures, "val2014", cropped, _cut(bench))
    features_ND = _features(bench, network, "tf1", [folder / one.name for one in wanted], "features, generated")
    protocol: dict[str, Any] = {
        "prompts": _prompts(wanted, "the caption of the lowest number for each picture", listed.list_sha256),
        **_drawn_how(bench),
    }
    scores, how = _distances(features_ND, reference)
    data = {"set": "COCO val2014", "annotations_sha256": listed.list_sha256}
    records = [
        bench.record("coco30k", "val2014", scores, len(wanted), data=data, **protocol, **how,
                     features=network.protocol("tf1"), reference=dict(reference.statistics.about))
    ]  # fmt: skip
    if clip is not None:
        pairs = []
        for part in bench.batches(wanted, "CLIP, generated"):
            pictures = clip.of_pictures([open_drawn(folder / one.name) for one in part])
            pairs.append((pictures, clip.of_texts([one.prompt for one in part])))
        score = clip_score(*(torch.cat(side) for side in zip(*pairs, strict=True)))
        records.append(
            bench.record("coco30k_clip", "val2014", {"clip_score": score}, len(wanted), data=data, **protocol,
                         libraries=["transformers"], clip=clip.protocol(), clip_score="100 max(cosine, 0), mean")
        )  # fmt: skip
    shown = tuple(
        Shown(pictures=(open_drawn(folder / one.name), cropped(original.path)), words=(one.prompt,))
        for one, original in list(zip(wanted, chosen, strict=True))[:_SHOWN]
    )
    bench.show(Exhibit(section="coco30k", title=f"generated, COCO's own ({_said(bench)})", cells=shown))
    return records


def check_mjhq(bench: Bench, limit: int | None) -> None:
    """Looks for Inception and the reference; FlowTokError where something is missing."""
    needs.check_distance(bench, limit, "clean", _UNCUT, read_mjhq(bench.folder).pictures)


def draw_mjhq(bench: Bench, split: str, limit: int | None) -> tuple[Path, list[Wanted], Sequence[TestPicture]]:
    """A picture for each prompt of MJHQ-30K."""
    del split
    chosen = read_mjhq(bench.folder).first(limit)
    wanted = bench.wanted([one.captions[0] for one in chosen])
    return bench.draw(wanted, "mjhq30k", "generation, MJHQ"), wanted, chosen


def mjhq_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """FID of pictures drawn from MJHQ's prompts, of all and of each category with its own pictures."""
    network = needs.inception(bench)
    folder, wanted, chosen = draw_mjhq(bench, split, limit)
    listed = read_mjhq(bench.folder)
    reference = _reference(bench, network, "clean", listed.pictures, "MJHQ-30K", open_picture, _UNCUT)
    features_ND = _features(bench, network, "clean", [folder / one.name for one in wanted], "features, generated")
    data = {"set": "MJHQ-30K", "meta_data_sha256": listed.list_sha256}
    common: dict[str, Any] = {"data": data, "features": network.protocol("clean"), **_drawn_how(bench)}
    prompts = _prompts(wanted, "the prompt of each picture", listed.list_sha256)
    common["samples"] = f"the first {len(wanted)} in the order of crc32(id), id"
    scores, how = _distances(features_ND, reference)
    about = dict(reference.statistics.about)
    records = [bench.record("mjhq30k", "all", scores, len(wanted), **common, **how, prompts=prompts, reference=about)]
    category_of = {one.key: one.category for one in listed.pictures}
    if bench.reference is not None:
        bench.note("mjhq30k: --reference has no categories, so FID is of all pictures alone")
    for category in sorted(set(category_of.values())):
        ours = [k for k, one in enumerate(chosen) if one.category == category]
        cells = tuple(
            Shown(pictures=(open_drawn(folder / wanted[k].name),), words=(wanted[k].prompt,))
            for k in ours[:_SHOWN_EACH]
        )
        bench.show(Exhibit(section="mjhq30k", title=f"{category}: generated ({_said(bench)})", cells=cells))
        theirs = [k for k, key in enumerate(reference.keys) if category_of.get(key) == category]
        if reference.features_MD is None or min(len(ours), len(theirs)) < 2:
            continue
        part = fid.statistics_of(reference.features_MD[theirs])
        distance = fid.frechet_distance(fid.statistics_of(features_ND[ours]), part)
        own = {**about, "category": category, "count": len(theirs)}
        those = {**prompts, "category": category, "count": len(ours)}
        records.append(
            bench.record("mjhq30k", category, {"fid": distance}, len(ours), **common, prompts=those, reference=own)
        )
    return records


def check_karpathy(bench: Bench, limit: int | None) -> None:
    """Looks for pycocoevalcap, Java and the pictures; FlowTokError where something is missing."""
    if (missing := coco_captions.hindrance()) is not None:
        raise FlowTokError(f"karpathy: {missing}")
    needs.check_pictures(read_karpathy(bench.folder).first(limit))


def karpathy_records(bench: Bench, split: str, limit: int | None) -> list[Record]:
    """Captions of the Karpathy split's test pictures, scored as COCO does."""
    if not coco_captions.has_spice():
        bench.note(
            "karpathy: SPICE is left out; its models (stanford-corenlp-full-2015-12-09, the jars 3.6.0 and "
            "3.6.0-models) belong into pycocoevalcap/spice/lib"
        )
    listed = read_karpathy(bench.folder, split)
    chosen = listed.first(limit)
    written = [
        caption
        for part in bench.batches(chosen, f"captions, {split}")
        for caption in bench.caption([open_picture(one.path) for one in part])
    ]
    scores = coco_captions.coco_scores(written, [one.captions for one in chosen])
    keys = hashlib.sha256("\n".join(one.key for one in chosen).encode()).hexdigest()
    # No colour: a caption may be as good as any of the five sentences and equal to none.
    cells = tuple(
        Shown(pictures=(open_picture(one.path, size=bench.image_size),), words=(ours, f"({one.captions[0]})"))
        for one, ours in zip(chosen[:_SHOWN], written, strict=False)
    )
    title = "what the model writes (and one of the sentences that people wrote)"
    bench.show(Exhibit(section=f"karpathy, {split}", title=title, cells=cells))
    return [
        bench.record(
            "karpathy",
            split,
            scores,
            len(chosen),
            data={"set": "COCO, Karpathy split", "split": split, "list_sha256": listed.list_sha256},
            pictures={"split": split, "count": len(chosen), "sha256": keys, "seen": "the middle square, resized"},
            references="all sentences of the picture",
            sampling=bench.caption_sampling,
            coco={"tokens": coco_captions.TOKENS, "spice": "CoreNLP 3.6.0, where its models are"},
            libraries=[coco_captions.LIBRARY],
        )
    ]


def _reference(
    bench: Bench,
    network: FeatureNetwork,
    resize: Resize,
    pictures: Sequence[TestPicture],
    name: str,
    opened: Callable[[Path], Image.Image],
    cut: str,
) -> _Reference:
    """The set's own pictures, or the pictures or statistics that were named in their place."""
    named = needs.named_reference(bench, resize, cut)
    if isinstance(named, fid.Statistics):
        return _Reference(statistics=named)
    paths = {one.key: one.path for one in pictures} if named is None else named
    if named is not None and bench.reference is not None:
        name = f"pictures of {bench.reference.name}"
    digest = hashlib.sha256()
    for key, path in paths.items():
        try:
            digest.update(key.encode() + hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"picture {path} of {name} cannot be read: {error.strerror or error}") from error
    features_MD = _features(bench, network, resize, list(paths.values()), f"features, {name}", opened)
    about = {
        "set": name,
        "count": len(paths),
        "pictures_sha256": digest.hexdigest(),
        "cut": cut,
        "features": network.protocol(resize),
    }
    statistics = fid.statistics_of(features_MD, about)
    if bench.work is not None:
        kept = bench.work / f"reference-{fingerprint(about)[:8]}.npz"
        fid.save_statistics(statistics, kept)
        bench.note(f"statistics of {name} are kept; FID alone is to be had sooner with --reference {kept}")
    return _Reference(statistics=statistics, features_MD=features_MD, keys=tuple(paths))


def _features(
    bench: Bench, network: FeatureNetwork, resize: Resize, paths: Sequence[Path], what: str,
    opened: Callable[[Path], Image.Image] = open_drawn,
) -> Tensor:  # fmt: skip
    return torch.cat([network([opened(path) for path in part], resize) for part in bench.batches(paths, what)])


def _distances(features_ND: Tensor, reference: _Reference) -> tuple[dict[str, float], dict[str, Any]]:
    """FID, and KID where the reference's own features are at hand, with what the latter depends on."""
    scores = {"fid": fid.frechet_distance(fid.statistics_of(features_ND), reference.statistics)}
    if reference.features_MD is not None:
        size = min(fid.KID_SIZE, len(features_ND), len(reference.features_MD))
        scores["kid"] = 1000.0 * fid.kernel_distance(features_ND, reference.features_MD, size=size)
    subsets = f"{fid.KID_SUBSETS} subsets of at most {fid.KID_SIZE}"
    return scores, {"kid": f"cubic kernel, {subsets}, seed {fid.KID_SEED}, times 1000"}


def _prompts(wanted: Sequence[Wanted], rule: str, list_sha256: str) -> dict[str, Any]:
    texts = "\n".join(one.prompt for one in wanted)
    return {
        "count": len(wanted),
        "captions": rule,
        "list_sha256": list_sha256,
        "sha256": hashlib.sha256(texts.encode()).hexdigest(),
    }


def _drawn_how(bench: Bench) -> dict[str, Any]:
    return {
        "seed": bench.seed,
        "seed_rule": "prompt number k is drawn with seed + k",
        "sampling": bench.image_sampling,
        "pictures": "8-bit PNG at the model's size",
    }


def _said(bench: Bench) -> str:
    return f"{bench.chosen.num_inference_steps} steps, guidance {bench.chosen.guidance_scale:g}"
