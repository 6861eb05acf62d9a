"""model.toml <-> config.json: the same numbers in two vocabularies.

Only one direction is written out, ours to theirs; a config.json is checked by comparing it with
what ours would be. Keys that describe no number of the decoder (token ids, dropout, cache) are not
compared.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from titan_recipes.config.load import show
from titan_recipes.config.schema import Model
from titan_recipes.config.schema.model import MoE, RopeScaling
from titan_recipes.config.support import value_at
from titan_recipes.errors import ConfigError, Problem
from titan_recipes.trainer.hf.families import ARCHITECTURES, Architecture

CONFIG = "config.json"

_NUMBERS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ffn_dim",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_ROPE = {
    "rope_type": "kind",
    "factor": "factor",
    "original_max_position_embeddings": "original_max_seq_len",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}
_LINEAR = ("rope_type", "factor")
_FROM_LENGTH = (*_LINEAR, "original_max_position_embeddings")
_ROPE_KEYS = {
    "linear": _LINEAR,
    "llama3": (*_FROM_LENGTH, "low_freq_factor", "high_freq_factor"),
    "yarn": (*_FROM_LENGTH, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
"""The keys that each way of stretching has."""

_COMPUTED = {
    "layer_types": ("sliding_window", "global_every"),
    "query_pre_attn_scalar": ("attention_scale",),
    "attn_logit_softcapping": ("attention_soft_cap",),
    "final_logit_softcapping": ("output_soft_cap",),
    "rope_local_base_freq": ("rope_theta_local",),
    "mlp_only_layers": ("moe.num_dense_layers",),
}
"""The keys of [model] that a computed key says."""

_ABOUT_TRAINING = ("load_balance_coeff", "aux_loss_weight")
_NOT_ARCHITECTURE = (
    "family",
    "hf_assets_path",
    "tokenizer_path",
    "converters",
    "print_after_conversion",
)


def config_of(sizes: Model) -> dict[str, Any]:
    """config.json's keys for the numbers of a model, in the form that versions 4 and 5 both read.

    Raises ConfigError where the family's architecture has no place for one of the switches.
    """
    architecture = ARCHITECTURES[sizes.family]
    problems = _impossible(sizes, architecture)
    if problems:
        raise ConfigError(problems)
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "hidden_act": _ACTIVATIONS.get(sizes.activation, sizes.activation),
        **{
            key: value_at(sizes, ours) for key, ours in {**_NUMBERS, **architecture.numbers}.items()
        },
        **architecture.fixed,
        **architecture.computed(sizes),
        "rope_theta": sizes.rope_theta,
        "rope_scaling": _rope_scaling(sizes.rope_scaling, explicit=architecture.explicit_rope),
    }
    if "hidden_activation" in config:
        del config["hidden_act"]
    if sizes.mla is not None:
        del config["head_dim"]  # the library means the rotated part by it
    return config


def _rope_scaling(scaling: RopeScaling | None, *, explicit: bool) -> dict[str, Any] | None:
    if scaling is None:
        return {"rope_type": "default"} if explicit else None
    keys = _ROPE_KEYS[scaling.kind]
    values = {key: getattr(scaling, _ROPE[key]) for key in keys}
    return {key: value for key, value in values.items() if value != 0 or key == "truncate"}


def _impossible(sizes: Model, architecture: Architecture) -> list[Problem]:
    """Switches of the model that its architecture does not have."""
    numbers = architecture.numbers.values()
    for table in ("moe", "mla"):
        needed = any(key.startswith(f"{table}.") for key in numbers)
        if needed != (getattr(sizes, table) is not None):
            got = "missing" if needed else "there is such a table"
            cure = f"{architecture.name} has {'one' if needed else 'none'}"
            return [Problem("model.toml", f"model.{table}", got, cure)]
    said = {*_NUMBERS.values(), *numbers, "rope_theta", "rope_scaling"}
    for key in (*architecture.fixed, *architecture.computed(sizes)):
        said |= {*_COMPUTED.get(key, ())}
    problems = _uneven_temperature(sizes)
    for key, value, default in _switches(sizes):
        wanted = architecture.switches.get(key, default)
        if (key not in said or key in architecture.switches) and value != wanted:
            cure = f"{architecture.name} has {show(wanted)}"
            problems.append(Problem("model.toml", f"model.{key}", f"got {show(value)}", cure))
    return problems


def _uneven_temperature(sizes: Model) -> list[Problem]:
    """Theirs takes mscale only together with mscale_all_dim."""
    scaling = sizes.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return []
    weights = (scaling.mscale, scaling.mscale_all_dim)
    if all(weights) or weights in ((0, 0), (1, 0)):
        return []
    got = f"mscale {weights[0]:g} and mscale_all_dim {weights[1]:g}"
    return [Problem("model.toml", "model.rope_scaling", got, "set both, or neither")]


def _switches(sizes: Model) -> list[tuple[str, Any, Any]]:
    """Key, value and default of everything in [model] that says how the decoder computes."""
    found = [
        (item.name, getattr(sizes, item.name), item.default)
        for item in dataclasses.fields(Model)
        if item.name not in (*_NOT_ARCHITECTURE, "moe", "mla")
    ]
    if sizes.moe is not None:
        found += [
            (f"moe.{item.name}", getattr(sizes.moe, item.name), item.default)
            for item in dataclasses.fields(MoE)
            if item.name not in _ABOUT_TRAINING
        ]
    return found


# --- their config.json ------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json. Raises ConfigError."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        got = "no such file" if folder.is_dir() else "no such directory"
        raise ConfigError([Problem(str(path if folder.is_dir() else folder), "", got)]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(path), "", f"can't be read: {error}")]) from error
    if not isinstance(config, dict):
        raise ConfigError([Problem(str(path), "", "not a JSON object")])
    return config


def check_config(folder: Path, sizes: Model) -> None:
    """Raises ConfigError that names every number in which config.json and model.toml differ."""
    problems = differences(read_config(folder), sizes, str(folder / CONFIG))
    if problems:
        raise ConfigError(problems)


def differences(config: dict[str, Any], sizes: Model, where: str) -> list[Problem]:
    """Every number in which a config.json, named `where`, describes another model than ours."""
    architecture = ARCHITECTURES[sizes.family]
    got_type = config.get("model_type")
    if got_type != architecture.model_type:
        got, cure = f"got {show(got_type)}", f'{sizes.family} is "{architecture.model_type}"'
        return [Problem(where, "model_type", got, cure)]
    theirs, ours = _flat(_completed(config, architecture)), _flat(config_of(sizes))
    names = {**_NUMBERS, **architecture.numbers, "rope_theta": "rope_theta"}
    names |= {key: keys[0] for key, keys in _COMPUTED.items()}
    names |= {f"rope_scaling.{key}": f"rope_scaling.{name}" for key, name in _ROPE.items()}
    # Published models have layers that predict further tokens; those are not read.
    unused = {"architectures", "num_nextn_predict_layers", *_unused(sizes)}
    scaling = {key for key in (*ours, *theirs) if key.startswith("rope_scaling.")}
    if theirs["rope_scaling.rope_type"] != ours["rope_scaling.rope_type"]:
        # The numbers of one way of stretching say nothing in another.
        unused |= scaling - {"rope_scaling.rope_type"}
    problems: list[Problem] = []
    for key in sorted({*ours, *scaling} - unused):
        got, wanted = theirs.get(key), ours.get(key)
        if not _same(got, wanted):
            maker = f"model.{names[key]} makes it" if key in names else "the decoder has only"
            problems.append(Problem(where, key, f"got {show(got)}", f"{maker} {show(wanted)}"))
    return problems


def _unused(sizes: Model) -> set[str]:
    """Keys that hold no number of this model: the dense width where every layer has experts."""
    dense = sizes.moe is None or sizes.moe.num_dense_layers > 0
    in_table = ARCHITECTURES[sizes.family].numbers
    return set() if dense or "intermediate_size" in in_table else {"intermediate_size"}


def _completed(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """A config.json with what it leaves out, and RoPE in the one form that `config_of` writes."""
    given = {key: value for key, value in config.items() if value is not None}
    heads, layers = given.get("num_attention_heads", 1), given.get("num_hidden_layers", 0)
    every = given.get("sliding_window_pattern", architecture.global_every) or layers + 1
    missing: dict[str, Any] = {
        "num_key_value_heads": heads,
        "head_dim": given.get("hidden_size", 0) // heads,
        "layer_types": [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
            for layer in range(layers)
        ],
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    }
    if "num_local_experts" in given:  # what version 5 calls Qwen's
        given.setdefault("num_experts", given["num_local_experts"])
    if architecture.model_type == "gemma":
        given["hidden_act"] = given.get("hidden_activation", "gelu_pytorch_tanh")
    return missing | dict(architecture.missing) | given | _rope(given, architecture)


def _rope(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """rope_theta, rope_local_base_freq and rope_scaling, in whichever of three forms they come.

    Version 4 has them at the top, version 5 in rope_parameters, there by kind of layer for Gemma 3.
    """
    whole: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    found: dict[str, Any] = {}
    if "full_attention" in whole:
        found["rope_local_base_freq"] = (whole.get("sliding_attention") or {}).get("rope_theta")
        whole = whole["full_attention"]
    found["rope_theta"] = whole.get("rope_theta", config.get("rope_theta", architecture.rope_theta))
    kind = whole.get("rope_type") or whole.get("type") or "default"
    missing = {
        "original_max_position_embeddings": config.get("max_position_embeddings"),
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
    }
    foreign = _ROPE.keys() - {*_ROPE_KEYS.get(kind, ("rope_type",))} | {"rope_theta", "type"}
    scaling = {
        key: value
        for key, value in (missing | whole | {"rope_type": kind}).items()
        if key not in foreign and (value or key == "truncate")
    }
    return found | {"rope_scaling": scaling}


def _same(got: Any, wanted: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (got, wanted))
    return math.isclose(got, wanted, rel_tol=1e-6) if numbers else got == wanted


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config with its one nested table, rope_scaling, spread out."""
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    rest = {key: value for key, value in config.items() if key != "rope_scaling"}
    return rest | {f"rope_scaling.{key}": value for key, value in scaling.items()}
