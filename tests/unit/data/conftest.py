"""A stand-in for npm that hands out tiny icon packages, so that the whole build runs without a network."""

from __future__ import annotations

import io
import json
import stat
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

SQUARE = '<path fill="{}" d="M{} {}h20v20h-20z"/>'
EMOJIBASE = {
    "en/data.json": [
        {
            "label": "waving hand",
            "hexcode": "1F44B",
            "tags": ["hello", "wave"],
            "group": 1,
            "skins": [
                {"label": f"waving hand: {tone} skin tone", "hexcode": f"1F44B-1F3F{'BCDEF'[i]}", "group": 1}
                for i, tone in enumerate(["light", "medium-light", "medium", "medium-dark", "dark"])
            ],
        },
        {"label": "bear", "hexcode": "1F43B", "tags": ["animal"], "group": 3},
        {"label": "star", "hexcode": "2B50", "tags": ["astronomy"], "group": 5},
        {"label": "keycap: #", "hexcode": "0023-FE0F-20E3", "tags": [], "group": 8},
        {"label": "flag: France", "hexcode": "1F1EB-1F1F7", "tags": ["FR"], "group": 9},
        {"label": "flag: England", "hexcode": "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", "tags": [], "group": 9},
    ],
    "meta/groups.json": {
        "groups": {"1": "people-body", "3": "animals-nature", "5": "travel", "8": "symbols", "9": "flags"}
    },
    "meta/unicode-names.json": {"1F43B": "BEAR FACE", "2B50": "WHITE MEDIUM STAR"},
    "en/shortcodes/emojibase.json": {"1F43B": ["bear"], "2B50": "medium_star"},
}
TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]


def icon(colour: str, x: int = 8, y: int = 8) -> dict[str, object]:
    return {"body": SQUARE.format(colour, x, y)}


def icon_package(icons: dict[str, dict], chars: dict[str, str] | None = None, **extra: object) -> dict[str, object]:
    licence = {"title": "MIT", "spdx": "MIT", "url": "https://example.org/licence"}
    return {
        "icons.json": {"prefix": "x", "width": 36, "height": 36, "icons": icons, **extra},
        "info.json": {"license": licence, "author": {"name": "An Artist", "url": "https://example.org"}},
        "chars.json": chars or {},
    }


PACKAGES: dict[str, dict[str, object]] = {
    "emojibase-data": EMOJIBASE,
    "@iconify-json/twemoji": icon_package(
        {
            "bear": icon("brown"),
            "star": icon("gold"),
            "keycap-number-sign": icon("navy"),
            "flag-for-france": icon("blue"),
            "withdrawn": {**icon("black"), "hidden": True},
            "white-on-white": icon("white"),
            "hand": icon("yellow"),
            **{f"hand-{tone}-skin-tone": icon("tan", x) for x, tone in enumerate(TONES)},
        },
        {
            "1f43b": "bear",
            "2b50": "star",
            "0023-20e3": "keycap-number-sign",
            "1f44b": "hand",
            **{f"1f44b-1f3f{'bcdef'[i]}": f"hand-{tone}-skin-tone" for i, tone in enumerate(TONES)},
        },
    ),
    "@iconify-json/emojione": icon_package(
        {"bear-face": icon("maroon"), "medium-star": icon("orange"), "odd-one-2": icon("lime")},
        aliases={"ursine": {"parent": "bear-face"}},
    ),
    "@iconify-json/flag": icon_package(
        {"fr-4x3": icon("cyan"), "fr-1x1": icon("cyan", 3), "gb-eng-4x3": icon("red"), "zz-4x3": icon("grey")}
    ),
    "@iconify-json/fluent-color": icon_package(
        {"book-16": icon("teal"), "book-48": icon("teal", 2), "ab-cd-20": icon("pink")}
    ),
    # The first is pixel for pixel twemoji's bear.
    "@iconify-json/noto-v1": icon_package({"bear": icon("brown"), "star": icon("khaki")}),
}


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Puts the stand-in on PATH, alone; the value tells which packages were asked for so far."""
    home = tmp_path / "npm-home"
    home.mkdir()
    for package, members in PACKAGES.items():
        with tarfile.open(home / f"{package.replace('/', '+')}.tgz", "w:gz") as archive:
            for name, content in members.items():
                data = json.dumps(content).encode()
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    script = home / "npm"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        "home, package = pathlib.Path(__file__).parent, sys.argv[2]\n"
        "with (home / 'log').open('a') as log: log.write(package + '\\n')\n"
        "name, version = package.rsplit('@', 1)\n"
        "found = home / (name.replace('/', '+') + '.tgz')\n"
        "if not found.exists(): sys.exit('npm error 404 not found: ' + package)\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1])\n"
        "shutil.copy(found, target / (name.lstrip('@').replace('/', '-') + '-' + version + '.tgz'))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(home))

    def asked() -> list[str]:
        log = home / "log"
        return log.read_text().split() if log.exists() else []

    return asked
