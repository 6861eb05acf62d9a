"""The small models of each family: they leave no switch of a packaged recipe untried."""

import dataclasses
import tomllib
from typing import Any, get_args

import pytest
from flavors import FAMILIES, flavor_overrides

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.data_root import data_root
from titan_recipes.config.schema.model import Family, Model

SIZES = {"dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size"}
PACKAGED = sorted(p.parent for p in (data_root() / "recipes").glob("*/recipe.toml"))


def flavor(family: str) -> Model:
    return find_bundle("llama3_debug").resolve(overrides=flavor_overrides(family)).job.model


def switches(model: Any, prefix: str = "") -> set[str]:
    """Dotted keys of everything in a flavor that is not at its default."""
    found: set[str] = set()
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{prefix}{field.name}", *switches(value, f"{prefix}{field.name}.")}
        elif value != field.default:
            found.add(f"{prefix}{field.name}")
    return found


def test_every_family_has_a_flavor() -> None:
    assert set(FAMILIES) == set(get_args(Family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flavor_replaces_all_of_the_debug_recipes_model(family: str) -> None:
    ours = {override.split("=")[0] for override in flavor_overrides(family)}
    debug = tomllib.loads((data_root() / "recipes/llama3_debug/model.toml").read_text())["model"]
    assert {f"model.{key}" for key in debug} - ours == set()
    model = flavor(family)
    assert model.family == family
    assert (model.dim, model.n_layers, model.n_heads) == (64, 4, 8)
    assert model.n_kv_heads % 4 == 0


@pytest.mark.parametrize("path", PACKAGED, ids=[path.name for path in PACKAGED])
def test_a_flavor_has_every_switch_of_its_familys_recipes(path: Any) -> None:
    recipe = Bundle(path).resolve().job.model
    # Of the families that tie some sizes and not others the flavors are untied; Gemma's are tied.
    optional = {"tie_embeddings", "converters"}
    assert switches(recipe) - switches(flavor(recipe.family)) - optional == set()


def test_flavors_are_distinct_in_what_they_switch() -> None:
    seen = {family: switches(flavor(family)) - SIZES - {"family"} for family in FAMILIES}
    assert seen["gemma"] < seen["gemma2"]
    assert seen["gemma3"] - seen["gemma2"] == {
        "qk_norm", "rope_theta_local", "rope_scaling", "rope_scaling.kind",
    }  # fmt: skip
    assert seen["qwen3_moe"] - seen["qwen3"] >= {"moe", "moe.aux_loss_weight"}
    assert {"moe.num_groups", "moe.load_balance_coeff", "mla.q_lora_rank"} <= seen["deepseek_v3"]
    assert {"attention_sinks", "moe.expert_bias", "sliding_window"} <= seen["gpt_oss"]
