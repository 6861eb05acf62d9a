"""Traces at the right steps, and settings that can't be honoured."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from titan_recipes.config.layout import RunLayout
from titan_recipes.config.schema import Profiling
from titan_recipes.errors import ConfigError
from titan_recipes.trainer.profiling import profiled

CPU = torch.device("cpu")


def train(config: Profiling, root: Path, *, start: int, end: int) -> dict[str, list[int]]:
    """Run steps start + 1 .. end; step n multiplies [n, 3] by [3, 2]. Returns n per trace file."""
    with profiled(config, RunLayout(root), rank=1, start_step=start, device=CPU) as after_step:
        for step in range(start + 1, end + 1):
            torch.ones(step, 3) @ torch.ones(3, 2)
            after_step()
    traces = sorted(root.rglob("*.json.gz"))
    return {str(path.relative_to(root)): recorded_steps(path) for path in traces}


def recorded_steps(path: Path) -> list[int]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    calls = [e for e in events if e.get("name") == "aten::mm"]
    return [call["args"]["Input Dims"][0][0] for call in calls]


def trace(step: int) -> str:
    return f"profiles/profile_traces/step-{step:08d}/rank-1.json.gz"


@pytest.mark.parametrize(
    ("freq", "warmup", "active", "start", "end", "expected"),
    [
        (5, 3, 1, 0, 14, {trace(5): [5], trace(10): [10]}),
        (4, 1, 2, 0, 11, {trace(4): [3, 4], trace(8): [7, 8]}),
        (4, 0, 4, 0, 4, {trace(4): [1, 2, 3, 4]}),
        (5, 3, 1, 7, 12, {trace(10): [10]}),
    ],
)
def test_profiled_when_enabled_records_the_configured_steps(
    tmp_path: Path, freq: int, warmup: int, active: int, start: int, end: int, expected
) -> None:
    config = Profiling(
        enable_profiling=True, profile_freq=freq, profiler_warmup=warmup, profiler_active=active
    )
    assert train(config, tmp_path, start=start, end=end) == expected


def test_profiled_when_disabled_writes_nothing(tmp_path: Path) -> None:
    config = Profiling(profile_freq=1)  # fewer than warmup + active, and dormant
    assert train(config, tmp_path, start=0, end=3) == {}
    assert list(tmp_path.iterdir()) == []


def test_profiled_when_snapshots_without_cuda_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"enable_memory_snapshot: there is no CUDA device here"):
        train(Profiling(enable_memory_snapshot=True), tmp_path, start=0, end=1)
