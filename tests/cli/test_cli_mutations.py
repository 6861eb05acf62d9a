"""Two hundred broken bundles: each is refused with exit 2, its file and key named, no traceback."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner

from titan_recipes.cli import main
from titan_recipes.config.data_root import data_root
from titan_recipes.config.load import all_keys, field_hint, read_toml
from titan_recipes.config.schema import Config

RECIPES = ("llama3_debug", "llama3_8b")
PLANS = {"llama3_debug": "cpu2", "llama3_8b": "h100x8"}


@dataclass(frozen=True)
class Mutant:
    """One broken bundle: what was done to which file, and the word the error must hold."""

    recipe: str
    kind: str
    file: str
    key: str
    value: object = None

    def __str__(self) -> str:
        return f"{self.recipe}-{self.kind}-{self.file}-{self.key}-{self.value}"


def typos() -> list[Mutant]:
    """A key with two letters swapped, or one dropped, for every section."""
    generator, found = random.Random(0), list[Mutant]()
    keys = [key for key in all_keys(Config) if key.split(".")[0] not in ("plan", "expect")]
    for key in generator.sample(keys, 60):
        section, _, name = key.rpartition(".")
        at = generator.randrange(1, len(name))
        typo = name[:at] + "_x" + name[at:]
        home = {"recipe": "recipe.toml", "assets": "recipe.toml", "model": "model.toml"}
        file = home.get(section.split(".")[0], "train.toml")
        found.append(Mutant(generator.choice(RECIPES), "typo", file, f"{section}.{typo}", 1))
    return found


def wrong_types() -> list[Mutant]:
    """A value of another type, for keys of every type."""
    generator, found = random.Random(1), list[Mutant]()
    wrong: dict[object, object] = {str: 7, bool: "yes", int: "12", float: "fast"}
    keys = [
        key for key in all_keys(Config) if key.split(".")[0] not in ("recipe", "plan", "expect")
    ]
    for key in generator.sample(keys, 60):
        hint = field_hint(Config, key)
        base = getattr(hint, "__origin__", hint)
        value = wrong.get(base, {"a": 1})
        home = {"assets": "recipe.toml", "model": "model.toml"}
        file = home.get(key.split(".")[0], "train.toml")
        found.append(Mutant(generator.choice(RECIPES), "type", file, key, value))
    return found


def impossible_numbers() -> list[Mutant]:
    """Numbers of the right type that no run could have."""
    values: list[tuple[str, str, object]] = [
        ("model.toml", "model.dim", 0),
        ("model.toml", "model.n_layers", -1),
        ("model.toml", "model.n_kv_heads", 5),
        ("model.toml", "model.head_dim", 63),
        ("model.toml", "model.vocab_size", 0),
        ("model.toml", "model.rope_theta", 0.0),
        ("model.toml", "model.norm_eps", -1e-5),
        ("model.toml", "model.family", "llama9"),
        ("train.toml", "training.seq_len", -8),
        ("train.toml", "training.steps", 0),
        ("train.toml", "training.local_batch_size", 0),
        ("train.toml", "training.global_batch_size", 7),
        ("train.toml", "training.max_norm", -1.0),
        ("train.toml", "training.dtype", "float8"),
        ("train.toml", "optimizer.lr", 0.0),
        ("train.toml", "optimizer.lr", float("nan")),
        ("train.toml", "optimizer.beta1", 1.5),
        ("train.toml", "optimizer.name", "Lion"),
        ("train.toml", "lr_scheduler.decay_type", "steep"),
        ("train.toml", "lr_scheduler.decay_ratio", 2.0),
        ("train.toml", "metrics.log_freq", 0),
        ("train.toml", "checkpoint.interval", 0),
        ("train.toml", "checkpoint.async_mode", "sometimes"),
        ("train.toml", "checkpoint.keep_latest_k", -2),
        ("train.toml", "debug.seed", -1),
        ("plan", "plan.nodes", 0),
        ("plan", "plan.gpus_per_node", -8),
        ("plan", "plan.gpu", "h1000"),
        ("plan", "parallelism.tensor_parallel_degree", 3),
        ("plan", "parallelism.data_parallel_shard_degree", 5),
        ("plan", "parallelism.data_parallel_shard_degree", 0),
        ("plan", "parallelism.pipeline_parallel_degree", 1000),
        ("plan", "parallelism.context_parallel_degree", 7),
        ("plan", "activation_checkpoint.mode", "some"),
        ("plan", "activation_checkpoint.selective_ac_option", "every"),
    ]
    return [
        Mutant(recipe, "number", PLAN if file == "plan" else file, key, value)
        for recipe in RECIPES
        for file, key, value in values
        # The debug plan recomputes nothing: there the option is dormant.
        if (recipe, value) != ("llama3_debug", "every")
    ]


PLAN = "plans"


def broken_files() -> list[Mutant]:
    """Files that are missing, not TOML, or not UTF-8."""
    return [
        Mutant(recipe, kind, file, "")
        for recipe in RECIPES
        for file in ("recipe.toml", "model.toml", "train.toml", PLAN)
        for kind in ("missing", "torn", "latin1", "binary")
    ]


MUTANTS = [*typos(), *wrong_types(), *impossible_numbers(), *broken_files()]


def mutate(bundle: Path, mutant: Mutant) -> str:
    """Break the bundle; returns the file name that the error must hold."""
    file = f"plans/{PLANS[mutant.recipe]}.toml" if mutant.file == PLAN else mutant.file
    path = bundle / file
    if mutant.kind == "missing":
        path.unlink()
    elif mutant.kind == "torn":
        path.write_text(path.read_text() + '\n[broken\nkey = "never closed')
    elif mutant.kind == "latin1":
        path.write_bytes(path.read_bytes() + "# d\xe9j\xe0 vu".encode("latin-1"))
    elif mutant.kind == "binary":
        path.write_bytes(bytes(range(256)))
    else:
        data = read_toml(path)
        table = data
        *sections, name = mutant.key.split(".")
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = mutant.value
        path.write_text(tomli_w.dumps(data))
    return Path(file).stem if mutant.file == PLAN else file


def test_there_are_two_hundred_mutants() -> None:
    assert len(MUTANTS) == len({str(mutant) for mutant in MUTANTS}) >= 200


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_broken_bundle_is_refused_with_file_and_key(mutant: Mutant, tmp_path: Path) -> None:
    bundle = tmp_path / mutant.recipe
    shutil.copytree(data_root() / "recipes" / mutant.recipe, bundle)
    file = mutate(bundle, mutant)
    plan = PLANS[mutant.recipe]
    result = CliRunner().invoke(main, ["validate", str(bundle), "--plan", plan])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith("error: ")
    assert file in result.stderr
    assert mutant.key.rpartition(".")[2] in result.stderr
    assert "Traceback" not in result.output
