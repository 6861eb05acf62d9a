"""The schema against torchtitan v0.2.2's keys and defaults."""

import dataclasses
import json

import pytest
from pydantic import TypeAdapter

from titan_recipes.config import schema
from titan_recipes.config.load import all_keys
from titan_recipes.config.support import DORMANT, HONOURED, value_at

MODEL = dict(
    family="llama3", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128,
    vocab_size=256,
)  # fmt: skip
RECIPE = dict(name="x", version="1.0.0", summary="s", default_plan="p")

OUR_OWN_DEFAULTS = {
    "checkpoint.enable": True,
    "checkpoint.last_save_model_only": False,
    "checkpoint.folder": "checkpoints",
    "metrics.enable_tensorboard": True,
    "debug.seed": 0,
    "parallelism.pipeline_parallel_expert_parallel_overlap": False,
}
UPSTREAM_DEFAULTS = {
    "training.seq_len": 2048,
    "training.local_batch_size": 8,
    "training.global_batch_size": -1,
    "training.steps": 10000,
    "training.max_norm": 1.0,
    "optimizer.lr": 8e-4,
    "optimizer.implementation": "fused",
    "lr_scheduler.warmup_steps": 200,
    "parallelism.data_parallel_shard_degree": -1,
    "parallelism.pipeline_parallel_schedule": "1F1B",
    "activation_checkpoint.mode": "selective",
    "activation_checkpoint.selective_ac_option": "2",
    "compile.components": ("model", "loss"),
    "checkpoint.interval": 500,
    "checkpoint.keep_latest_k": 10,
    "comm.init_timeout_seconds": 300,
    "quantize.linear.mx.filter_fqns": ("output",),
    "profiling.profile_freq": 10,
    "validation.freq": 10,
}


def config() -> schema.Config:
    return schema.Config(recipe=schema.Recipe(**RECIPE), model=schema.Model(**MODEL))


@pytest.mark.parametrize(("key", "value"), (OUR_OWN_DEFAULTS | UPSTREAM_DEFAULTS).items())
def test_default_of_each_promised_key(key: str, value: object) -> None:
    assert value_at(config(), key) == value


def test_sections_left_out_are_not_in_the_schema() -> None:
    keys = all_keys(schema.Config)
    assert len(keys) == len(set(keys)) > 170
    assert not [key for key in keys if key.split(".")[0] in ("job", "experimental")]
    assert {"model.name", "model.flavor"}.isdisjoint(keys)


def test_every_field_has_a_docstring_and_every_key_survives_json() -> None:
    adapter = TypeAdapter(schema.Config)
    plain = json.loads(json.dumps(dataclasses.asdict(config())))
    assert adapter.validate_json(json.dumps(plain), strict=True) == config()


def test_support_tables_name_only_keys_that_exist() -> None:
    keys = all_keys(schema.Config)
    assert set(HONOURED) <= set(keys)
    for dormancy in DORMANT:
        for prefix in dormancy.keys:
            assert [key for key in keys if key.startswith(prefix)], prefix
        assert not dormancy.switch or dormancy.switch in keys


def test_honoured_values_hold_the_default() -> None:
    for key, honoured in HONOURED.items():
        assert value_at(config(), key) in honoured
