"""One English name for one thing in every icon set, from the Unicode CLDR data that emojibase packs.

Knows slugs and code points, not pictures. The sets are in `iconify`, the wording in `captions` beside this.
"""

import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flowtok.data.captions import clean_name, slug_name
from flowtok.data.iconify import Package, read_member
from flowtok.errors import DataError

# Names that sets use and neither CLDR, Unicode nor emojibase's shortcodes know.
_RENAMED = {
    "flag for swaziland": "flag of eswatini",
    "flag for cocos islands": "flag of the cocos keeling islands",
    "flag for macedonia": "flag of north macedonia",
    "flag for turkey": "flag of turkiye",
    "crazy face": "zany face",
    "game dice": "game die",
    "red wine glass": "wine glass",
    "gesturing ok": "person gesturing ok",
}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("#", "hash").replace("*", "asterisk"))


def _squash(text: str) -> str:
    return _letters(clean_name(text).replace("flag of the ", "flag of "))


def _bare(code: str) -> str:
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


@dataclass(frozen=True, kw_only=True)
class Names:
    """The common names of all sets.

    by_code: names by code points without variation selectors. by_key: names by a spelling's letters and digits.
    groups, keywords: the CLDR group of a name, and the words it is searched by.
    """

    by_code: dict[str, str] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    keywords: dict[str, list[str]] = field(default_factory=dict)

    def learn(self, spelling: str, name: str | None) -> None:
        """Notes a further spelling of a name; spellings that are known already keep their name."""
        if name is not None:
            self.by_key.setdefault(_squash(spelling), name)
            self.by_key.setdefault(_letters(spelling), name)

    def resolve(self, package: Package, slug: str) -> str | None:
        """The name of an icon, or None for an icon of a flag set that is no country's or region's flag."""
        bare = re.sub(package.icon_set.ending, "", slug)
        if package.icon_set.kind == "flags":
            return self._flag(bare)
        if package.icon_set.kind == "icons":
            return slug_name(bare)
        code = package.codes.get(slug)
        if code is not None and _bare(code) in self.by_code:
            return self.by_code[_bare(code)]
        for candidate in (slug, bare):
            if (name := self._key(candidate)) is not None:
                return name
        return f"keycap {bare}" if bare.isdecimal() else slug_name(bare)

    def _key(self, slug: str) -> str | None:
        key = _squash(slug)
        if key in self.by_key:
            return self.by_key[key]
        toned = re.fullmatch(r"(.+?)-(medium-light|medium-dark|light|medium|dark)(?:-skin-tone)?", slug)
        if toned and (base := self.by_key.get(_squash(toned[1]))):
            return self.by_key.get(_squash(f"{base} {toned[2]} skin tone"))
        return None

    def _flag(self, slug: str) -> str | None:
        if re.fullmatch(r"[a-z]{2}", slug):
            return self.by_code.get("-".join(f"{0x1F1E6 + ord(c) - ord('a'):X}" for c in slug))
        if re.fullmatch(r"gb-(eng|sct|wls)", slug):
            tags = "-".join(f"{0xE0000 + ord(c):X}" for c in slug.replace("-", ""))
            return self.by_code.get(f"1F3F4-{tags}-E007F")
        return None


def read_names(archive_path: Path, packages: Iterable[Package]) -> Names:
    """Builds the common names from emojibase's archive; the sets' code points and aliases give further spellings.

    Raises:
        DataError: the archive is damaged.
    """
    try:
        with tarfile.open(archive_path) as archive:
            entries = read_member(archive, "en/data.json", [])
            titles = read_member(archive, "meta/groups.json", {}).get("groups", {})
            old_names = read_member(archive, "meta/unicode-names.json", {})
            shortcodes = read_member(archive, "en/shortcodes/emojibase.json", {})
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{archive_path} is damaged ({error}); delete it and run again") from error
    names = Names()
    for entry in entries:
        for form in (entry, *entry.get("skins", [])):
            name = clean_name(form["label"])
            names.by_code[_bare(form["hexcode"])] = name
            names.learn(form["label"], name)
            names.groups[name] = titles.get(str(form.get("group")), "other")
            names.keywords[name] = [tag.lower() for tag in entry.get("tags", [])]
    for old, name in _RENAMED.items():
        names.learn(old, name)
    for name in list(names.groups):
        if name.startswith("flag of "):
            names.learn(f"flag for {name.removeprefix('flag of ').removeprefix('the ')}", name)
    # The surest spellings come first: what is learnt later does not change what is known.
    packages = list(packages)
    for package in packages:
        for slug, code in package.codes.items():
            names.learn(slug, names.by_code.get(_bare(code)))
    for package in packages:
        if package.icon_set.kind == "emoji":
            for alias, parent in package.aliases.items():
                known = names.by_key.get(_squash(parent)) or names.by_key.get(_squash(alias))
                names.learn(parent, known)
                names.learn(alias, known)
    for code, old in old_names.items():
        names.learn(old, names.by_code.get(_bare(code)))
    for code, given in shortcodes.items():
        for short in [given] if isinstance(given, str) else given:
            names.learn(short, names.by_code.get(_bare(code)))
    return names
