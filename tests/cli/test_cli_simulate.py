"""`simulate`: what it prints, in which stream, and how it exits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = (
    "model.dim=64", "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=2",
    "model.head_dim=16", "model.ffn_dim=128", "training.seq_len=64",
    "training.local_batch_size=1", "training.global_batch_size=-1", "plan.nodes=32",
    "plan.gpus_per_node=8", "plan.gpu='h100'",
)  # fmt: skip
"""Overrides of the debug recipe: 256 ranks of a model that takes no time."""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    settings = [part for setting in TINY for part in ("--set", setting)]
    command = [sys.executable, "-m", "titan_recipes.cli", "simulate", "llama3_debug", *settings]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)


def test_tables_go_to_stdout_and_progress_to_stderr() -> None:
    done = simulate("--rank", "255")
    assert done.returncode == 0, done.stderr
    assert "rank 255 of 256: building 2 layers" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("256 x h100")
    assert "MiB" in lines[3]
    assert "rank 255 (dp 255)" in lines[3]
    assert "rank 255 fits into the 80 GiB of h100: " in done.stdout
    assert "all_gather" in done.stdout


def test_json_holds_every_rank_asked_for() -> None:
    settings = ("--set", "parallelism.tensor_parallel_degree=2")
    done = simulate("--ranks", "0,9", "--json", *settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["world_size"] == 256
    assert found["gpu_memory_gib"] == 80
    assert [rank["place"] for rank in found["ranks"]] == [{"dp": 0, "tp": 0}, {"dp": 4, "tp": 1}]
    axes = {row["axis"] for row in found["ranks"][1]["collectives"]}
    assert {"tp", "dp_shard_cp"} <= axes


def test_rank_that_is_not_there_exits_2() -> None:
    done = simulate("--rank", "256")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'error: --ranks: got "256"; use 0 to 255, "first" or "last"\n'


def test_plan_that_can_not_be_exits_2_before_torch_is_imported() -> None:
    done = simulate("--set", "parallelism.tensor_parallel_degree=3")
    assert done.returncode == 2
    assert "importing torch" not in done.stderr
    assert "error: --set: parallelism.tensor_parallel_degree" in done.stderr
