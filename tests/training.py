"""Real training for tests: llama3_debug made small, on a small corpus, through real torchrun."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RunLayout

SMALL = (
    "model.n_layers=2",
    "training.seq_len=64",
    "training.local_batch_size=2",
    "training.global_batch_size=8",
    "training.mixed_precision_param='float32'",
    "training.steps=20",
    "lr_scheduler.warmup_steps=5",
    "activation_checkpoint.mode='none'",
    "metrics.log_freq=1",
    "validation.enable=false",
    "checkpoint.interval=10",
)
"""Overrides that make 20 steps of the debug model take seconds."""


def small_settings(corpus: Path, *overrides: str, ranks: int = 1) -> list[str]:
    """The overrides of a small run on `corpus` on `ranks` CPU ranks."""
    data = ["training.dataset='text'", f"training.dataset_path='{corpus}'"]
    return [*SMALL, *data, "plan.gpu='cpu'", f"plan.gpus_per_node={ranks}", *overrides]


def small_job(corpus: Path, *overrides: str, ranks: int = 1) -> Job:
    """llama3_debug resolved with the small settings."""
    settings = small_settings(corpus, *overrides, ranks=ranks)
    return find_bundle("llama3_debug").resolve(overrides=settings).job


def write_job(directory: Path, job: Job) -> Path:
    """A run directory that holds only job.toml."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "job.toml").write_text(to_toml(job))
    return directory


def train(directory: Path, job: Job, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Train a job in `directory` to its end, each rank a process; fails with the ranks' logs."""
    write_job(directory, job)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={job.derived.world_size}"]
    command = [*launcher, "-m", "titan_recipes.trainer", str(directory / "job.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    if check and done.returncode:
        logs = "\n".join(p.read_text() for p in sorted((directory / "logs").glob("rank-*.log")))
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{logs}")
    return done


def train_here(directory: Path, job: Job) -> None:
    """Train a one-rank job in this process, which saves starting one."""
    from titan_recipes.trainer.__main__ import join

    write_job(directory, job)
    (directory / "logs").mkdir(exist_ok=True)
    join(RunLayout(directory), job, sys.stdout).train()


def forget_job() -> None:
    """Call it between two jobs of one process, or the second may stand still.

    DTensor keeps what each operator returned for good, and takes two meshes of the same ranks and
    axes for one, whatever their process groups (`DeviceMesh.__eq__`): so parameters of the next job
    come to lie on groups of the last. On ranks that held other stages of a pipeline they are others
    of them, and ranks that take a sum for each group they meet then wait for different sums.
    """
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
    gc.collect()


def leave_group() -> NoReturn:
    """End a rank that is done, as the trainer does: gloo's threads may abort a teardown."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def rows(directory: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def column(directory: Path, name: str) -> list[float]:
    """One column of metrics.jsonl, checked to hold each step once."""
    table = rows(directory)
    assert [row["step"] for row in table] == list(range(1, len(table) + 1))
    return [row[name] for row in table]


def largest_difference(a: list[float], b: list[float]) -> float:
    """The largest relative difference between two columns of equal length."""
    assert len(a) == len(b) > 0
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
