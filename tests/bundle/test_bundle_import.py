"""torchtitan's TOML becomes a bundle: every key is kept, translated, dropped or named unknown."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.bundle.import_torchtitan import Row, import_torchtitan
from titan_recipes.bundle.torchtitan_keys import DROPPED, OLD_KEYS
from titan_recipes.config.load import all_keys
from titan_recipes.config.resolve import resolve
from titan_recipes.config.schema import Config
from titan_recipes.errors import BundleError, ConfigError

V022 = """
[job]
dump_folder = "./outputs"
description = "Llama 3 8B training"

[profiling]
enable_profiling = true
save_traces_folder = "profile_trace"
profile_freq = 100

[metrics]
log_freq = 10
save_tb_folder = "tb"

[model]
name = "llama3"
flavor = "8B"
hf_assets_path = "./assets/hf/Llama-3.1-8B"

[optimizer]
name = "AdamW"
lr = 3e-4
eps = 1e-8

[lr_scheduler]
warmup_steps = 200

[training]
local_batch_size = 1
seq_len = 8192
max_norm = 1.0
steps = 1000
dataset = "c4"

[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
tensor_parallel_degree = 1

[checkpoint]
enable = true
interval = 500

[compile]
enable = true
components = ["model", "loss"]

[activation_checkpoint]
mode = "selective"
selective_ac_option = "op"

[quantize.linear.float8]
enable_fsdp_float8_all_gather = false
filter_fqns = ["output"]

[validation]
enable = false
freq = 500

[memory_estimation]
enable = false
"""

V010 = """
[job]
description = "Llama 3 debug training"
print_args = false

[metrics]
log_freq = 1
enable_tensorboard = true

[model]
name = "llama3"
flavor = "debugmodel"
tokenizer_path = "/data/tokenizer.model"
converters = ["float8"]
dim = 5

[lr_scheduler]
warmup_steps = 2
lr_min = 0.1

[training]
local_batch_size = 8
seq_len = 2048
steps = 10
compile = true
seed = 7
deterministic = true

[parallelism]
tensor_parallel_degree = 2
pipeline_parallel_degree = 2
pipeline_parallel_split_points = ["layers.3"]
enable_compiled_autograd = false

[checkpoint]
enable_checkpoint = true
last_save_model_weights_only = true
folder = "ckpt"

[float8]
filter_fqns = ["output"]
force_recompute_fp8_weight_in_bwd = false

[mx]
recipe_name = "mxfp8"
use_fp8_dim1_cast_triton_kernel = false

[experimental]
custom_import = ""

[typo]
x = 1
"""


def run(tmp_path: Path, text: str, name: str = "") -> tuple[Bundle, dict[str, Row]]:
    file = tmp_path / "my config.toml"
    file.write_text(text)
    bundle, rows = import_torchtitan(file, tmp_path / "recipes", name)
    return bundle, {row.key: row for row in rows}


def read(bundle: Bundle, file: str) -> dict[str, Any]:
    return tomllib.loads((bundle.path / file).read_text())


def test_import_of_v022_makes_a_bundle_that_resolves(workplace: Path):
    bundle, rows = run(workplace, V022)
    layers = bundle.layers()
    job = resolve(layers, digest="", bundle=str(bundle.path), plan="imported").job
    assert job.recipe_id == "my_config@0.1.0"
    assert job.recipe.summary == "Llama 3 8B training"
    assert job.derived.num_params == 8_030_261_248
    assert job.derived.world_size == 8
    assert job.optimizer.lr == 3e-4
    assert job.activation_checkpoint.selective_ac_option == "op"
    assert job.compile.enable
    assert job.model.rope_scaling is not None
    assert job.model.rope_scaling.factor == 8.0
    # Upstream's defaults where ours differ.
    assert job.metrics.enable_tensorboard is False
    assert job.checkpoint.last_save_model_only is True
    assert sorted(read(bundle, "train.toml")) == [
        "checkpoint", "lr_scheduler", "metrics", "optimizer", "profiling", "training", "validation",
    ]  # fmt: skip
    assert sorted(read(bundle, "plans/imported.toml")) == [
        "activation_checkpoint", "compile", "parallelism", "plan", "quantize",
    ]  # fmt: skip
    assert {row.fate for row in rows.values()} == {"kept", "translated", "dropped", "added"}


def test_import_of_v022_says_what_became_of_each_key(workplace: Path):
    _, rows = run(workplace, V022)

    def flat(table: dict[str, Any], prefix: str = "") -> list[str]:
        keys: list[str] = []
        for key, value in table.items():
            dotted = f"{prefix}{key}"
            keys += flat(value, f"{dotted}.") if isinstance(value, dict) else [dotted]
        return keys

    assert [key for key in flat(tomllib.loads(V022)) if key not in rows] == []
    added = {key: row.detail for key, row in rows.items() if row.fate == "added"}
    assert added == {
        "metrics.enable_tensorboard": "false: upstream's default, not ours",
        "checkpoint.last_save_model_only": "true: upstream's default, not ours",
        "debug.seed": "0 here; upstream draws a random seed",
        "checkpoint.folder": '"checkpoints" here, "checkpoint" upstream',
        "model.rope_scaling": "scaled by 8, as in torchtitan v0.2.2",
        "plan": "1 nodes x 8 GPUs: what upstream's run_train.sh starts",
    }
    assert rows["job.description"] == Row("job.description", "translated", "recipe.summary")
    assert rows["job.dump_folder"].fate == "dropped"
    assert rows["memory_estimation.enable"].fate == "dropped"
    assert rows["optimizer.lr"] == Row("optimizer.lr", "kept", "optimizer.lr = 0.0003")
    assert rows["model.hf_assets_path"].detail == (
        'model.hf_assets_path = "./assets/hf/Llama-3.1-8B"; relative to the bundle here: '
        "write it absolute"
    )


def test_import_of_v010_renames_its_keys(workplace: Path):
    bundle, rows = run(workplace, V010, "old")
    train, plan = read(bundle, "train.toml"), read(bundle, "plans/imported.toml")
    model = read(bundle, "model.toml")["model"]
    assert train["lr_scheduler"] == {"warmup_steps": 2, "min_lr_factor": 0.1}
    assert train["debug"] == {"seed": 7, "deterministic": True}
    assert train["checkpoint"] == {
        "enable": True, "last_save_model_only": True, "folder": "ckpt",
    }  # fmt: skip
    assert plan["compile"] == {"enable": True}
    assert plan["model"] == {"converters": ["float8"]}
    assert plan["quantize"]["linear"] == {
        "float8": {
            "filter_fqns": ["output"],
            # Upstream's defaults, not ours.
            "enable_fsdp_float8_all_gather": False,
            "precompute_float8_dynamic_scale_for_fsdp": False,
            "skip_small": False,
        },
        "mx": {"recipe_name": "mxfp8_cublas", "mxfp8_dim1_cast_kernel_choice": "torch"},
    }
    assert plan["parallelism"]["module_fqns_per_model_part"] == [
        ["tok_embeddings", "layers.0", "layers.1", "layers.2"],
        ["layers.3", "layers.4", "layers.5", "norm", "output"],
    ]
    assert plan["plan"] == {"nodes": 1, "gpus_per_node": 8}
    assert model["tokenizer_path"] == "/data/tokenizer.model"
    assert "rope_scaling" not in model
    fates = {key: row.fate for key, row in rows.items()}
    assert fates["typo.x"] == "unknown"
    assert fates["model.dim"] == "unknown"
    assert model["dim"] == 256
    assert fates["experimental.custom_import"] == "dropped"
    assert fates["parallelism.enable_compiled_autograd"] == "dropped"
    assert fates["float8.force_recompute_fp8_weight_in_bwd"] == "dropped"
    assert fates["job.print_args"] == "dropped"
    assert fates["training.compile"] == "translated"
    assert rows["lr_scheduler.lr_min"].detail == "lr_scheduler.min_lr_factor = 0.1"
    assert "| `typo.x` | unknown |" in (bundle.path / "README.md").read_text()


def test_import_of_v022_float8_keeps_its_filter_of_small_layers(workplace: Path):
    text = """
[model]
flavor = "8B"
converters = ["quantize.linear.float8", "quantize.grouped_mm.float8"]
[training]
seq_len = 8192
[quantize.linear.float8]
enable_fsdp_float8_all_gather = true
filter_fqns = ["auto_filter_small_kn", "attention.wk"]
"""
    bundle, rows = run(workplace, text)
    plan = read(bundle, "plans/imported.toml")
    assert plan["model"] == {"converters": ["float8"]}
    assert plan["quantize"]["linear"]["float8"] == {
        "enable_fsdp_float8_all_gather": True,
        "filter_fqns": ["attention.wk"],
        "precompute_float8_dynamic_scale_for_fsdp": False,
        "skip_small": True,
    }
    assert rows["auto_filter_small_kn"].fate == "translated"


def test_import_of_a_file_before_v010_renames_those_too(workplace: Path):
    text = """
[model]
flavor = "70B"
converters = "float8"
[training]
batch_size = 2
data_parallel_shard_degree = 4
tensor_parallel_degree = 8
warmup_steps = 5
[experimental]
context_parallel_degree = 2
pipeline_parallel_degree = 2
[checkpoint]
enable_checkpoint = true
model_weights_only = false
"""
    bundle, rows = run(workplace, text)
    plan, train = read(bundle, "plans/imported.toml"), read(bundle, "train.toml")
    assert plan["parallelism"] == {
        "data_parallel_shard_degree": 4,
        "tensor_parallel_degree": 8,
        "context_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
    }
    assert plan["plan"] == {"nodes": 16, "gpus_per_node": 8}
    assert plan["model"] == {"converters": ["float8"]}
    assert train["training"] == {"local_batch_size": 2}
    assert train["lr_scheduler"] == {"warmup_steps": 5}
    assert train["checkpoint"] == {"enable": True, "last_save_model_only": False}
    assert rows["plan"].detail == "16 nodes x 8 GPUs: the product of the degrees"


@pytest.mark.parametrize(
    ("checkpoint", "flavor", "last_save_model_only", "rope_factor"),
    [
        ("enable_checkpoint", "8B", False, None),
        ("enable_checkpoint", "debugmodel", False, None),
        ("enable", "8B", True, 8.0),
        ("enable", "debugmodel", True, 8.0),
    ],
)
def test_import_takes_what_the_file_leaves_out_from_the_version_it_was_written_for(
    workplace: Path,
    checkpoint: str,
    flavor: str,
    last_save_model_only: bool,
    rope_factor: float | None,
):
    text = f'[model]\nflavor = "{flavor}"\n[checkpoint]\n{checkpoint} = true\n'
    bundle, _ = run(workplace, text)
    saved = read(bundle, "train.toml")["checkpoint"]
    assert saved == {"enable": True, "last_save_model_only": last_save_model_only}
    scaling = read(bundle, "model.toml")["model"].get("rope_scaling", {})
    assert scaling.get("factor") == rope_factor


def test_import_of_the_mx_kernel_flag_names_the_kernel(workplace: Path):
    bundle, _ = run(workplace, "[mx]\nuse_fp8_dim1_cast_triton_kernel = true\n")
    mx = read(bundle, "plans/imported.toml")["quantize"]["linear"]["mx"]
    assert mx == {"mxfp8_dim1_cast_kernel_choice": "triton"}


def test_import_when_checkpoints_are_left_to_the_default_turns_them_off(workplace: Path):
    bundle, rows = run(workplace, "[training]\nsteps = 3\n")
    assert read(bundle, "train.toml")["checkpoint"] == {"enable": False}
    assert rows["checkpoint.enable"].detail == "false: upstream's default, not ours"
    assert rows["assets.tokenizer"].detail == (
        "that of llama3_debug; upstream reads one of its test files"
    )


def test_import_when_a_path_exists_makes_it_absolute(workplace: Path):
    (workplace / "corpus").mkdir()
    bundle, rows = run(workplace, '[training]\ndataset_path = "corpus"\n')
    assert read(bundle, "train.toml")["training"]["dataset_path"] == str(workplace / "corpus")
    assert rows["training.dataset_path"].fate == "translated"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[model]\nname = "qwen3"\n',
            'model.name: "qwen3" is not supported yet; only "llama3" can be imported',
        ),
        (
            '[model]\nflavor = "9B"\n',
            'model.flavor: no numbers for "9B"; known flavors: debugmodel, 1B, 3B, 8B, 70B, 405B',
        ),
        (
            "[model]\nflavor = []\n",
            "model.flavor: no numbers for []; known flavors: debugmodel, 1B, 3B, 8B, 70B, 405B",
        ),
        (
            "[model\n",
            "not TOML: Expected ']' at the end of a table declaration (at line 1, column 7)",
        ),
    ],
)
def test_import_when_the_file_can_not_be_translated_says_why(
    workplace: Path, text: str, expected: str
):
    with pytest.raises(ConfigError) as caught:
        run(workplace, text)
    assert str(caught.value) == f"{workplace}/my config.toml: {expected}"
    assert not (workplace / "recipes").exists()


def test_import_when_the_recipe_exists_overwrites_nothing(tiny: Bundle, workplace: Path):
    with pytest.raises(BundleError) as caught:
        run(workplace, V022, "tiny")
    assert str(caught.value) == (
        f"{workplace}/recipes/tiny exists; choose another name with --name"
    )


def test_translation_tables_name_keys_that_exist_and_do_not_overlap():
    known = set(all_keys(Config))
    assert [new for new in OLD_KEYS.values() if new not in known] == []
    assert [old for old in (*OLD_KEYS, *DROPPED) if old in known] == []
    assert set(OLD_KEYS) & set(DROPPED) == set()


def test_import_when_a_section_is_empty_leaves_it_out(tmp_path: Path):
    file = tmp_path / "a.toml"
    file.write_text("[experimental]\n[training]\nsteps = 5\n[comm]\n")
    rows = import_torchtitan(file, tmp_path)[1]
    assert [row.key for row in rows if row.fate != "added"] == ["training.steps"]


def test_import_when_a_path_is_too_long_to_exist_keeps_it(tmp_path: Path):
    file = tmp_path / "a.toml"
    file.write_text(f"[training]\ndataset_path = '{'a' * 5000}'\n")
    rows = import_torchtitan(file, tmp_path)[1]
    assert [row.fate for row in rows if row.key == "training.dataset_path"] == ["kept"]
