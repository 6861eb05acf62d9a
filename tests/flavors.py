"""A model of each family, of a few hundred thousand parameters, with every switch that it has on.

tests/flavors/<family>.toml is a model.toml; as overrides it replaces llama3_debug's, whose
tokenizer, data and settings the tests keep.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

_FOLDER = Path(__file__).parent / "flavors"
FAMILIES = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))
assert FAMILIES, f"no flavors in {_FOLDER}"


def flavor_overrides(family: str) -> list[str]:
    """The `--set` arguments that make the debug recipe's model this family's."""
    flavor = tomllib.loads((_FOLDER / f"{family}.toml").read_text(encoding="utf-8"))
    return [f"{key}={json.dumps(value)}" for key, value in _leaves("", flavor)]


def _leaves(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in a table and those below it."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{name}.", cast(dict[str, Any], value))
        else:
            yield f"{prefix}{name}", value
