"""Openly licensed icon sets as npm packages: which there are, how they are fetched and opened.

Knows nothing of names (`flowtok.data.names`), drawing or splits; `flowtok.data.emoji` makes one set of them.
"""

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowtok.errors import DataError

EMOJIBASE = "emojibase-data@17.0.0"


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One icon set: its package, the style's name in captions, how icons are chosen and how heavily they count.

    kind: "emoji" (slugs of Unicode names), "flags" (slugs are region codes) or "icons" (free slugs).
    role: "train" or "unseen_style" (in no training stage). weight: share of draws a picture gets beside an emoji.
    wanted, unwanted: regular expressions a slug must and must not contain. ending: what is cut off slugs to get names;
    of icons that differ only in it, all are kept unless `largest_only`.
    """

    name: str
    version: str
    style: str
    kind: str = "emoji"
    role: str = "train"
    weight: float = 1.0
    by_default: bool = True
    wanted: str = ""
    unwanted: str = r"^$"
    ending: str = r"-[1-9]$"
    largest_only: bool = False

    @property
    def package(self) -> str:
        """The set's package on npm, of the version whose pictures and names were looked at."""
        return f"@iconify-json/{self.name}@{self.version}"


# Order matters: of identical pictures the first is kept.
ICON_SETS: dict[str, IconSet] = {
    icon_set.name: icon_set
    for icon_set in (
        IconSet(name="twemoji", version="1.2.5", style="twemoji"),
        IconSet(name="noto", version="1.2.9", style="noto"),
        IconSet(name="fluent-emoji", version="1.2.7", style="fluent"),
        IconSet(name="fluent-emoji-flat", version="1.2.6", style="fluent flat"),
        IconSet(name="emojione", version="1.2.3", style="emojione"),
        IconSet(name="streamline-emojis", version="1.2.4", style="streamline"),
        IconSet(
            name="flag", version="1.2.12", style="flag icon", kind="flags", weight=0.5, wanted="-4x3$", ending="-4x3$"
        ),
        IconSet(name="circle-flags", version="1.2.11", style="round flag", kind="flags", weight=0.5),
        IconSet(name="flagpack", version="1.2.8", style="flagpack", kind="flags", weight=0.5),
        IconSet(name="cif", version="1.2.7", style="cif", kind="flags", weight=0.5),
        IconSet(name="flat-color-icons", version="1.2.3", style="flat color", kind="icons"),
        IconSet(
            name="fluent-color",
            version="1.2.21",
            style="fluent icon",
            kind="icons",
            weight=0.5,
            ending=r"-\d\d$",
            largest_only=True,
        ),
        IconSet(
            name="meteocons",
            version="1.2.4",
            style="meteocons",
            kind="icons",
            weight=0.5,
            wanted="-fill$",
            ending="-fill$",
        ),
        IconSet(
            name="streamline-ultimate-color",
            version="1.2.2",
            style="ultimate",
            kind="icons",
            weight=0.5,
            unwanted="logo|crypto",
        ),
        IconSet(
            name="streamline-freehand-color",
            version="1.2.2",
            style="freehand",
            kind="icons",
            weight=0.5,
            unwanted="logo|crypto",
        ),
        IconSet(name="noto-v1", version="1.2.5", style="noto v1", role="unseen_style"),
        # Share-alike or kept for judging new styles: only when asked for by name.
        IconSet(name="openmoji", version="1.2.29", style="openmoji", role="unseen_style", by_default=False),
        IconSet(name="emojione-v1", version="1.2.3", style="emojione v1", role="unseen_style", by_default=False),
        IconSet(name="fxemoji", version="1.2.2", style="fxemoji", role="unseen_style", by_default=False),
    )
}


@dataclass(frozen=True, kw_only=True)
class Package:
    """An opened icon set: SVG bodies by slug, code points by slug, other slugs of the same icon, and its licence."""

    icon_set: IconSet
    icons: dict[str, dict[str, Any]]
    box: tuple[float, float]
    codes: dict[str, str]
    aliases: dict[str, str]
    licence: str
    licence_url: str
    author: str
    source: str

    def svg(self, slug: str) -> str:
        """The icon as a whole SVG document."""
        icon = self.icons[slug]
        width, height = icon.get("width", self.box[0]), icon.get("height", self.box[1])
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"]
        if "<animate" in body:
            # What an animation fades in (rain, snow) is invisible in the first frame, which is the one drawn.
            body = re.sub(r'(?<![-\w])opacity="0"', 'opacity="1"', body)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
        )


def fetch(package: str, folder: Path) -> Path:
    """Fetches a package ("name@version") with the npm client into `folder`, unless it is there; returns its archive.

    Raises:
        DataError: npm is missing, or could not fetch the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, version = package.rsplit("@", 1)
    target = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if target.exists():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            "building this data set needs the npm client on PATH (it comes with Node.js); install it and run again"
        )
    with tempfile.TemporaryDirectory(dir=folder.resolve()) as scratch:  # npm runs there: its path must be absolute
        command = [npm, "pack", package, "--silent", "--pack-destination", scratch]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=scratch, stdin=subprocess.DEVNULL, check=False
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no archive was written"])[-1]
            raise DataError(
                f"npm could not fetch {package} ({reason}); check the connection and run again: what is there is kept"
            )
        archives[0].replace(target)
    return target


def read_member(archive: tarfile.TarFile, name: str, default: Any = None) -> Any:
    """Parses one JSON file of a package's open archive, or returns `default` if it has none of this name."""
    try:
        handle = archive.extractfile(f"package/{name}")
    except KeyError:
        return default
    return default if handle is None else json.load(handle)


def open_package(icon_set: IconSet, archive_path: Path) -> Package:
    """Reads an icon set's archive; hidden icons (withdrawn by their makers) are left out.

    Raises:
        DataError: the archive is damaged or holds no icons.
    """
    try:
        with tarfile.open(archive_path) as archive:
            icons = read_member(archive, "icons.json")
            info = read_member(archive, "info.json", {})
            codes = read_member(archive, "chars.json", {})
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{archive_path} is damaged ({error}); delete it and run again") from error
    if not icons or not icons.get("icons"):
        raise DataError(f"{archive_path} holds no icons; delete it and run again")
    licence, author = info.get("license", {}), info.get("author", {})
    return Package(
        icon_set=icon_set,
        icons=_chosen(icon_set, icons["icons"]),
        box=(icons.get("width", 16), icons.get("height", 16)),
        codes={slug: code for code, slug in codes.items()},
        aliases={slug: alias["parent"] for slug, alias in icons.get("aliases", {}).items() if len(alias) == 1},
        licence=licence.get("spdx", "unknown"),
        licence_url=licence.get("url", ""),
        author=author.get("name", "unknown"),
        source=author.get("url", ""),
    )


def _chosen(icon_set: IconSet, icons: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The icons a set contributes, in the order of their slugs."""
    chosen = {
        slug: icon
        for slug, icon in sorted(icons.items())
        if not icon.get("hidden") and re.search(icon_set.wanted, slug) and not re.search(icon_set.unwanted, slug)
    }
    if not icon_set.largest_only:
        return chosen
    # Endings are sizes of two digits, so the last slug of a stem in sorted order is the largest.
    last = {re.sub(icon_set.ending, "", slug): slug for slug in chosen}
    return {slug: chosen[slug] for slug in last.values()}
