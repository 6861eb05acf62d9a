"""The JSON Schema that editors complete TOML with."""

import dataclasses
from typing import Any

import pytest

from titan_recipes.bundle.json_schema import docstrings, json_schema
from titan_recipes.config import schema
from titan_recipes.config.load import all_keys
from titan_recipes.config.schema import Config
from titan_recipes.errors import BundleError


def resolve(made: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    for choice in (value, *value.get("anyOf", ())):
        if "$ref" in choice:
            return made["$defs"][choice["$ref"].rpartition("/")[2]]
    return value


def lookup(made: dict[str, Any], dotted: str) -> dict[str, Any]:
    node = made
    for part in dotted.split("."):
        node = resolve(made, node)["properties"][part]
    return node


def test_schema_holds_every_key_with_its_docstring():
    made = json_schema()
    keys = all_keys(Config)
    assert len(keys) > 150
    without = [key for key in keys if not lookup(made, key).get("description")]
    assert without == []
    assert lookup(made, "training.seq_len") == {
        "default": 2048,
        "description": "Tokens in one sequence.",
        "minimum": 1,
        "title": "Seq Len",
        "type": "integer",
    }


def test_schema_when_a_key_is_unknown_forbids_it_everywhere():
    made = json_schema()
    assert made["additionalProperties"] is False
    assert "required" not in made
    open_ones = [n for n, d in made["$defs"].items() if d["additionalProperties"] is not False]
    assert open_ones == []


def test_schema_of_one_section_holds_what_it_reaches_and_no_more():
    made = json_schema("training")
    assert list(made["properties"]) == ["training"]
    assert sorted(made["$defs"]) == ["DataLoader", "Training"]
    with pytest.raises(BundleError) as caught:
        json_schema("trainin")
    assert str(caught.value) == 'no section "trainin"; did you mean "training"?'


def test_docstrings_are_those_under_the_fields():
    found = docstrings()
    assert found["Optimizer"]["lr"] == "Peak learning rate."
    assert found["Assets"]["tokenizer"].startswith("Tokenizer file or directory: absolute, below")
    fields = {f.name for f in dataclasses.fields(schema.Training)}
    documented = set(found["Training"]) - {""}
    assert fields - documented == {"dataloader"}
