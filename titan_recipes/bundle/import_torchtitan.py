"""`titan-recipes import`: one torchtitan TOML (v0.1.0, v0.2.2 and older) becomes a bundle.

Every key of the file ends up in the table that is printed and kept in the bundle's README: kept,
translated, dropped with the reason, or unknown. Defaults of upstream's that the file relies on and
that differ here are written out or named ("added"), so that the bundle trains what the file did.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import tomli_w

from titan_recipes.bundle.bundle import NAME, Bundle
from titan_recipes.bundle.fork import write_files
from titan_recipes.bundle.merge import flatten
from titan_recipes.bundle.torchtitan_keys import (
    AUTO_FILTER,
    CONVERTERS,
    DROPPED,
    FLAVORS,
    IN_PLAN,
    MODEL_KEYS,
    OLD_KEYS,
    OLD_ONLY,
    OURS,
    PATHS,
    V022_ROPE_SCALING,
)
from titan_recipes.config.data_root import data_root
from titan_recipes.config.load import all_keys, did_you_mean, field_hint, read_toml, show
from titan_recipes.config.schema import Config
from titan_recipes.errors import BundleError, ConfigError, Problem

PLAN = "imported"
FLOAT8 = "quantize.linear.float8."
UPSTREAM_RANKS = 8
"""Ranks that upstream's run_train.sh starts unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one key."""

    key: str
    fate: Literal["kept", "translated", "dropped", "unknown", "added"]
    detail: str


@dataclass(slots=True)
class Import:
    """A translated file: our settings by dotted key, and what was done to each of its keys."""

    name: str
    recipe: str
    """The packaged recipe whose numbers the flavor has."""
    is_old: bool
    """v0.1.0 or before, by its keys."""
    summary: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    rows: list[Row] = field(default_factory=list[Row])

    def set(self, key: str, value: Any, row: Row) -> None:
        self.settings[key] = value
        self.rows.append(row)


def import_torchtitan(file: Path, folder: Path, name: str = "") -> tuple[Bundle, list[Row]]:
    """Translate a file into the bundle <folder>/<name>; name defaults to the file's.

    Raises ConfigError for a file or flavor that can't be read, BundleError where the directory
    exists or can't be written.
    """
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "_", file.stem)
    target = folder / name
    if not NAME.fullmatch(name):
        raise BundleError(f'"{name}" is no recipe name; choose one with --name')
    if os.path.lexists(target):
        raise BundleError(f"{target} exists; choose another name with --name")
    done = translate(read_toml(file), str(file), name)
    try:
        write_files(target, _files(done, file))
    except OSError as error:
        raise BundleError(f"{target}: can't be written: {error.strerror}") from error
    return Bundle(target.absolute()), done.rows


def translate(data: Mapping[str, Any], where: str, name: str) -> Import:
    """Translate a parsed torchtitan TOML. Raises ConfigError for a model we have no numbers of."""
    flat = {key: value for key, value in flatten(data).items() if value != {}}
    is_old = any(key in OLD_ONLY for key in flat)
    done = Import(name, _recipe_of(flat, where), is_old, f"Imported from {Path(where).name}")
    known = {key for key in all_keys(Config) if not key.startswith(OURS) or key in MODEL_KEYS}
    for key, value in flat.items():
        _translate_key(done, key, value, known)
    _add_defaults(done)
    _add_plan(done)
    return done


def _recipe_of(flat: Mapping[str, Any], where: str) -> str:
    model, flavor = flat.get("model.name", "llama3"), flat.get("model.flavor", "debugmodel")
    if model != "llama3":
        got, cure = f"{show(model)} is not supported yet", 'only "llama3" can be imported'
        raise ConfigError([Problem(where, "model.name", got, cure)])
    if not isinstance(flavor, str) or flavor not in FLAVORS:
        cure = f"known flavors: {', '.join(FLAVORS)}"
        got = f"no numbers for {show(flavor)}"
        raise ConfigError([Problem(where, "model.flavor", got, cure)])
    return FLAVORS[flavor]


def _translate_key(done: Import, key: str, value: Any, known: set[str]) -> None:
    target = OLD_KEYS.get(key, key)
    if key in ("model.name", "model.flavor"):
        done.rows.append(Row(key, "translated", f"model.toml has the numbers of {done.recipe}"))
    elif key == "job.description":
        done.summary = str(value)
        done.rows.append(Row(key, "translated", "recipe.summary"))
    elif key.endswith(".pipeline_parallel_split_points"):
        _translate_split(done, key, value)
    elif key in DROPPED:
        done.rows.append(Row(key, "dropped", DROPPED[key]))
    elif key == "metrics.enable_color_printing":
        target = "metrics.disable_color_printing"
        done.set(target, not value, Row(key, "translated", f"{target} = {show(not value)}"))
    elif target not in known:
        hint = did_you_mean(key, [*known, *OLD_KEYS]) or "see `titan-recipes schema`"
        done.rows.append(Row(key, "unknown", f"left out; {hint}"))
    else:
        ours = _convert(target, value)
        same = target == key and ours == value
        line = f"{target} = {show(ours)}"
        if target in PATHS and value and ours == value and not str(value).startswith(("/", "~")):
            line += "; relative to the bundle here: write it absolute"
        done.set(target, ours, Row(key, "kept" if same else "translated", line))
        if target == f"{FLOAT8}filter_fqns" and AUTO_FILTER in str(value):
            switch = f"{FLOAT8}skip_small"
            done.set(switch, True, Row(AUTO_FILTER, "translated", f"{switch} = true"))


def _convert(key: str, value: Any) -> Any:
    """A value in the form that our schema has for the key."""
    if key == "quantize.linear.mx.recipe_name" and value == "mxfp8":
        return "mxfp8_cublas"
    if key == "quantize.linear.mx.mxfp8_dim1_cast_kernel_choice" and isinstance(value, bool):
        return "triton" if value else "torch"
    if isinstance(value, str) and str(field_hint(Config, key)).startswith("tuple"):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if key == "model.converters" and isinstance(value, list):
        names = cast(list[Any], value)
        return list(dict.fromkeys(CONVERTERS.get(name, name) for name in names))
    if key == f"{FLOAT8}filter_fqns" and isinstance(value, list):
        return [name for name in cast(list[Any], value) if name != AUTO_FILTER]
    if key in PATHS and isinstance(value, str) and value and os.path.exists(value):
        return os.path.realpath(value)
    return value


def _translate_split(done: Import, key: str, points: Any) -> None:
    """Names that start a stage -> the module names of each stage."""
    if not points:
        done.rows.append(Row(key, "dropped", "empty: the split is automatic here too"))
        return
    points = str(points).split(",") if not isinstance(points, list) else cast(list[Any], points)
    layers = read_toml(data_root() / "recipes" / done.recipe / "model.toml")["model"]["n_layers"]
    modules = ["tok_embeddings", *(f"layers.{n}" for n in range(layers)), "norm", "output"]
    parts: list[list[str]] = [[]]
    for module in modules:
        if module in points:
            parts.append([])
        parts[-1].append(module)
    target = "parallelism.module_fqns_per_model_part"
    done.set(target, parts, Row(key, "translated", f"{target}: {len(parts)} stages"))


def _add_defaults(done: Import) -> None:
    """Write out, or name, the defaults of upstream's that differ here."""
    written: dict[str, Any] = {"metrics.enable_tensorboard": False, "checkpoint.enable": False}
    if "float8" in done.settings.get("model.converters", ()):
        switches = ("enable_fsdp_float8_all_gather", "precompute_float8_dynamic_scale_for_fsdp")
        written |= dict.fromkeys([f"{FLOAT8}{name}" for name in (*switches, "skip_small")], False)
    if done.settings.get("checkpoint.enable"):
        written["checkpoint.last_save_model_only"] = not done.is_old
    for key, value in written.items():
        if key not in done.settings:
            line = f"{show(value)}: upstream's default, not ours"
            done.set(key, value, Row(key, "added", line))
    named = {"debug.seed": "0 here; upstream draws a random seed"}
    if "checkpoint.folder" not in done.settings and done.settings["checkpoint.enable"]:
        named["checkpoint.folder"] = '"checkpoints" here, "checkpoint" upstream'
    if not {"model.hf_assets_path", "model.tokenizer_path"} & done.settings.keys():
        named["assets.tokenizer"] = f"that of {done.recipe}; upstream reads one of its test files"
    named["model.rope_scaling"] = (
        "not scaled, as in torchtitan v0.1.0"
        if done.is_old
        else "scaled by 8, as in torchtitan v0.2.2"
    )
    for key, line in named.items():
        if key not in done.settings:
            done.rows.append(Row(key, "added", line))


def _add_plan(done: Import) -> None:
    """The world size, which upstream takes from torchrun and a plan says."""

    def degree(name: str) -> int:
        value = done.settings.get(f"parallelism.{name}_parallel_degree", 1)
        return value if isinstance(value, int) and value > 0 else 1

    shard = done.settings.get("parallelism.data_parallel_shard_degree", -1)
    replicate = done.settings.get("parallelism.data_parallel_replicate_degree", 1)
    ranks = degree("tensor") * degree("pipeline") * degree("context")
    ranks *= replicate if isinstance(replicate, int) and replicate > 0 else 1
    if isinstance(shard, int) and shard > 0:
        ranks, why = ranks * shard, "the product of the degrees"
    elif UPSTREAM_RANKS % ranks == 0:
        ranks, why = UPSTREAM_RANKS, "what upstream's run_train.sh starts"
    else:
        why = "the product of the degrees; data_parallel_shard_degree = -1 takes any multiple of it"
    nodes = ranks // UPSTREAM_RANKS if ranks % UPSTREAM_RANKS == 0 else 1
    done.settings["plan.nodes"] = nodes
    done.settings["plan.gpus_per_node"] = ranks // nodes
    done.rows.append(Row("plan", "added", f"{nodes} nodes x {ranks // nodes} GPUs: {why}"))


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *tables, last = dotted.split(".")
        table = nested
        for part in tables:
            table = table.setdefault(part, {})
        table[last] = value
    return nested


def _files(done: Import, file: Path) -> dict[str, bytes]:
    """The bundle's files."""
    origin = data_root() / "recipes" / done.recipe
    model = read_toml(origin / "model.toml")
    assets = read_toml(origin / "recipe.toml").get("assets", {})
    in_plan = {k: v for k, v in done.settings.items() if k.startswith(("plan.", *IN_PLAN))}
    in_model = {k: v for k, v in done.settings.items() if k.startswith("model.")}
    rest = {k: v for k, v in done.settings.items() if k not in in_plan and k not in in_model}
    for key, value in in_model.items():
        if key not in in_plan:
            model["model"][key.removeprefix("model.")] = value
    if done.is_old:
        model["model"].pop("rope_scaling", None)
    elif done.recipe == "llama3_debug":
        model["model"]["rope_scaling"] = V022_ROPE_SCALING
    recipe = {
        "name": done.name,
        "version": "0.1.0",
        "summary": done.summary,
        "default_plan": PLAN,
        "tags": ["imported"],
    }
    texts = {
        "recipe.toml": tomli_w.dumps({"recipe": recipe, "assets": assets}),
        "model.toml": tomli_w.dumps(model),
        "train.toml": tomli_w.dumps(_nest(rest)),
        f"plans/{PLAN}.toml": tomli_w.dumps(_nest(in_plan)),
        "README.md": _readme(done, file),
    }
    files = {name: text.encode() for name, text in texts.items()}
    tokenizer = origin / "tokenizer.model"
    if assets.get("tokenizer") == tokenizer.name and tokenizer.is_file():
        files[tokenizer.name] = tokenizer.read_bytes()
    return files


def _readme(done: Import, file: Path) -> str:
    rows = "\n".join(
        f"| `{row.key}` | {row.fate} | {row.detail.replace('|', chr(92) + '|')} |"
        for row in done.rows
    )
    return f"""# {done.name}

{done.summary}

Imported from torchtitan's `{file.name}` by `titan-recipes import`. What became of its keys:

| key | fate | detail |
|---|---|---|
{rows}
"""
