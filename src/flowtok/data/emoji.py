"""The captioned emoji set, built from openly licensed icon sets and split by rule.

`build` makes the folder and can be interrupted and run again; `load` (in `captioned`) opens it. Where icons come from
is in `iconify`, what they are called in `names`, the wording in `captions`, the drawing in `svg`; no training is known.
"""

import hashlib
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from flowtok.data.captioned import SPLITS, EmojiSet, Row, load, read_rows
from flowtok.data.captions import canonical_caption, caption_variants, count_skin_tones, without_skin_tone
from flowtok.data.descriptions import descriptions_of
from flowtok.data.iconify import EMOJIBASE, ICON_SETS, Package, fetch, open_package
from flowtok.data.names import Names, read_names
from flowtok.data.svg import draw_all, require_renderer
from flowtok.errors import DataError
from flowtok.files import write_file_atomically

_TONES_KEPT = 2
_RECORD = "build.json"

__all__ = ["SPLITS", "EmojiSet", "Row", "Summary", "build", "load", "read_rows", "rows_of", "split_of"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a build made: pictures per set and split, concepts, how many were identical to others, what failed."""

    folder: Path
    size: int
    pictures: int
    concepts: int
    per_set: dict[str, int]
    per_split: dict[str, int]
    identical: int
    failed: tuple[str, ...]


def split_of(*, set_name: str, name: str, concept: str, role: str = "train") -> str:
    """The split a picture falls into, by a rule that anyone can repeat.

    A set with the role "unseen_style" is in no training stage; nor is, in any style, a concept with
    crc32(concept) % 20 == 0; of the rest, crc32("set:name") % 20 == 0 is for validation.
    """
    if role == "unseen_style":
        return "unseen_style"
    if zlib.crc32(concept.encode()) % 20 == 0:
        return "unseen_concept"
    return "validation" if zlib.crc32(f"{set_name}:{name}".encode()) % 20 == 0 else "train"


def rows_of(package: Package, names: Names) -> list[Row]:
    """Names, captions and split of every icon of a set that is used.

    Skin tones are 40 % of the emoji sets' pictures: of the toned variants of a concept each set gives two, chosen by
    checksum, at half the weight of other pictures; pictures with two tones are left out.
    """
    icon_set = package.icon_set
    toned: dict[str, list[tuple[int, str]]] = {}
    found: dict[str, str] = {}
    for slug in package.icons:
        name = names.resolve(package, slug)
        if name is None or count_skin_tones(name) > 1:
            continue
        found[slug] = name
        if count_skin_tones(name) == 1:
            toned.setdefault(without_skin_tone(name), []).append((zlib.crc32(f"{icon_set.name}:{slug}".encode()), slug))
    kept = {slug for orders in toned.values() for _, slug in sorted(orders)[:_TONES_KEPT]}
    rows = []
    for slug, name in found.items():
        tone = count_skin_tones(name) == 1
        if tone and slug not in kept:
            continue
        concept = without_skin_tone(name) if tone else name
        texts = caption_variants(
            name,
            icon_set.style,
            names.keywords.get(name, []),
            random.Random(zlib.crc32(f"{icon_set.name}:{slug}".encode())),
            descriptions_of(name, concept),
        )
        group = "flags" if icon_set.kind == "flags" else names.groups.get(name, "icons")
        row = Row(
            file_name=f"images/{icon_set.name}/{slug}.png",
            text=canonical_caption(name, icon_set.style),
            texts=tuple(texts),
            name=name,
            concept=concept,
            style=icon_set.style,
            set=icon_set.name,
            group=group,
            split=split_of(set_name=icon_set.name, name=name, concept=concept, role=icon_set.role),
            variant="skin-tone" if tone else "",
            weight=icon_set.weight / _TONES_KEPT if tone else icon_set.weight,
            license=package.licence,
        )
        rows.append(row)
    return rows


def build(
    folder: Path,
    *,
    size: int = 64,
    sets: Sequence[str] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Summary:
    """Builds the set in `folder`: images/, metadata.jsonl, LICENSES.md, packages/. Run again, it makes what is missing.

    Args:
        size: side of the square pictures in pixels. sets: names of ICON_SETS (default: those marked by_default).
        workers: processes that draw. progress: called with (what, done, total); `what` is
            "fetch" or "draw".

    Raises:
        DataError: npm or the renderer is missing, a set is unknown, or the folder holds pictures of another size.
    """
    chosen = _chosen_sets(sets)
    if size < 8 or size > 1024 or workers < 1:
        raise DataError(f"size must be 8 to 1024 and workers at least 1, got size {size} and workers {workers}")
    require_renderer()
    report = progress or (lambda what, done, total: None)
    folder = Path(folder)
    record = _open_folder(folder, size)
    wanted = [*(ICON_SETS[name].package for name in chosen), EMOJIBASE]
    archives = []
    report("fetch", 0, len(wanted))
    for done, package in enumerate(wanted, start=1):
        archives.append(fetch(package, folder / "packages"))
        report("fetch", done, len(wanted))
    packages = [open_package(ICON_SETS[name], path) for name, path in zip(chosen, archives[:-1], strict=True)]
    names = read_names(archives[-1], packages)
    rows = [row for package in packages for row in rows_of(package, names)]

    versions = tuple(archive.stem for archive in archives)
    same = list(record.packages) == list(versions)
    failed, identical = (set(record.failed), set(record.identical)) if same else (set(), set())
    rows = [row for row in rows if row.file_name not in failed | identical]
    failed |= set(_draw_missing(folder, packages, rows, size, workers, report))
    kept, more = _without_identical(folder, [row for row in rows if row.file_name not in failed])
    identical |= set(more)

    write_file_atomically(folder / "LICENSES.md", _licences(packages))
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in kept)
    write_file_atomically(folder / "metadata.jsonl", lines)
    record = _Record(size=size, packages=versions, failed=tuple(sorted(failed)), identical=tuple(sorted(identical)))
    _save_record(folder, record)
    _remove_others(folder, kept)
    load(folder)
    return Summary(
        folder=folder,
        size=size,
        pictures=len(kept),
        concepts=len({row.concept for row in kept}),
        per_set=dict(Counter(row.set for row in kept)),
        per_split={split: sum(row.split == split for row in kept) for split in SPLITS},
        identical=len(identical),
        failed=record.failed,
    )


def _chosen_sets(sets: Sequence[str] | None) -> list[str]:
    if sets is None:
        return [name for name, icon_set in ICON_SETS.items() if icon_set.by_default]
    unknown = [name for name in sets if name not in ICON_SETS]
    if unknown or not sets:
        raise DataError(f"unknown icon sets {unknown}; choose from {', '.join(ICON_SETS)}")
    return [name for name in ICON_SETS if name in sets]


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What earlier builds noted: the file names that need no drawing again while the packages are the same."""

    size: int
    packages: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    identical: tuple[str, ...] = ()


def _open_folder(folder: Path, size: int) -> _Record:
    """Makes the folder or reads its record; a folder with anything else in it is left alone."""
    path = folder / _RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} is not empty and holds no earlier build; choose a new or empty folder")
        record = _Record(**json.loads(path.read_text())) if path.exists() else _Record(size=size)
    except OSError as error:
        raise DataError(f"cannot use the folder {folder} ({error.strerror}); choose another") from error
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete {folder} and build again") from error
    if record.size != size:
        raise DataError(f"{folder} holds pictures of {record.size} px, not {size}; choose another folder")
    _save_record(folder, record)
    return record


def _save_record(folder: Path, record: _Record) -> None:
    write_file_atomically(folder / _RECORD, json.dumps(asdict(record), indent=1) + "\n")


def _draw_missing(
    folder: Path, packages: list[Package], rows: list[Row], size: int, workers: int, report: Progress
) -> list[str]:
    """Draws what is not there yet; returns the file names of what the renderer could not draw or drew all white."""
    by_set = {package.icon_set.name: package for package in packages}
    for name in by_set:
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
    missing = [row for row in rows if not (folder / row.file_name).exists()]
    jobs = [(by_set[row.set].svg(Path(row.file_name).stem), size, folder / row.file_name) for row in missing]
    failed = []
    for done, (row, drawn) in enumerate(zip(missing, draw_all(jobs, workers), strict=True), start=1):
        if not drawn:
            failed.append(row.file_name)
        report("draw", done, len(jobs))
    return failed


def _without_identical(folder: Path, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Of pictures with the same pixels, in any sets, keeps the first; so no held-out picture is also trained on."""
    seen: set[bytes] = set()
    kept, identical = [], []
    for row in rows:
        with Image.open(folder / row.file_name) as picture:
            digest = hashlib.sha256(picture.tobytes()).digest()
        if digest in seen:
            identical.append(row.file_name)
        else:
            kept.append(row)
        seen.add(digest)
    return kept, identical


def _remove_others(folder: Path, rows: list[Row]) -> None:
    """Deletes the sets' pictures that no row names, so that the folder and its metadata agree."""
    named = {row.file_name for row in rows}
    for name in ICON_SETS:
        for path in (folder / "images" / name).glob("*.png"):
            if path.relative_to(folder).as_posix() not in named:
                path.unlink()


def _licences(packages: list[Package]) -> str:
    lines = [
        "# Licences of the pictures",
        "",
        "Each picture was drawn from an icon of one of these sets, small and on white; it keeps the set's licence.",
        "",
        "| set | package | licence | author | source |",
        "|---|---|---|---|---|",
    ]
    for package in packages:
        licence = f"[{package.licence}]({package.licence_url})" if package.licence_url else package.licence
        icon_set = package.icon_set
        lines.append(f"| {icon_set.name} | {icon_set.package} | {licence} | {package.author} | {package.source} |")
    lines.append("")
    lines.append(f"Names, groups and keywords: {EMOJIBASE} (MIT, Miles Johnson), from the Unicode CLDR (Unicode-3.0).")
    return "\n".join(lines) + "\n"
