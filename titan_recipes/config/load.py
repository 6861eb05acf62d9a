"""From TOML to the schema: read, merge, check; every problem at once, each with its file and cure.

Layers are plain dicts with the name of their file. They are merged key by key, remembering which
layer set which key, and the result is validated in one go by pydantic (strict; JSON mode, so that
TOML's arrays become tuples). Each of its errors becomes a Problem that says where, what, got, cure.
"""

import dataclasses
import difflib
import json
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from titan_recipes.errors import ConfigError, Problem

T = TypeVar("T")

UPSTREAM_ONLY = ("job", "experimental", "memory_estimation")
"""Sections of torchtitan's that the schema leaves out; `titan-recipes import` translates them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of settings: a parsed file, or the command line."""

    where: str
    data: Mapping[str, Any]


Provenance = dict[str, str]
"""Dotted key -> the layer that set it last."""


MAX_DEPTH = 32
"""Tables and arrays within each other; far more than the schema has, and recursion stays safe."""


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError naming file and, for broken TOML, line and column."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError([Problem(str(path), "", "no such file")]) from None
    except OSError as error:
        raise ConfigError([Problem(str(path), "", f"can't be read: {error.strerror}")]) from error
    return parse_toml(content, str(path))


def parse_toml(content: bytes, where: str) -> dict[str, Any]:
    """Parse a TOML file's content, with or without a byte order mark. Raises ConfigError."""
    try:
        return loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        got = f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise ConfigError([Problem(where, "", got, "save the file as UTF-8")]) from error
    except ValueError as error:
        raise ConfigError([Problem(where, "", f"not TOML: {error}")]) from error


def loads(text: str) -> dict[str, Any]:
    """Parse TOML text. Raises ValueError with the reason, also for what TOML leaves to the parser.

    Those are integers over 64 bits, which no JSON and no float could hold, and nesting without end.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        level = [value for holder in level for value in _values(holder)]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in level):
            raise ValueError("an integer of more than 64 bits")
        if not level:
            return data
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _values(holder: Any) -> Iterable[Any]:
    """What a table or an array holds; nothing for any other value."""
    if isinstance(holder, dict):
        return cast(dict[str, Any], holder).values()
    return cast(list[Any], holder) if isinstance(holder, list) else ()


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], Provenance]:
    """Lay the layers over each other, later ones winning; tables merge, arrays replace."""
    merged: dict[str, Any] = {}
    provenance: Provenance = {}

    def lay(target: dict[str, Any], data: Mapping[str, Any], where: str, prefix: str) -> None:
        for key, value in data.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, Mapping):
                below: dict[str, Any] | None = target.get(key)
                if not isinstance(below, dict):
                    below = target[key] = {}
                provenance.setdefault(dotted, where)
                lay(below, cast(Mapping[str, Any], value), where, f"{dotted}.")
            else:
                target[key] = value
                provenance[dotted] = where

    for layer in layers:
        lay(merged, layer.data, layer.where, "")
    return merged, provenance


@cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> type of a section."""
    return typing.get_type_hints(cls)


def subsection(hint: Any) -> type | None:
    """The dataclass that a field holds (also behind `| None`), or None for a plain value."""
    if typing.get_origin(hint) in (tuple, dict):
        return None
    for candidate in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
            return candidate
    return None


def field_hint(cls: type, dotted: str) -> Any | None:
    """The type of `dotted` below the section `cls`; None where there is no such key."""
    hint: Any = cls
    for part in dotted.split("."):
        if typing.get_origin(hint) in (tuple, dict):  # `part` is an index, or a name of the user's
            hint = typing.get_args(hint)[-1 if typing.get_origin(hint) is dict else 0]
            continue
        owner = subsection(hint)
        if owner is None or part not in hints(owner):
            return None
        hint = hints(owner)[part]
    return hint


def all_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key below a section, sections themselves left out."""
    keys: list[str] = []
    for name, hint in hints(cls).items():
        below = subsection(hint)
        keys += all_keys(below, f"{prefix}{name}.") if below else [f"{prefix}{name}"]
    return keys


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """'did you mean "x"?' for the nearest known word, or ""."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f'did you mean "{near[0]}"?' if near else ""


SPOKEN = {
    "learning_rate": "optimizer.lr",
    "gradient_clipping": "training.max_norm",
    "gradient_accumulation_steps": "training.global_batch_size",
    "sequence_length": "training.seq_len",
}
"""What people and other trainers call a key -> the key."""


def _cure_unknown(cls: type, dotted: str) -> str:
    owner, _, name = dotted.rpartition(".")
    if dotted.split(".")[0] in UPSTREAM_ONLY:
        return "a torchtitan section with no place here; `titan-recipes import FILE` translates it"
    parent = subsection(field_hint(cls, owner)) if owner else cls
    siblings = hints(parent) if parent else {}
    # A slip in this section comes first, then the right key in the wrong section, then both.
    if near := did_you_mean(name, siblings, cutoff=0.8):
        return near
    by_name: dict[str, list[str]] = {spoken: [key] for spoken, key in SPOKEN.items()}
    for key in all_keys(cls):
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    for cutoff in (1.0, 0.75):
        for close in difflib.get_close_matches(name, by_name, n=1, cutoff=cutoff):
            keys = by_name[close]
            if len(keys) <= 2:  # a name like "enable", of many sections, says nothing
                return did_you_mean(dotted, keys) or f'did you mean "{keys[0]}"?'
        if near := did_you_mean(name, siblings):
            return near
    for sibling in siblings:
        if sibling.startswith(f"{name}_"):
            return f'did you mean "{sibling}"?'
    return "remove it, or see `titan-recipes schema` for the keys there are"


MISSING = "missing"

_TYPE_WORDS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "an array",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "finite_number": "a finite number",
}


def show(value: Any) -> str:
    """A value as TOML users know it, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe(cls: type, error: Any, where_of: typing.Callable[[str], str]) -> Problem:
    dotted = ".".join(str(part) for part in error["loc"])
    where, kind, context = where_of(dotted), error["type"], error.get("ctx", {})
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return Problem(where, dotted, "unknown key", _cure_unknown(cls, dotted))
    if kind == "missing":
        return Problem(where, dotted, MISSING, "it has no default; write it")
    got = f"got {show(error['input'])}"
    if kind == "literal_error":
        return Problem(where, dotted, got, f"use {context['expected']}")
    if kind in _TYPE_WORDS:
        return Problem(where, dotted, got, f"must be {_TYPE_WORDS[kind]}")
    limits = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bound = next((f"{sign} {context[key]}" for key, sign in limits.items() if key in context), None)
    return Problem(where, dotted, got, f"must be {bound}" if bound else str(error["msg"]))


@cache
def _adapter(cls: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def validate(cls: type[T], data: Mapping[str, Any], provenance: Provenance, default: str) -> T:
    """Build the section `cls` from merged data. Raises ConfigError with every problem.

    provenance names the file of each key; `default` is named where no layer set anything near.
    """
    from pydantic import ValidationError

    def where_of(dotted: str) -> str:
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            if (found := provenance.get(".".join(parts[:length]))) is not None:
                return found
        return default

    # A TOML date has no JSON form: a table is refused wherever a date could have been meant.
    text = json.dumps(data, default=lambda value: {"TOML date or time": str(value)})
    try:
        return _adapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_describe(cls, item, where_of) for item in error.errors(include_url=False)]
        raise ConfigError(problems) from None


def check_layer(cls: type, layer: Layer) -> list[Problem]:
    """What is wrong in one layer by itself, also where a later layer would win over it."""
    merged, provenance = merge([layer])
    try:
        validate(cls, merged, provenance, layer.where)
    except ConfigError as error:
        return [problem for problem in error.problems if problem.got != MISSING]
    return []


def read_section(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Build a section from one source. Raises ConfigError."""
    merged, provenance = merge([Layer(where, data)])
    return validate(cls, merged, provenance, where)


BARE_WORD = re.compile(r"([A-Za-z_][\w.-]*)?")


def parse_overrides(cls: type, arguments: Sequence[str]) -> list[Layer]:
    """Each `section.key=value` of the command line as a layer. Raises ConfigError for all bad ones.

    The value is TOML; text that is not is taken as a string where the key holds a string, and a
    bare word everywhere: its type is refused with all the other problems.
    """
    layers: list[Layer] = []
    problems: list[Problem] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key, where = key.strip(), f"--set {_shortened(argument)}"
        if not _is_unicode(argument):
            problems.append(Problem(ascii(where), "", "not UTF-8"))
            continue
        if not equals or not key:
            problems.append(Problem(where, "", "no key=value", "write section.key=value"))
            continue
        hint = field_hint(cls, key)
        if hint is None:
            problems.append(Problem(where, key, "unknown key", _cure_unknown(cls, key)))
            continue
        try:
            parsed = loads(f"value = {text}")
        except ValueError as error:
            if not (_holds_text(hint) or BARE_WORD.fullmatch(text)):
                got = f"{_shortened(text)!r} is not a TOML value ({error})"
                problems.append(Problem(where, key, got))
                continue
            parsed = {"value": text}
        if len(parsed) > 1:
            got = f"{_shortened(text)!r} is more than one value"
            problems.append(Problem(where, key, got, "write a --set for each key"))
            continue
        value: Any = parsed["value"]
        for part in reversed(key.split(".")):
            value = {part: value}
        layers.append(Layer("--set", value))
    if problems:
        raise ConfigError(problems)
    return layers


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _is_unicode(text: str) -> bool:
    """Whether it could be written to a file: an argument that was not UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _holds_text(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(typing.get_args(hint)[0], str)
    return hint is str
