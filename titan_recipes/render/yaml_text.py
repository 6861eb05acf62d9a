"""YAML as Kubernetes' and every other parser reads it alike, without a library.

Mappings and lists are written in block style; scalars are JSON, which YAML holds. What YAML 1.1
would take for something else is escaped: line breaks that JSON does not know, characters that YAML
does not allow, and keys like `on` are quoted. A pair of surrogates, JSON's way to write a character
above U+FFFF, would be two characters, so such characters are written as they are.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import cast

PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Plain words that are no text in YAML 1.1."""


def to_yaml(value: object, indent: int = 0) -> str:
    """A scalar, or a table or list to stand right after `key:`, `indent` blanks deep."""
    return _after(value, " " * indent) if _holds(value) else _scalar(value)


def _after(value: object, margin: str) -> str:
    """What follows a colon or a dash."""
    if not _is_block(value):
        return f" {_scalar(value)}"
    return "\n" + "\n".join(_block(value, margin))


def _block(value: object, margin: str) -> Iterator[str]:
    """The lines of a mapping or a list that is not empty."""
    deeper = f"{margin}  "
    if _is_table(value):
        for key, below in cast(Mapping[str, object], value).items():
            yield f"{margin}{_key(key)}:{_after(below, deeper)}"
        return
    for item in cast("list[object]", value):
        if _is_block(item) and _is_table(item):
            # The first of its keys stands behind the dash.
            lines = "\n".join(_block(item, deeper))
            yield f"{margin}- {lines[len(deeper) :]}"
        else:
            yield f"{margin}-{_after(item, deeper)}"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _holds(value: object) -> bool:
    """Whether a value is a table or a list."""
    return isinstance(value, (Mapping, list, tuple))


def _is_block(value: object) -> bool:
    """Whether a value takes lines of its own: an empty one does not."""
    return _holds(value) and len(cast("list[object]", value)) > 0


def _key(key: str) -> str:
    plain = PLAIN_KEY.fullmatch(key) and key.lower() not in WORDS
    return key if plain else _scalar(key)


def _scalar(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "".join(map(_written, text))


def _written(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
