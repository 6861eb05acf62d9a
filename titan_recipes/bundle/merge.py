"""Comparing and merging the files of a bundle: TOML by key, everything else by file.

A three-way merge takes base (the origin as it was forked), theirs (the origin now) and mine (the
fork). What only one side changed is taken; what both changed, to different values, is a conflict.
Keys are merged into *my* text, so my comments and order stay; a file that I left alone is replaced
whole, with its new comments. recipe.name and recipe.version are the fork's own.

That a table is there can mean something by itself ([model.rope_scaling] without keys scales by the
defaults). So an empty table is a value, {}, a table goes with its last key, and a table that one
side removed while the other changed something in it is a conflict as a whole.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from titan_recipes.config.load import loads, parse_toml, show
from titan_recipes.errors import ConfigError, Problem

Files = Mapping[str, bytes]
"""Relative name -> content."""

Flat = Mapping[str, Any]
"""Dotted key -> value; {} for an empty table."""

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
    """Dotted key -> value of every key that holds no table, or an empty one."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
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
    old, own, new = (_parse(name, side) for side in (base, mine, theirs))
    contested = _contested(old, own, new)
    if not prefer:
        for table in contested:
            states = [_table_text(side, table, old) for side in (old, own, new)]
            merged.conflicts.append(Conflict(name, table, *states))
    expected = dict(own)
    keys = [*(key for key in old if key not in new), *new]
    for key in [*keys, *(key for key in own if key not in keys)]:
        sides = [side.get(key, _ABSENT) for side in (old, own, new)]
        was, is_mine, is_theirs = sides
        is_contested = any(_is_in(key, table) for table in contested)
        if key in OWN_KEYS or _same(is_theirs, is_mine) or (is_contested and prefer != "origin"):
            continue
        if not is_contested:
            if _same(is_theirs, was):
                continue
            if not _same(is_mine, was) and prefer != "origin":
                if not prefer:
                    merged.conflicts.append(Conflict(name, key, *map(_value_text, sides)))
                continue
        merged.taken.append(Change(name, key, _value_text(is_mine), _value_text(is_theirs)))
        expected.pop(key, None)
        if is_theirs is not _ABSENT:
            expected[key] = is_theirs
    edited = _edited(name, mine, own, _without_filled(expected))
    if edited is not None:
        merged.files[name] = edited


def _contested(old: Flat, own: Flat, new: Flat) -> list[str]:
    """Tables that one side removed and the other changed, outermost ones only."""
    found: list[str] = []
    tables = [_tables(side) for side in (old, own, new)]
    for table in sorted(tables[0]):
        gone = [table not in side for side in tables[1:]]
        if gone[0] == gone[1] or any(_is_in(table, outer) for outer in found):
            continue
        before, after = _below(old, table), _below(new if gone[0] else own, table)
        if not _equal(before, after):
            found.append(table)
    return found


def _tables(flat: Flat) -> set[str]:
    """Every table, with those around it."""
    whole = {key for key, value in flat.items() if value == {}}
    parts = [key.split(".") for key in flat]
    return whole | {".".join(part[:n]) for part in parts for n in range(1, len(part))}


def _is_in(key: str, table: str) -> bool:
    return key == table or key.startswith(f"{table}.")


def _below(flat: Flat, table: str) -> Flat:
    return {key: value for key, value in flat.items() if _is_in(key, table)}


def _without_filled(flat: Flat) -> dict[str, Any]:
    """Less the empty tables that have keys after all."""
    filled = {".".join(key.split(".")[:n]) for key in flat for n in range(1, key.count(".") + 1)}
    return {key: value for key, value in flat.items() if value != {} or key not in filled}


def _edited(name: str, content: bytes, before: Flat, after: Flat) -> bytes | None:
    """TOML text with its keys brought from `before` to `after`, else as it was; None = no change.

    Raises ConfigError where a value stands in the way of a table.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if _equal(before, after):
        return None
    try:
        document = tomlkit.parse(content.decode("utf-8-sig"))
        for key in before:
            if key not in after:
                _remove(document, key.split("."))
        for key, value in after.items():
            if key not in before or not _same(before[key], value):
                _put(document, name, key, value)
        text = tomlkit.dumps(document)
        is_right = _equal(flatten(loads(text)), after)
    except (TOMLKitError, ValueError, KeyError):
        is_right, text = False, ""
    if not is_right:
        # tomlkit can't edit every layout of a table that is scattered over the file.
        cure = "write each of its tables once, under one [header], and try again"
        raise ConfigError([Problem(name, "", "can't be merged as it is laid out", cure)])
    return text.encode()


def _remove(table: Any, parts: list[str]) -> None:
    """Remove a key, and the tables around it that are empty then."""
    first, *rest = parts
    if rest:
        _remove(table[first], rest)
        if table[first]:
            return
    del table[first]


def _put(document: Any, name: str, key: str, value: Any) -> None:
    import tomlkit

    *tables, last = key.split(".")
    table = document
    for part in tables:
        if part not in table:
            table[part] = tomlkit.table()
        table = table[part]
        if not hasattr(table, "setdefault"):
            raise ConfigError([Problem(name, key, f'"{part}" is not a table', "make it one")])
    table[last] = tomlkit.table() if value == {} else value


def _parse(name: str, content: bytes) -> dict[str, Any]:
    data = parse_toml(content, name)
    if dotted := [key for key in _names(data) if "." in key]:
        cure = "no setting has such a name; write a [table], or no quotes"
        raise ConfigError([Problem(name, f'"{dotted[0]}"', "a dot in a quoted key", cure)])
    return flatten(data)


def _names(data: Mapping[str, Any]) -> Iterable[str]:
    """Every key of every table."""
    for key, value in data.items():
        yield key
        if isinstance(value, Mapping):
            yield from _names(cast(Mapping[str, Any], value))


def _only(name: str, content: bytes | None) -> Files:
    return {} if content is None else {name: content}


def _same(left: Any, right: Any) -> bool:
    """Equal in value and type, as TOML tells 1 from 1.0 and true."""
    return type(left) is type(right) and repr(left) == repr(right)


def _equal(left: Flat, right: Flat) -> bool:
    return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)


def _table_text(side: Flat, table: str, base: Flat) -> str:
    """A table's state in a conflict, as `_file_text` says a file's."""
    below = _below(side, table)
    if not below:
        return "(none)"
    return "a table" if _equal(below, _below(base, table)) else "a changed table"


def _value_text(value: Any) -> str:
    return "(none)" if value is _ABSENT else show(value)


def _file_text(content: bytes | None, other: bytes | None = None) -> str:
    """What to call a file's state: absent, or its size (and that it changed, next to `other`)."""
    if content is None:
        return "(none)"
    changed = other is not None and content != other
    return f"{'changed, ' if changed else ''}{len(content)} bytes"
