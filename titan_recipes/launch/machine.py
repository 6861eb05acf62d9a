"""What this machine offers to a local run: its GPUs and the trainer's packages. No torch."""

import dataclasses
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from titan_recipes.config.data_root import install_command
from titan_recipes.config.datasets import WhereOf
from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.job import Job
from titan_recipes.config.resolve import with_overrides
from titan_recipes.errors import ConfigError, LaunchError, Problem

TRAINER_MODULES = ("torch", "numpy", "pyarrow", "safetensors", "tiktoken", "tokenizers")
"""What no training does without."""


def num_gpus() -> int:
    """GPUs that a process started here would see."""
    present = _num_present()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    chosen = [part for part in visible.split(",") if part.strip() not in ("", "-1")]
    return min(len(chosen), present)


def _num_present() -> int:
    """GPUs in this machine: nvidia-smi's list, else the kernel driver's, else AMD's."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        )
        if listed.returncode == 0:
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired):
        pass  # no nvidia-smi, or a driver that hangs: the driver's own list is left
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def in_job(key: str) -> str:
    """Where a setting is, for messages, if it is not known what set it."""
    return "job.toml"


def fit(job: Job, where_of: WhereOf = in_job) -> tuple[Job, str]:
    """(the job as it can run on this machine, what was changed in one line or "").

    A plan for any GPU takes those present, at most one for each rank, and the CPU where there are
    none. where_of: dotted key -> what set it. Raises ConfigError where the plan needs nodes or GPUs
    that are not there.
    """
    plan = job.plan
    if plan.nodes > 1:
        got = f"the plan needs {plan.nodes} machines, --scheduler local has this one"
        cure = "choose a plan with nodes = 1 (titan-recipes show RECIPE lists them), or --dry-run"
        raise ConfigError([Problem(where_of("plan.nodes"), "plan.nodes", got, cure)])
    if plan.gpu == NO_GPU:
        return job, ""
    present, ranks = num_gpus(), plan.gpus_per_node
    if present >= ranks or (plan.gpu == ANY_GPU and not present):
        return job, ""
    if plan.gpu == ANY_GPU:
        return _capped(job, present)
    got = f"the plan needs {ranks} {plan.gpu} GPU(s), this machine has {present or 'none'}"
    fewer = f" --set plan.gpus_per_node={present}," if present else ""
    cure = f"launch it where they are,{fewer} choose another plan, or look at it with --dry-run"
    raise ConfigError([Problem(where_of("plan.gpus_per_node"), "plan.gpus_per_node", got, cure)])


def _capped(job: Job, present: int) -> tuple[Job, str]:
    """The job on that many ranks, with the same tokens in a step where they divide; and a note."""
    ranks, before = f"plan.gpus_per_node={present}", job.derived
    try:
        capped = with_overrides(
            job, [ranks, f"training.global_batch_size={before.global_batch_size}"]
        )
    except ConfigError:  # the batch does not divide; what else is wrong is said here
        capped = with_overrides(job, [ranks])
    tokens, wanted = capped.derived.tokens_per_step, before.tokens_per_step
    note = f"{present} GPU(s) here: {present} rank(s) instead of {job.plan.gpus_per_node}, "
    note += f"still {tokens:,}" if tokens == wanted else f"{tokens:,} instead of {wanted:,}"
    # The user typed none of this: [origin] keeps what was.
    return dataclasses.replace(capped, origin=job.origin), f"{note} tokens per step"


def check_trainer() -> None:
    """Raises LaunchError where this Python can't train."""
    missing = [module for module in TRAINER_MODULES if find_spec(module) is None]
    if missing:
        cure = install_command("trainer")
        raise LaunchError(f"training needs {', '.join(missing)}, not installed here; {cure}")
