"""The JSON Schema of the bundle's TOML files, for editors: pydantic's, with our field docstrings.

Python drops the text under a field, so it is read from the schema's source with ast.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

from titan_recipes.config import schema
from titan_recipes.config.load import did_you_mean
from titan_recipes.errors import BundleError


def docstrings() -> dict[str, dict[str, str]]:
    """Section class -> {field -> its docstring; "" -> the class's own}, on one line each."""
    assert schema.__file__
    sources = sorted(Path(schema.__file__).parent.glob("*.py"))
    nodes = [n for path in sources for n in ast.parse(path.read_text(encoding="utf-8")).body]
    found: dict[str, dict[str, str]] = {}
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = {"": " ".join((ast.get_docstring(node) or "").split())}
        for member, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        texts[member.target.id] = " ".join(text.split())
                    case _:
                        pass
        found[node.name] = texts
    return found


def json_schema(section: str = "") -> dict[str, Any]:
    """The schema of a whole bundle, or of one of its sections. Raises BundleError.

    No section is required: each of the bundle's files holds some of them.
    """
    from pydantic import TypeAdapter

    known = schema.Config.__dataclass_fields__
    if section and section not in known:
        hint = did_you_mean(section, known) or f"sections: {', '.join(known)}"
        raise BundleError(f'no section "{section}"; {hint}')
    made: dict[str, Any] = TypeAdapter(schema.Config).json_schema()
    texts = docstrings()
    for name, definition in (*made["$defs"].items(), ("Config", made)):
        definition["description"] = texts[name][""]
        for key, value in definition.get("properties", {}).items():
            if text := texts[name].get(key):
                value["description"] = text
    made.pop("required")
    # A plan may hold a few keys of [model] alone; an editor should not miss the others there.
    made["$defs"]["Model"].pop("required")
    if section:
        made["properties"] = {section: made["properties"][section]}
        reached = _reached(made["$defs"], made["properties"])
        made["$defs"] = {name: made["$defs"][name] for name in sorted(reached)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _reached(definitions: dict[str, Any], start: Any) -> set[str]:
    """The definitions that `start` refers to, directly or not."""
    reached: set[str] = set()
    todo = [start]
    while todo:
        for name in re.findall(r"#/\$defs/(\w+)", json.dumps(todo.pop())):
            if name not in reached:
                reached.add(name)
                todo.append(definitions[name])
    return reached
