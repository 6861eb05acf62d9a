"""Comparing and merging the files of a bundle: TOML by key, everything else by file.

A three-way merge takes base (the origin as it was forked), theirs (the origin now) and mine (the
fork). What only one side changed is taken; what both changed, to different values, is a conflict.
Keys are merged into *my* text, so my comments and order stay; a file that I left alone is replaced
whole, with its new comments. recipe.name and recipe.version are the fork's own.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from titan_recipes.config.load import show
from titan_recipes.errors import ConfigError, Problem

Files = Mapping[str, bytes]
"""Relative name -> content."""

Prefer = Literal["", "mine", "origin"]
"""Who wins a conflict; "" = nobody, it is shown."""

OWN_KEYS = ("recipe.name", "recipe.version")

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One key, or a whole file (key ""), with its values as text; "(none)" where there is none."""

    file: str
    key: str
    before: str
    after: str

    def __str__(self) -> str:
        what = f"{self.file}: {self.key}" if self.key else self.file
        return f"{what}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A key or file that both sides changed."""

    file: str
    key: str
    base: str
    mine: str
    theirs: str

    def __str__(self) -> str:
        what = f"{self.file}: {self.key}" if self.key else self.file
        return f"{what}: mine {self.mine}, origin {self.theirs} (was {self.base})"


@dataclass(slots=True)
class Merged:
    """What a merge would write (None = delete), what it took from the origin, what it could not."""

    files: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])
    taken: list[Change] = field(default_factory=list[Change])
    conflicts: list[Conflict] = field(default_factory=list[Conflict])


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every key that holds no table."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changes(before: Files, after: Files) -> list[Change]:
    """What differs: by key in TOML files that both sides have, else by file."""
    found: list[Change] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is None or new is None or not name.endswith(".toml"):
            found.append(Change(name, "", _file_text(old), _file_text(new, old)))
            continue
        found += _key_changes(name, _parse(name, old), _parse(name, new))
    return found


def _key_changes(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if not _same(before, after) and key != "recipe.name":
            yield Change(name, key, _value_text(before), _value_text(after))


def unified_diff(before: Files, after: Files, names: tuple[str, str]) -> str:
    """The textual difference, as `diff -u` prints it; `names` label the two sides."""
    lines: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, b""), after.get(name, b"")
        if old == new:
            continue
        try:
            left, right = (side.decode().splitlines(keepends=True) for side in (old, new))
        except UnicodeDecodeError:
            lines.append(f"{name}: binary files differ\n")
            continue
        labels = (f"{names[0]}/{name}", f"{names[1]}/{name}")
        for line in difflib.unified_diff(left, right, *labels):
            lines.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(lines)


def merge3(base: Files, mine: Files, theirs: Files, prefer: Prefer = "") -> Merged:
    """Bring the origin's changes since `base` into `mine`. Raises ConfigError for broken TOML."""
    merged = Merged()
    for name in sorted({*base, *mine, *theirs}):
        old, own, new = base.get(name), mine.get(name), theirs.get(name)
        if new in (old, own):
            continue
        if own == old:
            merged.files[name] = new
            merged.taken += changes(_only(name, old), _only(name, new))
        elif own is not None and new is not None and name.endswith(".toml"):
            _merge_keys(merged, name, old or b"", own, new, prefer)
        elif prefer == "origin":
            merged.files[name] = new
            merged.taken.append(Change(name, "", _file_text(own), _file_text(new, own)))
        elif not prefer:
            sides = (_file_text(old), _file_text(own, old), _file_text(new, old))
            merged.conflicts.append(Conflict(name, "", *sides))
    return merged


def _merge_keys(
    merged: Merged, name: str, base: bytes, mine: bytes, theirs: bytes, prefer: Prefer
) -> None:
    import tomlkit

    old, own, new = (_parse(name, side) for side in (base, mine, theirs))
    document = tomlkit.parse(mine.decode())
    expected = dict(own)
    for key in [*new, *(key for key in old if key not in new)]:
        sides = [side.get(key, _ABSENT) for side in (old, own, new)]
        was, is_mine, is_theirs = sides
        if key in OWN_KEYS or _same(is_theirs, was) or _same(is_theirs, is_mine):
            continue
        if not _same(is_mine, was) and prefer != "origin":
            if not prefer:
                merged.conflicts.append(Conflict(name, key, *map(_value_text, sides)))
            continue
        merged.taken.append(Change(name, key, _value_text(is_mine), _value_text(is_theirs)))
        _edit(document, name, key, is_theirs)
        expected = {k: v for k, v in expected.items() if k != key}
        if is_theirs is not _ABSENT:
            expected[key] = is_theirs
    text = tomlkit.dumps(document)
    assert flatten(tomllib.loads(text)) == expected, f"{name}: the merge lost a key"
    if text.encode() != mine:
        merged.files[name] = text.encode()


def _edit(document: Any, name: str, key: str, value: Any) -> None:
    """Set or, for _ABSENT, remove a dotted key, the rest of the text left as it is."""
    import tomlkit

    *tables, last = key.split(".")
    table = document
    for part in tables:
        table = table.setdefault(part, tomlkit.table())
        if not hasattr(table, "setdefault"):
            raise ConfigError([Problem(name, key, f'"{part}" is not a table', "make it one")])
    if value is _ABSENT:
        del table[last]
    else:
        table[last] = value


def _parse(name: str, content: bytes) -> dict[str, Any]:
    try:
        return flatten(tomllib.loads(content.decode()))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([Problem(name, "", f"not TOML: {error}")]) from error


def _only(name: str, content: bytes | None) -> Files:
    return {} if content is None else {name: content}


def _same(left: Any, right: Any) -> bool:
    """Equal in value and type, as TOML tells 1 from 1.0 and true."""
    return type(left) is type(right) and left == right


def _value_text(value: Any) -> str:
    return "(none)" if value is _ABSENT else show(value)


def _file_text(content: bytes | None, other: bytes | None = None) -> str:
    """What to call a file's state: absent, or its size (and that it changed, next to `other`)."""
    if content is None:
        return "(none)"
    changed = other is not None and content != other
    return f"{'changed, ' if changed else ''}{len(content)} bytes"
