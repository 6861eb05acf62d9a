"""Jobs for the data tests: the demo's recipe, reading what the test makes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from titan_recipes.config.job import Derived, Job, Origin
from titan_recipes.config.schema import Assets, Data, Model, Recipe, Training

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job that reads its data from tmp_path; sections are given by keyword."""

    def make(**sections: Any) -> Job:
        job = Job(
            recipe=Recipe(name="llama3_debug", version="1.0.0", summary="", default_plan="cpu"),
            model=Model(
                family="llama3", dim=64, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=32,
                ffn_dim=128, vocab_size=2048,
            ),
            assets=Assets(tokenizer="tokenizer.model"),
            data=Data(cache_dir=str(tmp_path / "cache"), num_proc=1),
            training=Training(dataset="stdlib", seq_len=16, local_batch_size=2),
            origin=Origin(digest="", bundle="", plan="cpu", cluster=""),
            derived=Derived(
                world_size=1, dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1,
                global_batch_size=8, gradient_accumulation_steps=4, tokens_per_step=128,
                warmup_steps=0, decay_steps=1, schedule_steps=1, num_params=1, flops_per_token=1,
            ),
        )  # fmt: skip
        return replace(job, **sections)

    return make
