"""Traces of time and snapshots of memory, below profiles/ in the run directory.

    profiles/profile_traces/step-00000010/rank-0.json.gz       chrome://tracing, ui.perfetto.dev
    profiles/memory_snapshot/step-00000010/rank-0.pickle       docs.pytorch.org/memory_viz
    profiles/memory_snapshot/step-00000013-oom/rank-0.pickle   what was there when memory ran out

With profile_freq = 10, profiler_warmup = 3 and profiler_active = 1, steps 7, 8 and 9 run under the
profiler, step 10 is recorded and its trace written, and so on every ten steps.
"""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, schedule

from titan_recipes.config.layout import RunLayout
from titan_recipes.config.schema import Profiling
from titan_recipes.errors import ConfigError, Problem

# Allocations and frees kept in the history; 100,000 make a snapshot of some tens of MB.
_HISTORY_ENTRIES = 100_000


@contextmanager
def profiled(
    config: Profiling, layout: RunLayout, *, rank: int, start_step: int, device: torch.device
) -> Generator[Callable[[], None], None, None]:
    """Around the training loop; yields a function to call after every step.

    start_step: steps already done; traces come at the multiples of profile_freq of the training,
    wherever it was resumed. When memory runs out inside, the allocator's history is saved.
    Raises ConfigError for settings that this machine can't do.
    """
    if config.enable_memory_snapshot and device.type != "cuda":
        got = "there is no CUDA device here, and only CUDA's allocator keeps a history"
        key = "profiling.enable_memory_snapshot"
        raise ConfigError([Problem("job.toml", key, got, "set it to false")])
    folder = layout.profiles / config.save_traces_folder
    snapshots = layout.profiles / config.save_memory_snapshot_folder
    step = start_step
    profiler = _profiler(config, folder, rank, start_step) if config.enable_profiling else None

    def after_step() -> None:
        nonlocal step
        step += 1
        if profiler is not None:
            profiler.step()
        if config.enable_memory_snapshot and step % config.profile_freq == 0:
            save_memory_snapshot(snapshots / f"step-{step:08d}" / f"rank-{rank}.pickle")

    if config.enable_memory_snapshot:
        torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES)
    if profiler is not None:
        profiler.start()
    try:
        yield after_step
    except torch.OutOfMemoryError:
        if config.enable_memory_snapshot:
            # The step under way is the one after the last finished.
            save_memory_snapshot(snapshots / f"step-{step + 1:08d}-oom" / f"rank-{rank}.pickle")
        raise
    finally:
        if profiler is not None:
            profiler.stop()
        if config.enable_memory_snapshot:
            torch.cuda.memory._record_memory_history(enabled=None)


def save_memory_snapshot(path: Path) -> None:
    """Write the CUDA allocator's history as memory_viz reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._dump_snapshot(str(path))


def _profiler(config: Profiling, folder: Path, rank: int, start_step: int) -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    freq, warmup, active = config.profile_freq, config.profiler_warmup, config.profiler_active
    # Both are how this works: no warmup is the user's choice, and a trace holds its own cycle.
    warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
    warnings.filterwarnings("ignore", message="Warning: Profiler clears events")
    cycle = schedule(wait=freq - warmup - active, warmup=warmup, active=active)
    written: set[int] = set()

    def action(local_step: int) -> ProfilerAction:
        # Counted in steps of the training, so that a resumed run traces the same steps.
        return cycle(start_step + local_step)

    def write_trace(finished: profile) -> None:
        step = start_step + finished.step_num
        if step % freq or step in written:
            return  # The loop ended inside a cycle: there is only a part of it.
        written.add(step)
        path = folder / f"step-{step:08d}" / f"rank-{rank}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(path))

    return profile(
        activities=activities, schedule=action, on_trace_ready=write_trace, record_shapes=True
    )
